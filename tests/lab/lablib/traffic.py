# SPDX-License-Identifier: LGPL-2.1-or-later
"""traffic.py - the kinds of traffic of a soak: clients that are renewed when they end, and what each kind came to."""
import statistics
import time

from .clients import Download, Echo, IcmpPinger, Pinger, longest_gap_ms
from .streams import Fetches, Lookups, Outbound, Upload
from .topology import GUEST_ADDRESS6
from .util import LabError, say, wait_until

RATE = 1 << 20
FLOW_S = 30
LARGE = (2000, 1472, 1473, 9000, 30000)  # bytes of a datagram: with and without fragments

# Kind -> what makes its clients; of each there is one at any time.
STREAMS = {
    "download": [lambda lab, name: Download(lab, 24, RATE, name)],
    "upload": [lambda lab, name: Upload(lab, 16, RATE, name)],
    "parallel": [lambda lab, name: Download(lab, 2, RATE // 32, name)] * 100,
    "echo": [Echo],
    "ipv6": [lambda lab, name: Echo(lab, name, GUEST_ADDRESS6),
             lambda lab, name: Download(lab, 12, RATE // 2, name, GUEST_ADDRESS6)],
    "outbound": [lambda lab, name: Outbound(lab, 8, RATE, name)],
    "wget": [lambda lab, name: Fetches(lab, 4, RATE, name)],
    "dns": [lambda lab, name: Lookups(lab, 100, name)],
}
DATAGRAMS = {
    "udp": [Pinger],
    "fragments": [lambda lab, name: Pinger(lab, name, sizes=LARGE, period_ns=20_000_000)],
    "ping": [IcmpPinger, lambda lab, name: IcmpPinger(lab, name, sizes=(56, 3000), period_ns=20_000_000)],
    "udp6": [lambda lab, name: Pinger(lab, name, GUEST_ADDRESS6, sizes=(16, 3000), period_ns=10_000_000)],
    "ping6": [lambda lab, name: IcmpPinger(lab, name, GUEST_ADDRESS6, sizes=(56, 3000), period_ns=10_000_000)],
}
KINDS = {**STREAMS, **DATAGRAMS}
DEFAULT = ("download", "upload", "echo", "ipv6", "outbound", "udp")
# The guest's port of a connection, to tell whose it is.
PORTS = {7: "echo", 80: "download", 8080: "upload"}


def moved(client):
    return client.moved() if hasattr(client, "moved") else client.received


def count_of(failure):
    if "reset" in failure.lower() or "closed" in failure or "refused" in failure.lower():
        return "resets"
    return "wrong_bytes" if "wrong" in failure or "other bytes" in failure else "stalled_streams"


class Kind:
    """The clients of one kind, and its line of the table."""

    def __init__(self, lab, kind):
        self.lab = lab
        self.kind = kind
        self.is_stream = kind in STREAMS
        self.makers = KINDS[kind]
        self.clients = {}
        self.failures = []
        self.seen = 0  # of the failures, by take_failures()
        self.line = {"ended_well": 0, "resets": 0, "wrong_bytes": 0, "stalled_streams": 0}
        self.amounts = {}
        self.stalls_ms = []

    def renew(self):
        """What ended, well or badly, is followed by another."""
        for number, make in enumerate(self.makers):
            client = self.clients.get(number)
            if client and client.is_alive():
                continue
            if client:
                self._note_end(client)
            self.clients[number] = make(self.lab, name=self.kind if len(self.makers) == 1 else f"{self.kind}-{number}")
            self.clients[number].start()

    def _note_end(self, client):
        if client.failure:
            say(f"FAILED: {client.failure}")
            self.failures.append(client.failure)
            self.line[count_of(client.failure)] += 1
        else:
            self.line["ended_well"] += 1
        if self.is_stream:
            self._add(moved=moved(client))
        else:
            self._add(sent=len(client.sent_ns), answered=len(client.answered_ns), repeated=client.repeated)

    def _add(self, **amounts):
        for name, amount in amounts.items():
            self.amounts[name] = self.amounts.get(name, 0) + amount

    def take_failures(self):
        new, self.seen = self.failures[self.seen:], len(self.failures)
        return new

    def goals(self):
        """[(client, how far it must get to have moved on)]"""
        return [(client, self.position(client) + (1 if self.is_stream else 5)) for client in self.clients.values()]

    def position(self, client):
        return moved(client) if self.is_stream else len(client.answered_ns)

    def note_stall(self, start_ns, end_ns):
        """Also of streams that have not moved since."""
        worst = 0
        for client in self.clients.values():
            times = (list(client.times_ns) if self.is_stream else sorted(client.answered_ns.copy().values()))
            if client.is_alive():
                times.append(end_ns)
            worst = max(worst, longest_gap_ms(times, start_ns, end_ns))
        self.stalls_ms.append(round(worst))
        return worst

    def stop(self, seconds):
        for client in self.clients.values():
            client.join(seconds)
            if client.is_alive():
                client.failure = client.failure or f"{client.name}: does not end"
            self._note_end(client)

    def report(self):
        return {**self.line, **self.amounts, "stall_p50_ms": round(statistics.median(self.stalls_ms or [0])),
                "stall_worst_ms": max(self.stalls_ms, default=0)}


class Waiting:
    """For clients to move on."""

    STALL_S = 8  # longer than anything but a lookup's second try takes

    def __init__(self, goals, on_stall):
        self.goals = goals
        self.on_stall = on_stall
        self.told_at = time.monotonic() + self.STALL_S

    def is_over(self):
        self.goals = [(kind, client, goal) for kind, client, goal in self.goals
                      if client.is_alive() and kind.position(client) < goal]
        if self.goals and time.monotonic() > self.told_at:
            self.told_at = float("inf")
            self.on_stall(self.names())
        return not self.goals

    def names(self):
        return ", ".join(client.name for _, client, _ in self.goals)


class Traffic:
    """Some kinds at once."""

    def __init__(self, lab, kinds):
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise LabError(f"unknown traffic {', '.join(unknown)}: {', '.join(KINDS)}")
        self.kinds = [Kind(lab, kind) for kind in kinds]
        self.lab = lab
        self.renew()

    def renew(self):
        for kind in self.kinds:
            kind.renew()

    def wait_flow(self, on_stall=lambda text: None):
        """Each client moves on, or has ended. on_stall(who): once, if that takes long."""
        goals = [(kind, client, goal) for kind in self.kinds for client, goal in kind.goals()]
        waiting = Waiting(goals, on_stall)
        wait_until(waiting.is_over, FLOW_S + 5, lambda: f"stand still: {waiting.names()}; {self.lab.describe()}")

    def note_stalls(self, start_ns, end_ns):
        return max(kind.note_stall(start_ns, end_ns) for kind in self.kinds)

    def failures(self):
        """New ones."""
        return [failure for kind in self.kinds for failure in kind.take_failures()]

    def stop(self):
        for kind in self.kinds:
            for client in kind.clients.values():
                client.stopping.set()
        for kind in self.kinds:
            kind.stop(120)

    def report(self):
        return {kind.kind: kind.report() for kind in self.kinds}
