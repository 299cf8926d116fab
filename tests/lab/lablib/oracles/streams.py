# SPDX-License-Identifier: LGPL-2.1-or-later
"""streams.py - the oracles of TCP streams: HTTP bodies and an echo, each on one connection for as long as it lives."""
import select
import time

from .base import PATIENCE_S, Gone, Oracle, StandsStill
from .judges import RecordJudge, judge_body, record


class Http(Oracle):
    """One body after the other, of random sizes, on a connection that is kept."""

    NAME = "http"
    PORT = 81
    PERIOD_S = 0.1
    SIZES = (1, 20, 1000, 1460, 4096, 16000, 64 << 10)

    def __init__(self, lab, seed=0):
        super().__init__(lab, seed)
        self.number = 0

    def talk(self, sock):
        with sock.makefile("rb") as file:
            while not self.stopping.is_set():
                self.number += 1
                size = self.random.choice(self.SIZES) + self.random.randrange(100)
                sock.sendall(b"GET /body/%d/%d HTTP/1.1\r\nHost: guest\r\n\r\n" % (self.number, size))
                told_sum, body = self._read_answer(file)
                if not judge_body(self.account, self.number, size, told_sum, body):
                    return  # what follows may be the rest of anything
                self.moved()
                self.stopping.wait(self.PERIOD_S)

    @staticmethod
    def _read_answer(file):
        status = file.readline(4096)
        length = told_sum = None
        while (line := file.readline(4096)) not in (b"\r\n", b""):
            name, _, value = line.decode(errors="replace").partition(":")
            try:
                if name.lower() == "content-length":
                    length = int(value)
                elif name.lower() == "x-sum":
                    told_sum = int(value, 16)
            except ValueError:
                pass
        if not status.endswith(b"\n") or line == b"":
            raise Gone("the guest closed the connection within a header")
        if not status.startswith(b"HTTP/1.1 200 ") or length is None or length > 16 << 20:
            return None, status
        body = file.read(length)
        if len(body) < length:
            raise Gone(f"the guest closed the connection after {len(body)} of {length} bytes")
        return told_sum, body


class Echo(Oracle):
    """Numbered records, of which some are under way at any time."""

    NAME = "echo"
    PORT = 7
    PERIOD_S = 0.01
    WINDOW = 200

    def __init__(self, lab, seed=0):
        super().__init__(lab, seed)
        self.number = 0  # of the next record, over all connections

    def talk(self, sock):
        judge = RecordJudge(self.account, self.number)
        sock.setblocking(False)
        pending = b""
        due = last = time.monotonic()
        while not self.stopping.is_set():
            now = time.monotonic()
            if now - last > PATIENCE_S:
                raise StandsStill
            if now >= due and not pending and judge.sent - judge.next < self.WINDOW:
                pending = record(self.number)
                self.number = judge.sent = self.number + 1
                due = max(due + self.PERIOD_S, now)
            wait = 0.1 if pending else min(0.1, max(0, due - now))
            readable, writable, _ = select.select([sock], [sock] if pending else [], [], wait)
            if writable:
                pending = pending[sock.send(pending):]
            if readable and self._receive(sock, judge):
                last = time.monotonic()

    def _receive(self, sock, judge):
        data = sock.recv(64 << 10)
        if not data:
            raise Gone("the guest closed the connection")
        moved = judge.feed(data)
        if moved:
            self.moved()
        return moved
