# SPDX-License-Identifier: LGPL-2.1-or-later
"""control.py - colod's control socket: one JSON object a line (docs/PROTOCOL.md)."""
import json
import socket

from .util import LabError


class ControlError(LabError):
    """colod refused a command; kind: refused, failed, usage or timeout."""

    def __init__(self, kind, text):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class ControlGone(LabError):
    """No colod listens, or it went away in the middle."""


class Control:
    def __init__(self, path, timeout=5):
        self.path = path
        self.last_id = 0
        self.pending = b""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(path)
        except OSError as error:
            self.sock.close()
            raise ControlGone(f"{path}: {error.strerror}") from error

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send_bytes(self, data):
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise ControlGone(f"{self.path}: {error}") from error

    def read_message(self):
        while b"\n" not in self.pending:
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError as error:
                raise LabError(f"{self.path}: no answer within {self.sock.gettimeout():g} s") from error
            except OSError as error:
                raise ControlGone(f"{self.path}: {error}") from error
            if not data:
                raise ControlGone(f"{self.path}: closed by colod")
            self.pending += data
        line, _, self.pending = self.pending.partition(b"\n")
        return json.loads(line)

    def call(self, command, **arguments):
        self.last_id += 1
        request = {"id": self.last_id, "command": command, "arguments": arguments}
        self.send_bytes(json.dumps(request).encode() + b"\n")
        while True:
            answer = self.read_message()
            if answer.get("id") != self.last_id:
                continue
            if "error" in answer:
                raise ControlError(answer["error"].get("class"), answer["error"].get("text"))
            return answer["return"]


def call(path, command, timeout=5, **arguments):
    with Control(path, timeout) as control:
        return control.call(command, **arguments)
