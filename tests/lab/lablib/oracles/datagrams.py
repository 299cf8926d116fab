# SPDX-License-Identifier: LGPL-2.1-or-later
"""datagrams.py - the oracle of UDP: numbered datagrams, each answered with the guest's account of all before it.

One at a time: a datagram of another run begins a new account in the guest (lablib/numbered.py uses the same port).
"""
import re
import select
import socket
import time

from .base import Oracle
from .judges import DatagramJudge

LOST_S = 5  # an answer that is older than this does not come any more
MAX_NUMBERS = 1 << 20  # of one run, says guest-agent.c
MAX_HOLES = 200  # that are asked for


class Udp(Oracle):
    NAME = "udp"
    PORT = 11
    KIND = socket.SOCK_DGRAM

    def __init__(self, lab, seed=0):
        super().__init__(lab, seed)
        self.judge = DatagramJudge(self.account, self.run_id)
        self.lost_before = 0  # of runs that ended

    def talk(self, sock):
        sock.setblocking(False)
        due = time.monotonic()
        while not self.stopping.is_set():
            now = time.monotonic()
            if now >= due:
                self._send(sock, now)
                due = max(due + self.PERIOD_S, now)
            select.select([sock], [], [], max(0, due - now))
            self._receive(sock)

    def _send(self, sock, now):
        if len(self.judge.sent_at) == MAX_NUMBERS:
            self.lost_before += self.judge.count_lost(now)
            self.judge = DatagramJudge(self.account, self.judge.run + 1)
        try:
            sock.send(b"%d %d\n" % (self.judge.run, len(self.judge.sent_at)))
        except OSError:  # no route, refused, full: the client's own kernel did not take it
            return
        self.judge.sent(now)

    def _receive(self, sock):
        while True:
            try:
                data = sock.recv(4096)
            except OSError:  # nothing there, or refused while nobody is primary
                return
            if self.judge.answer(data):
                self.moved()

    def ask(self):
        answered = set(self.judge.answered.copy())
        missing, at = set(), 0
        for _ in range(MAX_HOLES):
            found = re.fullmatch(r"ok (\d+) (\d+)", self.lab.guest_command(f"hole {at}"))
            if not found:
                break
            first, at = map(int, found.groups())
            missing.update(range(first, at))
        self.judge.holes(missing, answered)

    def report(self):
        """While it runs, what is under way counts as lost only when it is old."""
        old = time.monotonic() - (LOST_S if self.is_alive() else 0)
        return {**super().report(), "lost": self.lost_before + self.judge.count_lost(old)}
