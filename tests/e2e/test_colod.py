# SPDX-License-Identifier: LGPL-2.1-or-later
"""A colod dies and comes back."""
import contextlib

import pytest
from pair import STALL_SILENT, STALL_STUCK, STALL_TOLD

from lablib.host import NICE
from lablib.util import LabError, wait_until


def assert_said(path, text):
    """The configuration's qmp-log."""
    with open(path, encoding="utf-8") as log:
        assert text in log.read()


def group_nice(process):
    """Of its session's group of tasks, None where the kernel has no such groups."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{process.pid}/autogroup", encoding="ascii") as file:
        return int(file.read().split()[-1])
    return None


def test_killed_on_the_primary(pair):
    """The secondary takes over; the old guest reaches nobody and is stopped when its colod returns."""
    load = pair.load()
    mark = pair.mark()
    old = pair.lab.host(pair.primary).qemu()
    pair.lab.kill(pair.primary, "colod")
    pair.takeover(pair.secondary, mark, load, STALL_SILENT)
    assert old.is_alive(), "QEMU did not outlive colod"
    pair.assert_told(pair.secondary, mark, r"link lost|peer-down")
    pair.lab.start(pair.primary)
    wait_until(lambda: not old.is_alive(), 10, "the old guest is stopped")
    pair.finish(mark, load, [pair.primary, pair.secondary])
    pair.assert_told(pair.primary, None, r"must not go on|QEMU outlived colod")


def test_killed_on_a_lone_primary(pair):
    """QEMU keeps running and the restarted colod adopts it."""
    load = pair.load()
    pair.lab.kill(pair.secondary, "host")
    mark = pair.mark()
    pair.wait_state(pair.primary, "alone", 10)
    load.wait_flow()
    generation = pair.status(pair.primary)["generation"]
    old = pair.lab.host(pair.primary).qemu()
    qmp_log = f"{pair.lab.host(pair.primary).dir}/run/lab/qmp.log"
    assert_said(qmp_log, '"x-colo')
    assert group_nice(pair.lab.host(pair.primary).colod()) in (None, NICE) and group_nice(old) in (None, 0)
    pair.lab.kill(pair.primary, "colod")
    assert old.is_alive(), "QEMU did not outlive colod"
    pair.lab.start(pair.primary)
    status = pair.wait_state(pair.primary, "alone", 10)
    assert status["qemu"]["pid"] == old.pid, "another QEMU was started"
    assert status["generation"] == generation, "adoption is no failover"
    assert old.is_alive()
    pair.assert_told(pair.primary, None, r"QEMU outlived colod and nobody replaced it")
    load.wait_flow()
    pair.lab.start(pair.secondary)
    pair.finish(mark, load, [pair.primary])


def test_killed_on_the_secondary(pair):
    """The primary goes on alone; the secondary is rebuilt when its colod returns."""
    load = pair.load()
    mark = pair.mark()
    old = pair.lab.host(pair.secondary).qemu()
    pair.lab.kill(pair.secondary, "colod")
    pair.takeover(pair.primary, mark, load, STALL_TOLD)
    pair.lab.start(pair.secondary)
    wait_until(lambda: not old.is_alive(), 10, "the old secondary VM is stopped")
    pair.finish(mark, load, [pair.primary])
    pair.assert_told(pair.primary, mark, r"link lost|peer-down")


def test_restarted_with_its_qemu_dead(pair):
    """colod and QEMU of the primary die without the host; the pid in the state file is nobody's any more."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "colod")
    for process in pair.lab.host(pair.primary).qemus():
        process.destroy()
    pair.takeover(pair.secondary, mark, load, STALL_SILENT)
    pair.lab.start(pair.primary)
    pair.finish(mark, load, [pair.primary, pair.secondary])


@pytest.mark.parametrize("mode", ["default", pytest.param("buffered", marks=pytest.mark.lab(mode="buffered"))])
def test_planned_failover(pair, mode):
    """An operator hands the VM over; the pair is protected the other way round."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.host(pair.secondary).call("failover", timeout=15)
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary])
    pair.assert_told(pair.secondary, mark, r"operator")


def test_planned_failover_to_a_secondary_that_stands_still(pair):
    """The primary's guest is given up only when the other one is known to run: it goes on."""
    load = pair.load()
    mark = pair.mark()
    old = pair.lab.host(pair.primary).qemu()
    pair.lab.freeze(pair.secondary, "qemu")
    with contextlib.suppress(LabError):
        pair.lab.host(pair.secondary).call("failover", timeout=15)
    pair.takeover(pair.primary, mark, load, STALL_STUCK)
    assert pair.lab.host(pair.primary).qemu().pid == old.pid
    pair.finish(mark, load, [pair.primary])
