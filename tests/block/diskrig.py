# SPDX-License-Identifier: LGPL-2.1-or-later
"""diskrig.py - hosts with a disk: disk-tool for colod's part, real nbdkits, the lab's QEMU, a guest made of libnbd"""
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import nbd

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, f"{SOURCE}/tests/lab")
from lablib.qmp import Qmp  # pylint: disable=wrong-import-position  # noqa: E402

BUILD = os.path.abspath(os.environ.get("COLOD_BLOCK_BUILD", f"{SOURCE}/build/dev"))
TOOL = os.path.abspath(os.environ.get("COLOD_DISK_TOOL", f"{BUILD}/tests/block/disk-tool"))
DEADLINE_S = 60
MIB = 1 << 20
PORT = str(10809 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))  # workers run at the same time


class DiskFailed(Exception):
    """An operation ended with an error: its text."""


def wait_until(condition, seconds=DEADLINE_S):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline
        select.select([], [], [], 0.005)


def qemu_path():
    return subprocess.run([f"{SOURCE}/tests/lab/qemu-root"], check=True, capture_output=True,
                          text=True).stdout.strip()


def make_pki(folder):
    tool = f"{SOURCE}/deploy/colo-pki"
    subprocess.run([tool, "init", folder], check=True, capture_output=True)
    for name in ("a=127.0.0.1", "b=127.0.0.2", "c=127.0.0.3"):
        subprocess.run([tool, "host", folder, name], check=True, capture_output=True)
    return folder


class Tool:
    """One life of colod, as far as the disk goes."""

    def __init__(self, arguments):
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen([TOOL, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        bufsize=1)
        self.changed = threading.Condition()
        self.done, self.events = [], []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self.changed:
                (self.events if "event" in message else self.done).append(message)
                self.changed.notify_all()

    def send(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _take(self, messages, key, value, seconds):
        def find():
            return next((message for message in messages if message[key] == value), None)
        with self.changed:
            assert self.changed.wait_for(find, seconds), (value, self.done, self.events)
            message = find()
            messages.remove(message)
            return message

    def wait_done(self, command, seconds=DEADLINE_S):
        message = self._take(self.done, "done", command, seconds)
        if "error" in message:
            raise DiskFailed(message["error"])
        return message

    def call(self, line, seconds=DEADLINE_S):
        self.send(line)
        return self.wait_done(line.split()[0], seconds)

    def event(self, name, seconds=DEADLINE_S):
        return self._take(self.events, "event", name, seconds)

    def close(self):
        """colod ends in order, and what it started lives on."""
        self.process.stdin.close()
        assert self.process.wait(DEADLINE_S) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


class Guest:
    """What a guest would do, through an export of the node that its device has. One for each QEMU."""

    def __init__(self, host, node="disk0"):
        path = f"{host.run}/guest.sock"
        host.guests.append(self)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        host.qmp.call("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        host.qmp.call("block-export-add", **{"type": "nbd", "id": "guest", "node-name": node, "writable": True,
                                             "name": "guest"})
        self.path = path
        self.handle = nbd.NBD()
        self.handle.connect_uri(self.uri("guest"))

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.path}"

    def write(self, data, offset):
        self.handle.pwrite(data, offset)

    def read(self, length, offset):
        return bytes(self.handle.pread(length, offset))

    def flush(self):
        self.handle.flush()


class Writer(threading.Thread):
    """Writes random blocks for ever; remembers what it was told to be written."""

    def __init__(self, guest, n_blocks):
        super().__init__(daemon=True)
        self.guest, self.n_blocks = guest, n_blocks
        self.written, self.latencies, self.errors = {}, [], []
        self.stopping = threading.Event()

    def run(self):
        count = 0
        while not self.stopping.is_set():
            count += 1
            block = (count * 7919) % self.n_blocks
            data = count.to_bytes(8, "big") * 512
            start = time.monotonic()
            try:
                self.guest.write(data, block * 4096)
            except nbd.Error as error:
                self.errors.append(error)
                return
            self.written[block] = data
            self.latencies.append(time.monotonic() - start)

    def wait_more(self, count=200):
        goal = len(self.latencies) + count
        wait_until(lambda: len(self.latencies) >= goal or self.errors)

    def end(self):
        self.stopping.set()
        self.join(DEADLINE_S)
        assert not self.is_alive() and not self.errors, self.errors

    def differences(self, image):
        with open(image, "rb") as file:
            content = file.read()
        return [block for block, data in self.written.items() if content[block * 4096:block * 4096 + 4096] != data]


