# SPDX-License-Identifier: LGPL-2.1-or-later
"""audit.py - what must hold after every step, and what must hold whenever the pair is protected again.

Each check returns a list of (kind, text), empty if all is right. The kind is what a shrunk scenario must still show.
"""
import os
import time

from lablib import netns
from lablib.topology import HOSTS
from lablib.util import LabError, run, wait_until

from .actions import verify
from .cast import RUNNING
from .watch import PERIOD_S

TWO_PRIMARIES_S = 2.0  # a host that stood still for longer than its lease learns at once that it is none any more
CATCH_UP_S = 20
GONE_S = 8  # after it is protected again, what has ended may still be on its way out
MORE_FDS = 12
MORE_SOCKETS = 24
MANY = 12  # faults of one step that are told
RSS_MORE_KIB = 96 << 10


def proc_lines(path):
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def rss_kib(pid):
    for line in proc_lines(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def count_sockets(pid):
    """In the network namespace of that process."""
    return sum(max(0, len(proc_lines(f"/proc/{pid}/net/{kind}")) - 1) for kind in ("tcp", "tcp6", "udp", "unix", "packet")
               ) - sum(line.split()[3] == "06" for line in proc_lines(f"/proc/{pid}/net/tcp")[1:])  # TIME-WAIT is the kernel's


def count_fds(pid):
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def zombies_of(pid):
    return [entry for entry in os.listdir("/proc") if entry.isdigit()
            and (lines := proc_lines(f"/proc/{entry}/stat")) and lines[0].rpartition(")")[2].split()[:2] == ["Z", str(pid)]]


class Resources:
    """What both hosts use while the pair is protected: compared with the first time that a host was in that role."""

    def __init__(self, lab):
        self.lab = lab
        self.first = {}  # (host, role) -> usage
        self.most = {}  # of each, by host and role
        self.rss = []  # (when, host, pid, KiB)

    def usage(self, name):
        colod = self.lab.host(name).colod()
        if not colod:
            return None
        return {"processes": len(self.lab.topology.processes(name)), "descriptors": count_fds(colod.pid),
                "sockets": count_sockets(colod.pid), "zombies": len(zombies_of(colod.pid)), "rss_kib": rss_kib(colod.pid)}

    def _too_much(self, name, role):
        have = self.usage(name)
        first = self.first.setdefault((name, role), have)
        if have:
            most = self.most.setdefault(f"{name} as {role}", dict(have))
            most.update({what: max(count, most[what]) for what, count in have.items()})
        if not have or not first:
            return f"no colod on {name}"
        limits = {"processes": first["processes"], "descriptors": first["descriptors"] + MORE_FDS,
                  "sockets": first["sockets"] + MORE_SOCKETS, "zombies": 0, "rss_kib": first["rss_kib"] + RSS_MORE_KIB}
        return "; ".join(f"{what} {have[what]}, at first {first[what]}, allowed {limit}" for what, limit in limits.items()
                         if have[what] > limit)

    def check(self, primary):
        wrong = []
        for name in HOSTS:
            role = "primary" if name == primary else "secondary"
            try:
                wait_until(lambda name=name, role=role: not self._too_much(name, role), GONE_S, "", poll=0.1)
            except LabError:
                wrong.append(("leak", f"{name} as {role}: {self._too_much(name, role)}: {self._list(name)}"))
            colod = self.lab.host(name).colod()
            if colod:
                self.rss.append((round(time.monotonic(), 1), name, colod.pid, rss_kib(colod.pid)))
        rooms = [line.split()[0] for line in run("ip", "netns", "list").splitlines()
                 if line.startswith(self.lab.topology.prefix + "-")]
        if len(rooms) != 4:
            wrong.append(("leak", f"network namespaces: {rooms}"))
        return wrong

    def _list(self, name):
        return ", ".join(f"{process.pid} {' '.join(netns.command_line(process.pid)[:6])[:70]}"
                         for process in self.lab.topology.processes(name))


class Audit:
    def __init__(self, lab, watch, performer):
        self.lab = lab
        self.watch = watch
        self.performer = performer
        self.resources = Resources(lab)
        self.both_since = None
        self.told = set()
        self.failovers_seen = 0
        self.counts = {"audits": 0, "settled": 0, "verified": 0, "dual_active": 0, "disk_differences": 0}

    def after_step(self):
        """Cheap: looks at what the watch has seen. Nothing is said twice."""
        self.counts["audits"] += 1
        found = [*self._two_primaries(), *self._lan(), *self._reasons()]
        found += [("streams", text) for text in (self.performer.oracles.check() if self.performer.oracles else [])]
        new = [item for item in found if item not in self.told]
        self.told.update(new)
        if len(new) > MANY:
            new = [*new[:MANY], (new[MANY][0], f"... and {len(new) - MANY} more")]
        self.counts["dual_active"] += sum(kind == "dual-active" for kind, _ in new)
        return new

    def _two_primaries(self):
        wrong = []
        last = {name: host.samples[-1] for name, host in self.watch.hosts.items() if host.samples}
        if len(last) < 2:
            return []
        saved = [sample.saved for sample in last.values()]
        if saved[0] and saved[0] == saved[1] and saved[0][1] == "primary":
            wrong.append(("two-primaries", f"both state files say primary of generation {saved[0][0]}"))
        values = [sample.values for sample in last.values()]
        if all(value and value["state"] in RUNNING for value in values):
            self.both_since = self.both_since or time.monotonic()
            same = values[0]["generation"] == values[1]["generation"]
            if same or time.monotonic() - self.both_since > TWO_PRIMARIES_S:
                wrong.append(("two-primaries", f"both run the VM: {values}"))
        else:
            self.both_since = None
        return wrong

    def _lan(self):
        """Hosts spoke for the guest in the order in which they were primaries; a generation without a word is possible."""
        if self._out_of_turn():
            time.sleep(3 * PERIOD_S)  # frames are seen at once, state files when the watch looks
        return self._out_of_turn()

    def _out_of_turn(self):
        owners = [host for _, host in self.watch.owners()]
        at = 0
        turns = self.watch.turns
        for number, turn in enumerate(turns):
            while at < len(owners) and owners[at] != turn[0]:
                at += 1
            if at == len(owners):
                return [("dual-active", f"frames came from {[turn[0] for turn in turns[:number + 1]][-6:]} (turn {number}), "
                         f"the primaries were {owners[-6:]}")]
        return []

    def _reasons(self):
        wrong = []
        for name, host in self.watch.hosts.items():
            status = host.status
            if status and bool(status["reason"]) == bool(status["protected"]):
                wrong.append(("reason", f"{name} is {'' if status['protected'] else 'not '}protected in state "
                              f"{status['state']} and says '{status['reason']}'"))
        return wrong

    # Protected again

    def settled(self):
        """The pair is protected. Takes a second or so."""
        self.counts["settled"] += 1
        primary = self.lab.wait_protected(None, 30)
        wrong = [*self._agree(primary), *self._caught_up(primary), *self._streams(), *self._disks()]
        primary = self.lab.wait_protected(None, 30)
        return [*wrong, *self.resources.check(primary), *self.after_step()]

    def _agree(self, primary):
        """Status of both hosts, and the last event of each about its state."""
        def disagreement():
            mine, peer = (self.lab.host(name).status() for name in (primary, "b" if primary == "a" else "a"))
            if not mine or not peer:
                return "a colod does not answer"
            for one, other in ((mine, peer), (peer, mine)):
                if not one["peer"]["connected"] or one["peer"]["state"] != other["state"]:
                    return f"{one['host']} takes its peer for {one['peer']}, which is {other['state']}"
                if one["generation"] != other["generation"]:
                    return f"generations {one['generation']} and {other['generation']}"
            for name in HOSTS:
                events = [event for event in self.lab.host(name).events() if event["event"] == "state"]
                state = (mine if mine["host"] == name else peer)["state"]
                if events and f"-> {state} on " not in events[-1]["text"]:
                    return f"{name} is {state}, its last event says: {events[-1]['text']}"
            return None
        try:
            wait_until(lambda: disagreement() is None, 5, "")
        except LabError:
            text = disagreement()
            return [("status", text)] if text else []
        return []

    def _caught_up(self, primary):
        """The survivor has got to all that clients were told before."""
        witness = self.watch.lan.witness
        old = "b" if primary == "a" else "a"
        try:
            wait_until(lambda: witness.lost(old, primary) == 0, CATCH_UP_S, "", poll=0.05)
        except LabError:
            return [("behind", f"{primary} is {witness.lost(old, primary)} bytes behind what {old} told clients")]
        self.watch.new_witness()
        return []

    def _streams(self):
        oracles = self.performer.oracles
        if not oracles:
            return []
        try:
            oracles.wait_flow(30)
            failovers = self.watch.failovers()
            if failovers != self.failovers_seen:
                self.failovers_seen = failovers
                return [("streams", text) for text in oracles.after_failover() or []]
        except LabError as error:
            return [("streams", str(error))]
        return []

    def _disks(self):
        if not self.lab.settings.disk_mib:
            return []
        try:
            verify(self.lab, 60)
        except LabError as error:
            self.counts["disk_differences"] += "differ" in str(error)
            return [("disks", str(error))]
        self.counts["verified"] += 1
        return []
