# SPDX-License-Identifier: LGPL-2.1-or-later
"""strangers.py - who has no business there talks to a host: to its peer port, its control sockets, its disks' ports."""
import contextlib
import json
import os
import random
import socket
import ssl
import struct

from . import netns, topology
from .control import Control, ControlGone
from .settings import PEER_PORT, VM
from .util import LabError, run, wait_until

HELLO, WELCOME = 1, 2
PATIENCE_S = 8
CROWD = 40
OPT_EXPORT_NAME, OPT_STARTTLS, OPT_GO = 1, 5, 7
OPTION_MAGIC, REPLY_MAGIC, REPLY_ERROR = b"IHAVEOPT", 0x3e889045565a9, 1 << 31


def other_of(name):
    return "b" if name == "a" else "a"


class Strangers:
    """Each method raises LabError if it is served, or kept waiting."""

    def __init__(self, lab, seed=1):
        self.lab = lab
        self.random = random.Random(seed)

    def garbage(self, size=4096):
        return self.random.randbytes(size)

    def _connect(self, name, port):
        """From the other host: nobody else can reach it."""
        with netns.inside(self.lab.topology.name(other_of(name))):
            sock = socket.socket()
        sock.settimeout(PATIENCE_S)
        sock.connect((topology.PEER_ADDRESS[name], port))
        return sock

    def _foreign(self, name):
        """A certificate for the right name, by an authority of somebody else."""
        folder = f"{self.lab.dir}/strangers"
        tool = f"{__file__.rsplit('/tests/', 1)[0]}/deploy/colo-pki"
        if not os.path.exists(folder):
            run(tool, "init", folder)
        if not os.path.exists(f"{folder}/{name}"):
            run(tool, "host", folder, name)
        return f"{folder}/{name}"

    def _tls(self, sock, name, who):
        """who: None, or the folder of the other host's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if who:
            context.load_cert_chain(f"{who}/{other_of(name)}.pem", f"{who}/{other_of(name)}-key.pem")
        return context.wrap_socket(sock, server_hostname=name)

    @staticmethod
    def _end_of(sock, data):
        """What is answered until the other side closes."""
        answer = b""
        try:
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                sock.sendall(data)
            while part := sock.recv(4096):
                answer += part
        except TimeoutError as error:
            raise LabError("a stranger's connection is kept open") from error
        except OSError:  # reset, TLS alert
            pass
        return answer

    # The peer port

    def _is_listening(self, name):
        try:
            self._connect(name, PEER_PORT).close()
            return True
        except OSError:
            return False

    def peer(self, name):
        """@name, or the other host if that is who listens."""
        if not self._is_listening(name):
            name = other_of(name)
        for data in (b"", self.garbage(), bytes(4096), b"GET / HTTP/1.1\r\n\r\n"):
            with self._connect(name, PEER_PORT) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                self._end_of(sock, b"")
        own = f"{self.lab.host(other_of(name)).dir}/pki"
        for who in (None, self._foreign(other_of(name))):
            self._refused(name, who, self._hello(name))
        for data in (self.garbage(), self._hello(name, version=2), self._hello(name, vm="other"), self._hello(name, host="mallory"),
                     self._hello(name, uuid="00000000-0000-4000-8000-000000000000"), struct.pack(">BBHI", 1, HELLO, 0, 0xffffffff)):
            self._refused(name, own, data)
        for sock in [self._connect(name, PEER_PORT) for _ in range(CROWD)]:  # all at once, and none says a word
            sock.close()

    def _refused(self, name, who, data):
        try:
            with self._tls(self._connect(name, PEER_PORT), name, who) as sock:
                answer = self._end_of(sock, data)
        except (ssl.SSLError, ConnectionError):
            return
        if answer[1:2] == bytes([WELCOME]):
            raise LabError(f"{name} welcomed a stranger")

    def _hello(self, name, version=1, **changes):
        values = {"channel": "control", "vm": VM, "uuid": self.lab.settings.uuid, "host": other_of(name), "role": "none", "generation": "1",
                  "boot_id": "1", "software": "0.1.0", "session": "1", **changes}
        payload = json.dumps(values).encode()
        return struct.pack(">BBHI", version, HELLO, 0, len(payload)) + payload

    # Control sockets: colod's, and those of the disks' processes

    def control(self, name):
        self._crowd(self.lab.host(name).socket)

    def _crowd(self, path):
        """Garbage, a line without an end, a client that never reads, more clients than there is room for."""
        deaf = []
        with contextlib.suppress(ControlGone):
            for _ in range(CROWD):
                deaf.append(Control(path))
                deaf[-1].send_bytes(b'{"id": 1, "command": "status"}\n' * 50)
        for one in deaf:
            one.close()
        wait_until(lambda: self._answers(path), PATIENCE_S, lambda: f"{path} has room again")
        for line in (b"hello\n", b"\xff\x00garbage\n", b"[" * 3000 + b"\n", b'{"id": 1, "command": 7}\n', b'{"id": 1, "command": "frobnicate"}\n'):
            with Control(path) as control:
                control.send_bytes(line)
                if "error" not in control.read_message():
                    raise LabError(f"{path} took {line[:20]} for a command")
        for line in (b'{"id": 1, "comm', b"x" * (1 << 20)):
            with contextlib.suppress(ControlGone), Control(path) as control:
                control.send_bytes(line)
        wait_until(lambda: self._answers(path), PATIENCE_S, lambda: f"{path} answers")

    @staticmethod
    def _answers(path):
        try:
            with Control(path) as control:
                control.call("status")
            return True
        except ControlGone:
            return False

    # Disks

    def disk(self, name):
        """The port of the first disk if its target listens, and both processes' control sockets."""
        for kind in ("target", "mirror"):
            path = self.lab.host(name).socket.replace("control.sock", f"disk0-{kind}.ctl")
            if os.path.exists(path):
                self._crowd(path)
        with contextlib.suppress(ConnectionRefusedError):
            with self._connect(name, PEER_PORT + 1) as sock:
                self._end_of(sock, self.garbage())
            self._no_export(name, "target", None)
            self._no_export(name, "target", self._foreign(other_of(name)))
            self._no_export(name, "active", f"{self.lab.host(other_of(name)).dir}/pki")

    @staticmethod
    def _option(sock, option, data=b""):
        """The kind of the answer."""
        sock.sendall(OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        header = b""
        while len(header) < 20:
            part = sock.recv(20 - len(header))
            if not part:
                return REPLY_ERROR
            header += part
        magic, _, kind, _ = struct.unpack(">QIII", header)
        if magic != REPLY_MAGIC:
            raise LabError(f"no answer to an NBD option: {header!r}")
        return kind

    def _no_export(self, name, export, who):
        """Without TLS (who is None), or with this certificate: the export is refused."""
        try:
            with self._connect(name, PEER_PORT + 1) as sock:
                if sock.recv(18, socket.MSG_WAITALL)[:8] != b"NBDMAGIC":
                    return
                sock.sendall(struct.pack(">I", 3))
                if who:
                    self._option(sock, OPT_STARTTLS)
                    sock = self._tls(sock, name, who)  # noqa: PLW2901
                go = struct.pack(">I", len(export)) + export.encode() + struct.pack(">H", 0)
                if not self._option(sock, OPT_GO, go) & REPLY_ERROR:
                    raise LabError(f"{name} serves '{export}' to a stranger")
        except (ssl.SSLError, ConnectionError):
            pass
