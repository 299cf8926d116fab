# SPDX-License-Identifier: LGPL-2.1-or-later
"""conftest.py - one lab for all tests (of a worker), mended between them, made anew where mending fails.

COLOD_E2E_BUILD   build directory (default build/dev)
COLOD_LAB_ID      name of the lab (default e2e); two runs at once need two. With pytest-xdist (-n N --dist loadgroup)
                  each worker has a lab of its own, with the worker's number behind the name
COLOD_E2E_MODE    network mode of tests that do not ask for one (default lockstep)
COLOD_E2E_LONG    1: also the tests marked `long`, variants of others
COLOD_E2E_LOGS    where logs of failed tests go (default build/e2e)
"""
import contextlib
import fcntl
import os
import re
import sys
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [f"{SOURCE}/tests/lab", HERE]

# pylint: disable=wrong-import-position
from lablib.lab import Lab  # noqa: E402
from lablib.settings import Settings  # noqa: E402
from lablib.util import LabError  # noqa: E402
from pair import REPROTECT_S, Pair  # noqa: E402

BUILD = os.path.abspath(os.environ.get("COLOD_E2E_BUILD", f"{SOURCE}/build/dev"))
MODE = os.environ.get("COLOD_E2E_MODE", "lockstep")
LOGS = os.environ.get("COLOD_E2E_LOGS", f"{SOURCE}/build/e2e")
LAB_ID = os.environ.get("COLOD_LAB_ID", "e2e") + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
GROUP_TESTS = 50  # a larger group is cut in two: a lab for each costs less than one worker that waits for the other


class LabKeeper:
    """The one lab, with the options the tests ask for."""

    def __init__(self):
        self.lab = Lab(LAB_ID)
        self.options = None
        self.lock = open(f"{self.lab.dir}.tests", "w", encoding="ascii")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.exit(f"another run has {self.lab.dir}: wait for its end, or set COLOD_LAB_ID to another name", 1)

    def get(self, options):
        """A protected pair with these options. Lock-stepping pairs make checkpoints often: tests wait for them."""
        options = {"mode": MODE, **options}
        if options["mode"] == "lockstep":
            options = {"interval_ms": 400, **options}
        if self.options != options or not self._mend():
            self.drop()
            self.lab.up(Settings(build=BUILD, **options), progress=lambda _: None)
            self.options = options
        return self.lab

    def _mend(self):
        """Whatever a test left: links, frozen processes, dead colods. False if that does not help."""
        try:
            self.lab.heal()
            for name, host in self.lab.hosts.items():
                self.lab.thaw(name, "host")
                if not host.colod():
                    self.lab.start(name)
            self.lab.wait_protected(None, REPROTECT_S / 2)
            return self.lab.http_get("/index.html") is not None
        except LabError:
            return False

    def drop(self):
        self.options = None
        self.lab.down()

    def save_logs(self, test):
        target = f"{LOGS}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', test)}"
        self.lab.save_logs(target)
        return target


@pytest.fixture(scope="session")
def keeper():
    keeper = LabKeeper()
    keeper.lab.down()  # what a run that was killed left
    yield keeper
    keeper.drop()
    os.unlink(keeper.lock.name)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    setattr(item, f"report_{call.when}", report)


def mark_log(lab, text):
    for host in lab.hosts.values():
        with contextlib.suppress(OSError), open(host.log, "a", encoding="utf-8") as log:
            log.write(f"--- test: {text}\n")


@pytest.fixture
def pair(request, keeper):
    """A protected pair; @pytest.mark.lab(arbiter="manual", ...) asks for other options than the defaults."""
    marker = request.node.get_closest_marker("lab")
    lab = keeper.get(marker.kwargs if marker else {})
    mark_log(lab, f"{request.node.name} begins")
    pair = Pair(lab)
    yield pair
    pair.close()
    report = getattr(request.node, "report_call", None)
    failed = report is not None and report.failed
    if failed:
        print(f"logs: {keeper.save_logs(request.node.name)}")
    if failed or pair.spoilt:
        keeper.drop()
    else:
        mark_log(lab, f"{request.node.name} ends")


def pytest_configure(config):
    config.addinivalue_line("markers", "lab(**options): options of the lab the test wants")
    config.addinivalue_line("markers", "xdist_group(name): of pytest-xdist: tests of one worker, here of one lab")
    config.addinivalue_line("markers", "long: a variant of another test; with COLOD_E2E_LONG=1 only")
    config.e2e_start = time.monotonic()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(config, items):
    """Tests that want the same lab stand together, the most numerous first; within that, in the order of the files."""
    if os.environ.get("COLOD_E2E_LONG") != "1":
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    groups = {}
    for item in items:
        marker = item.get_closest_marker("lab")
        groups.setdefault(repr(sorted(marker.kwargs.items())) if marker else "", []).append(item)
    parts = []
    for group in groups.values():
        halves = 2 if len(group) > GROUP_TESTS else 1
        size = -(-len(group) // halves)
        parts += [group[i * size:(i + 1) * size] for i in range(halves)]
    parts.sort(key=len, reverse=True)
    for number, part in enumerate(parts):
        for item in part:
            item.add_marker(pytest.mark.xdist_group(f"lab{number}"))
    items[:] = [item for part in parts for item in part]
