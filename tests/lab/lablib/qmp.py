# SPDX-License-Identifier: LGPL-2.1-or-later
"""qmp.py - a few QMP commands to a QEMU of a test, for what runs without colod."""
import collections
import contextlib
import json
import socket
import threading
import time

from .util import LabError, wait_until


class Qmp(threading.Thread):
    """Answers by id, events in order."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.answers = {}
        self.events = collections.deque()
        self.changed = threading.Condition()
        self.last_id = 0
        self.ended = False

        def connect():
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(path)
                return sock
            except OSError:
                sock.close()
                return None
        self.sock = wait_until(connect, 20, f"{path} is there")
        self.stream = self.sock.makefile("r")
        self.stream.readline()
        self.start()
        self.call("qmp_capabilities")

    def run(self):
        with contextlib.suppress(OSError, ValueError):  # QEMU is gone, perhaps in the middle of a line
            self._read()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def _read(self):
        for line in self.stream:
            message = json.loads(line)
            with self.changed:
                if "event" in message:
                    self.events.append(message)
                else:
                    self.answers[message["id"]] = message
                self.changed.notify_all()

    def call(self, command, **arguments):
        with self.changed:
            self.last_id += 1
            number = self.last_id
            request = {"execute": command, "id": number}
            if arguments:
                request["arguments"] = arguments
            try:
                self.sock.sendall(json.dumps(request).encode() + b"\n")
            except OSError as error:
                raise LabError(f"QMP {command}: {error}") from error
            if not self.changed.wait_for(lambda: number in self.answers or self.ended, 20):
                raise LabError(f"QMP {command}: no answer within 20 s")
            if number not in self.answers:
                raise LabError(f"QMP {command}: QEMU closed the connection")
            answer = self.answers.pop(number)
        if "error" in answer:
            raise LabError(f"QMP {command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name, seconds=10):
        """The next one of this name, in microseconds; those before it are forgotten."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while True:
                while self.events:
                    event = self.events.popleft()
                    if event["event"] == name:
                        stamp = event["timestamp"]
                        return stamp["seconds"] * 1_000_000 + stamp["microseconds"]
                if not self.changed.wait(max(0, deadline - time.monotonic())):
                    raise LabError(f"QMP: no {name} within {seconds} s")
