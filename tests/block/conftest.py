# SPDX-License-Identifier: LGPL-2.1-or-later
"""conftest.py - our plugins in a real nbdkit, driven by real NBD clients

COLOD_BLOCK_BUILD   build directory (default build/dev), not a sanitized one: nbdkit is not built that way
"""
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time

import nbd
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get("COLOD_BLOCK_BUILD", f"{SOURCE}/build/dev"))
PLUGINS = f"{BUILD}/blockrep/nbdkit-colo"
DEADLINE_S = 30


class Refused(Exception):
    """An error answer of the control socket: (class, text)."""


class Target:
    """One nbdkit with the plugin on files in a folder; `start` and `kill` as often as wanted."""

    plugin = "target"

    def __init__(self, folder, size, **options):
        self.folder = str(folder)
        self.overlays = f"{self.folder}/overlays"
        self.disk = f"{self.folder}/disk"
        self.meta = f"{self.folder}/meta"
        self.nbd = f"{self.folder}/nbd"
        self.control = f"{self.folder}/control"
        self.log = f"{self.folder}/log"
        self.options = options
        self.process = None
        self.handles = []
        os.makedirs(self.overlays, exist_ok=True)
        if not os.path.exists(self.disk):
            with open(self.disk, "wb") as disk:
                disk.truncate(size)

    def arguments(self):
        values = {"disk": self.disk, "metadata": self.meta, "control": self.control}
        if self.options.get("overlay") != "memory":
            values["overlay-dir"] = self.overlays
        values.update({key.replace("_", "-"): value for key, value in self.options.items() if key != "nbdkit"})
        return [f"{key}={value}" for key, value in values.items()]

    def command(self, *sockets):
        return ["nbdkit", "-f", *sockets, *self.options.get("nbdkit", []), f"{PLUGINS}-{self.plugin}-plugin.so",
                *self.arguments()]

    def start(self):
        for path in (self.nbd, self.control):
            if os.path.exists(path):
                os.unlink(path)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command("-U", self.nbd), stderr=log, stdout=log)
        self.wait_ready()
        return self

    def wait_ready(self):
        deadline = time.monotonic() + DEADLINE_S
        while not self.answers():
            assert self.process.poll() is None, self.text_of_log()
            assert time.monotonic() < deadline
            select.select([], [], [], 0.005)

    def answers(self):
        """The control socket is the last that is made, and a moment before it listens it is there."""
        with socket.socket(socket.AF_UNIX) as client:
            return os.path.exists(self.nbd) and client.connect_ex(self.control) == 0

    def text_of_log(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def disconnect(self):
        """nbdkit ends when its last client has gone."""
        for handle in self.handles:
            with contextlib.suppress(nbd.Error):
                handle.shutdown()
        self.handles.clear()

    def stop(self, how=signal.SIGTERM):
        if how == signal.SIGTERM:
            self.disconnect()
        self.handles.clear()
        if self.process:
            process, self.process = self.process, None
            process.send_signal(how)
            try:
                status = process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            assert how == signal.SIGKILL or status == 0, self.text_of_log()

    def kill(self):
        self.stop(signal.SIGKILL)

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.nbd}"

    def connect(self, export):
        handle = nbd.NBD()
        handle.connect_uri(self.uri(export))
        self.handles.append(handle)
        return handle

    def ask(self, command, **arguments):
        """One command of the control socket; its return value, or Refused."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(self.control)
            request = {"id": 1, "command": command, "arguments": arguments}
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile(encoding="utf-8") as stream:
                answer = json.loads(stream.readline())
        if "error" in answer:
            raise Refused(answer["error"]["class"], answer["error"]["text"])
        return answer["return"]

    def mirror(self, generation=1, epoch=0):
        self.ask("sync", generation=generation)
        self.ask("mirror", generation=generation, epoch=epoch)

    def wait_status(self, condition):
        """Waits for a status that fulfils @condition, by waiting for changes."""
        deadline = time.monotonic() + DEADLINE_S
        status = self.ask("status")
        while not condition(status):
            assert time.monotonic() < deadline, status
            status = self.ask("status", after=status["change"], timeout_ms=1000)
        return status


class Forwarder(Target):
    """The same with the forwarder; its one export has no name."""

    plugin = "forward"

    @property
    def map(self):
        return f"{self.folder}/map"

    def arguments(self):
        values = {"disk": self.disk, "metadata": self.meta, "map": self.map, "control": self.control}
        values.update({key.replace("_", "-"): value for key, value in self.options.items() if key != "nbdkit"})
        return [f"{key}={value}" for key, value in values.items()]


def makers(cls, tmp_path):
    targets = []

    def make(size=64 << 20, start=True, folder=None, **options):
        target = cls(folder or tmp_path / cls.plugin, size, **options)
        targets.append(target)
        return target.start() if start else target

    yield make
    for target in targets:
        if target.process:
            target.stop()
        if os.path.exists(target.log):
            text = target.text_of_log()
            print(text)
            assert "assertion" not in text


@pytest.fixture
def make_target(tmp_path):
    """make_target(size, **parameters) -> a started Target; all are ended and their logs looked through."""
    yield from makers(Target, tmp_path)


@pytest.fixture
def make_forwarder(tmp_path):
    """The same of a Forwarder."""
    yield from makers(Forwarder, tmp_path)


@pytest.fixture
def small_fs(tmp_path):
    """small_fs(bytes) -> a file system of that size."""
    mounts = []

    def make(size):
        path = f"{tmp_path}/fs{len(mounts)}"
        os.makedirs(path)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "colod-test", path], check=True)
        mounts.append(path)
        return path

    yield make
    for path in mounts:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture(scope="session")
def qemu_tool():
    """qemu_tool("qemu-io", ...) runs a tool of the lab's QEMU and returns what it prints."""
    qemu = subprocess.run([f"{SOURCE}/tests/lab/qemu-root"], check=True, capture_output=True, text=True).stdout.strip()

    def run(name, *arguments):
        path = f"{os.path.dirname(qemu)}/{name}"
        done = subprocess.run([path if os.path.exists(path) else shutil.which(name), *arguments],
                              capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
