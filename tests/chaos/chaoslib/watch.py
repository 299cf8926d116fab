# SPDX-License-Identifier: LGPL-2.1-or-later
"""watch.py - what both hosts say of themselves, and what leaves them on the service LAN, all the while.

A thread for each host asks its colod for status and new events, and reads its state file: some twenty times a second.
What has changed is kept with its time (time.monotonic(), the clock of colod's events).
"""
import re
import threading
import time

from lablib.control import Control, ControlError
from lablib.sniffer import Sniffer, Witness
from lablib.topology import HOSTS
from lablib.util import LabError

PERIOD_S = 0.05
PATIENCE_S = 0.5  # for an answer of colod's
KEPT = ("state", "role", "protected", "reason", "generation")


class Sample:
    """What a host was from then on."""

    def __init__(self, when, values, saved):
        self.when = when
        self.values = values  # of KEPT, and peer; None: no colod answers
        self.saved = saved  # (generation, role) of the state file

    def __eq__(self, other):
        return other is not None and (self.values, self.saved) == (other.values, other.saved)

    def json(self):
        return {"at": round(self.when, 3), "saved": self.saved, **(self.values or {"state": None})}


class HostWatch(threading.Thread):
    def __init__(self, lab, name):
        super().__init__(daemon=True, name=f"watch-{name}")
        self.host = lab.host(name)
        self.samples = []
        self.events = []  # of all colods that ran here
        self.checkpoints = []  # (when, cause)
        self.owned = []  # (generation, when first seen): this host was its primary by its state file
        self.status = None
        self.control = None
        self.known = set()
        self.seq = 0
        self.counts = None
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(PERIOD_S):
            self.look()

    def look(self):
        status = self._ask()
        now = time.monotonic()
        self.status = status
        if status:
            self._note_checkpoints(now, status)
        sample = Sample(now, self._values(status), self._saved(now))
        if not self.samples or not sample == self.samples[-1]:
            self.samples.append(sample)

    @staticmethod
    def _values(status):
        if not status:
            return None
        peer = status["peer"]
        return {**{key: status.get(key) for key in KEPT}, "peer": peer.get("state") if peer.get("connected") else None}

    def _saved(self, now):
        """(generation, role) as on the disk."""
        try:
            with open(self.host.state_file, encoding="ascii", errors="replace") as file:
                text = file.read()
        except OSError:
            return None
        generation = re.search(r"^generation=(\d+)$", text, re.MULTILINE)
        role = re.search(r"^role=(\w+)$", text, re.MULTILINE)
        if not generation or not role:
            return None
        saved = (int(generation.group(1)), role.group(1))
        if saved[1] == "primary" and (not self.owned or self.owned[-1][0] != saved[0]):
            self.owned.append((saved[0], now))
        return saved

    def _ask(self):
        try:
            if not self.control:
                self.control = Control(self.host.socket, PATIENCE_S)
                self.seq = 0  # it may be another colod, which counts anew
            status = self.control.call("status")
            self._take_events(self.control.call("events", after=self.seq)["events"])
            return status
        except (LabError, ControlError, ValueError):
            self._forget_control()
            return None

    def _forget_control(self):
        if self.control:
            self.control.close()
        self.control = None

    def _take_events(self, events):
        for event in events:
            if (event["seq"], event["monotonic_us"]) not in self.known:
                self.known.add((event["seq"], event["monotonic_us"]))
                self.events.append(event)
        if events:
            self.seq = events[-1]["seq"]

    def _note_checkpoints(self, now, status):
        counts = status["checkpoint"]["by_cause"]
        before = self.counts or {}
        if status["role"] == "primary":
            for cause, count in counts.items():
                for _ in range(min(50, count - before.get(cause, count))):
                    self.checkpoints.append((now, cause))
        self.counts = counts

    def forget(self):
        """What is older than now is of no interest any more: a long run must not eat the memory."""
        self.samples, self.checkpoints = self.samples[-1:], []

    def stop(self):
        self.stopping.set()
        self.join(10)
        self._forget_control()


class Turns:
    """In place of a list of all frames: who sent, in order, neighbours merged."""

    def __init__(self):
        self.turns = []  # [host, first ns, last ns, frames]

    def append(self, frame):
        when, host = frame
        if self.turns and self.turns[-1][0] == host:
            self.turns[-1][2] = when
            self.turns[-1][3] += 1
        else:
            self.turns.append([host, when, when, 1])

    def __iter__(self):
        return iter([])


class Watch:
    def __init__(self, lab):
        self.lab = lab
        self.hosts = {name: HostWatch(lab, name) for name in HOSTS}
        self.lan = Sniffer(lab, Witness())
        self.lan.frames = Turns()
        self.start_s = time.monotonic()

    def start(self):
        for host in self.hosts.values():
            host.look()
            host.start()
        self.lan.start()

    def stop(self):
        for host in self.hosts.values():
            host.stop()
        self.lan.stop()

    @property
    def turns(self):
        return list(self.lan.frames.turns)

    def owners(self):
        """[(generation, host)] in order, as both hosts' state files told, and failovers among them."""
        return sorted((generation, name) for name, host in self.hosts.items() for generation, _ in list(host.owned))

    def failovers(self):
        hosts = [name for _, name in self.owners()]
        return sum(1 for before, after in zip(hosts, hosts[1:]) if before != after)

    def new_witness(self):
        self.lan.witness = Witness()
