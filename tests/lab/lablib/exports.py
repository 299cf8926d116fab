# SPDX-License-Identifier: LGPL-2.1-or-later
"""exports.py - disks that are another program's NBD export: of another format, or one that fails when it is told to."""
import contextlib
import os
import socket
import subprocess

from .util import LabError, Process, remove, run, wait_until

NAME = "disk"
OPS = ("pread", "pwrite", "zero", "trim")


class Export:
    """A server on a UNIX socket; the image is a file beside it."""

    def __init__(self, folder, name, prefix=()):
        self.folder, self.name = folder, name
        self.image = f"{folder}/{name}.img"
        self.socket = f"{folder}/{name}.nbd"
        self.log = f"{folder}/{name}.log"
        self.prefix = list(prefix)  # of its command line
        self.process = None

    @property
    def uri(self):
        return f"nbd+unix:///{NAME}?socket={self.socket}"

    def command(self):
        raise NotImplementedError

    def is_served_by(self, words):
        return self.socket in words or f"addr.type=unix,addr.path={self.socket}" in words

    def is_alive(self):
        return self.process is not None and self.process.is_alive()

    def answers(self):
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.socket) == 0

    def start(self):
        for path in (self.socket, f"{self.folder}/{self.name}.pause"):
            remove(path)
        with open(self.log, "ab") as log:
            child = subprocess.Popen([*self.prefix, *self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     start_new_session=True)
        self.process = Process(child.pid)
        child.returncode = 0  # nobody waits for it here; Process does
        wait_until(lambda: self.answers() or not self.process.is_alive(), 20, lambda: f"no export at {self.socket}")
        if not self.is_alive():
            with open(self.log, encoding="utf-8", errors="replace") as log:
                raise LabError(f"{self.command()[0]} ended at once: {log.read()}")
        return self

    def kill(self, how=9):
        if self.is_alive():
            self.process.kill(how)
            self.process.wait_gone(10)


class Qcow2(Export):
    """A qcow2 image by qemu-storage-daemon; its programs are those beside @qemu."""

    def __init__(self, folder, name, qemu, prefix=()):
        super().__init__(folder, name, prefix)
        self.tools = os.path.dirname(qemu)

    def make(self, size_bytes):
        run(f"{self.tools}/qemu-img", "create", "-q", "-f", "qcow2", self.image, str(size_bytes))

    def command(self):
        return [f"{self.tools}/qemu-storage-daemon",
                "--blockdev", f"driver=file,node-name=file,filename={self.image},discard=unmap",
                "--blockdev", f"driver=qcow2,node-name={NAME},file=file,discard=unmap",
                "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
                "--export", f"type=nbd,id=export,node-name={NAME},name={NAME},writable=on"]


class Failing(Export):
    """A raw image by nbdkit, which fails (EIO) or hangs while it is told to."""

    def make(self, size_bytes):
        with open(self.image, "wb") as file:
            file.truncate(size_bytes)

    def trigger(self, op):
        return f"{self.folder}/{self.name}.fail-{op}"

    def command(self):
        errors = [word for op in OPS for word in (f"error-{op}=EIO", f"error-{op}-rate=100%",
                                                  f"error-{op}-file={self.trigger(op)}")]
        return ["nbdkit", "-f", "-U", self.socket, "--filter=pause", "--filter=error", "file", self.image,
                f"pause-control={self.folder}/{self.name}.pause", *errors]

    def fail(self, *ops):
        for op in ops:
            with open(self.trigger(op), "wb"):
                pass

    def hang(self):
        """Requests that come from now on do."""
        self._tell(b"p")

    def mend(self):
        for op in OPS:
            remove(self.trigger(op))
        if self.is_alive():
            self._tell(b"r")

    @contextlib.contextmanager
    def failing(self, *ops):
        self.fail(*ops)
        try:
            yield
        finally:
            for op in ops:
                os.unlink(self.trigger(op))

    def _tell(self, letter):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(f"{self.folder}/{self.name}.pause")
            client.sendall(letter)
            if client.recv(1) != letter.upper():
                raise LabError("the pause filter does not answer")

    @contextlib.contextmanager
    def hanging(self):
        """Requests that come from now on hang."""
        self.hang()
        try:
            yield
        finally:
            self._tell(b"r")
