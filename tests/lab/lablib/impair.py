# SPDX-License-Identifier: LGPL-2.1-or-later
"""impair.py - a link that delays, loses and reorders frames, as `tc netem` would, without its kernel module.

The link's port leaves the switch's bridge and this thread copies frames between the two, with their virtio-net
headers. Both directions suffer alike. A frame here is what the sender's offload made: up to 64 KB of a stream.
"""
import contextlib
import heapq
import random
import re
import select
import socket
import threading
import time

from . import netns
from .tamper import FRAME_MAX, open_port
from .util import LabError

QUEUE_MAX = 10000  # frames; what is more is lost, as in netem
SLICE = 64


class Impairment:
    """The text of netem: "delay 5ms 1ms loss 1% reorder 5% 20ms": delay and jitter, loss, and how many frames are
    overtaken by those that follow within how long."""

    def __init__(self, text):
        rest = text
        self.delay_ns, self.jitter_ns, rest = self._take(r"delay (\d+)ms(?: (\d+)ms)?", rest, 1_000_000, 1_000_000)
        self.loss, _, rest = self._take(r"loss ([\d.]+)%()", rest, 0.01, 0)
        self.reorder, self.behind_ns, rest = self._take(r"reorder ([\d.]+)% (\d+)ms", rest, 0.01, 1_000_000)
        if rest.strip():
            raise LabError(f"impair: what is '{rest.strip()}' in '{text}'?")

    @staticmethod
    def _take(pattern, text, unit, second_unit):
        found = re.search(pattern, text)
        if not found:
            return 0, 0, text
        return (float(found.group(1)) * unit, float(found.group(2) or 0) * second_unit,
                text[:found.start()] + text[found.end():])


class Impair(threading.Thread):
    """link: client or peer. start() puts it in, stop() takes it out; what is under way then is delivered.

    sender: only what this host sends over the peer link suffers."""

    def __init__(self, lab, link, text, seed=1, sender=None):
        super().__init__(daemon=True, name=f"impair-{link}")
        if link not in ("client", "peer"):
            raise LabError(f"impair what? client or peer, not '{link}'")
        self.lab = lab
        self.link = link
        self.rule = Impairment(text)
        self.spared = {None: -1, "a": 1, "b": 0}[sender]  # index of the end that does not suffer
        self.random = random.Random(seed)
        self.queue = []  # heap of (due ns, number, target, frame)
        self.passed = self.lost = self.overtaken = 0
        self.failure = None
        self.stopping = threading.Event()
        self.socks = []

    def start(self):
        ends = self.lab.topology.open_link(self.link)
        with netns.inside(self.lab.topology.name("s")):
            self.socks = [open_port(end) for end in ends]
        super().start()

    def stop(self):
        self.stopping.set()
        self.join(10)
        for sock in self.socks:
            sock.close()
        self.lab.topology.close_link(self.link)
        if self.failure:
            raise LabError(self.failure)

    def run(self):
        try:
            while not self.stopping.is_set() or self.queue:
                wait = min(0.05, max(0, self.queue[0][0] - time.monotonic_ns()) / 1e9 if self.queue else 1)
                readable, _, _ = select.select(self.socks, [], [], wait)
                for sock in readable if not self.stopping.is_set() else []:
                    self._take(sock, self.socks[1 - self.socks.index(sock)])
                self._deliver()
        except OSError as error:
            self.failure = f"{self.name}: {error}"

    def _take(self, source, target):
        for _ in range(SLICE):
            try:
                frame = source.recv(FRAME_MAX)
            except BlockingIOError:
                return
            if self.socks.index(source) == self.spared:
                self.passed += 1
                heapq.heappush(self.queue, (time.monotonic_ns(), self.passed, target, frame))
                continue
            if self.random.random() < self.rule.loss or len(self.queue) >= QUEUE_MAX:
                self.lost += 1
                continue
            due = time.monotonic_ns() + self.rule.delay_ns + self.random.uniform(0, self.rule.jitter_ns)
            if self.random.random() < self.rule.reorder:
                self.overtaken += 1
                due += self.rule.behind_ns
            self.passed += 1
            heapq.heappush(self.queue, (due, self.passed, target, frame))

    def _deliver(self):
        now = time.monotonic_ns()
        while self.queue and self.queue[0][0] <= now:
            _, _, target, frame = heapq.heappop(self.queue)
            # Full, or the host has no link: lost, as it would be there.
            with contextlib.suppress(BlockingIOError, InterruptedError, socket.timeout):
                target.send(frame)