class Host:
    def __init__(self, folder, pki, name, size=64 * MIB, **options):
        self.name, self.folder = name, f"{folder}/{name}"
        self.run, self.state = f"{self.folder}/r", f"{self.folder}/state"
        self.image = f"{self.folder}/image"
        self.guests, self.qemu, self.qmp, self.tool = [], None, None, None
        for path in (self.run, self.state):
            os.makedirs(path)
        with open(self.image, "wb") as file:
            file.truncate(size)
        addresses = {"a": "127.0.0.1", "b": "127.0.0.2"}
        values = {"image": self.image, "run-dir": self.run, "state-dir": self.state, "plugin-dir": f"{BUILD}/blockrep",
                  "listen": addresses[name], "peer": addresses["b" if name == "a" else "a"], "port": PORT,
                  "tls-ca": f"{pki}/{name}/ca.pem", "tls-cert": f"{pki}/{name}/{name}.pem",
                  "tls-key": f"{pki}/{name}/{name}-key.pem"}
        values.update({key.replace("_", "-"): str(value) for key, value in options.items()})
        self.values = values
        self.open()

    def open(self):
        self.tool = Tool([f"{key}={value}" for key, value in self.values.items()])

    def control(self, kind, command, **arguments):
        """One command of a plugin's control socket, beside the disk-tool's."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(f"{self.run}/disk0-{kind}.ctl")
            client.sendall(json.dumps({"id": 1, "command": command, "arguments": arguments}).encode() + b"\n")
            with client.makefile(encoding="utf-8") as stream:
                return json.loads(stream.readline())

    def pid(self, kind):
        """0: there is none."""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(f"{self.run}/disk0-{kind}.ctl")
            except OSError:
                return 0
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")

    def kill(self, kind, how=signal.SIGKILL):
        pid = self.pid(kind)
        assert pid > 0
        os.kill(pid, how)
        return pid

    def start_qemu(self, role, *options, change=lambda arguments: arguments):
        arguments = change(self.tool.call(f"arguments {role}")["arguments"])
        # A guest made of an export writes beside the device.
        arguments = [f"{argument},share-rw=on" if "drive=disk0" in argument else argument for argument in arguments]
        ours, colods = f"{self.run}/test.qmp", f"{self.run}/qmp.sock"
        for path in (ours, colods):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with open(f"{self.run}/qemu.log", "ab") as log:
            # pylint: disable=consider-using-with
            self.qemu = subprocess.Popen(
                [qemu_path(), "-M", "pc", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none",
                 "-qmp", f"unix:{ours},server=on,wait=off",
                 "-qmp", f"unix:{colods},server=on,wait=off", *arguments, *options], stdout=log, stderr=log)
        self.qmp = Qmp(ours)
        self.tool.call(f"qmp {colods}")
        return self.qmp

    def stop_qemu(self):
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait()
        self.qemu = None
        self.guests.clear()

    def logs(self):
        text = ""
        for name in sorted(os.listdir(self.run)):
            if name.endswith(".log"):
                with open(f"{self.run}/{name}", encoding="utf-8", errors="replace") as file:
                    text += f"--- {self.name} {name}\n{file.read()}"
        return text

    def destroy(self):
        self.stop_qemu()
        try:
            if self.tool and self.tool.process.poll() is None:
                self.tool.close()
        finally:
            for kind in ("mirror", "target"):
                with contextlib.suppress(ProcessLookupError):
                    if pid := self.pid(kind):
                        os.kill(pid, signal.SIGKILL)
