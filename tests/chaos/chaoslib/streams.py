# SPDX-License-Identifier: LGPL-2.1-or-later
"""streams.py - the oracles of a run: what clients do to the guest, and what is wrong with what they got."""
from lablib.disk import Writer
from lablib.traffic import Traffic
from lablib.util import wait_until

STALL_MS = 150  # shorter silences are no stall
NAMES = ("http", "echo", "udp", "records")
KINDS = {"http": "download", "echo": "echo", "udp": "udp"}


class TrafficOracles:
    """The lab's own clients behind the oracles' interface."""

    def __init__(self, lab, names, seed):
        self.lab = lab
        self.names = names
        self.seed = seed
        self.traffic = self.writer = None
        self.gone = {}  # name -> [(at, ms)] of clients that have ended

    def start(self):
        if "records" in self.names:
            self.lab.guest_script("rm -f /disk/records*")
            self.writer = Writer(self.lab, "records", pause_s=0.02)
            self.writer.start()
        self.traffic = Traffic(self.lab, [KINDS[name] for name in self.names if name in KINDS])

    def wait_flow(self, deadline_s):
        self.traffic.renew()
        goals = [(kind, client, goal) for kind in self.traffic.kinds for client, goal in kind.goals()]
        acked = self.writer.acked if self.writer else -1

        def moved():
            return (all(not client.is_alive() or kind.position(client) >= goal for kind, client, goal in goals)
                    and (not self.writer or self.writer.failure or self.writer.acked > acked))
        wait_until(moved, deadline_s, "the streams stand still")

    def check(self):
        wrong = self.traffic.failures()
        for kind in self.traffic.kinds:
            wrong += [client.failure for client in kind.clients.values() if client.failure]
        if self.writer and self.writer.failure:
            wrong.append(self.writer.failure)
        return wrong

    def after_failover(self):
        if self.writer:
            self.writer.verify_at_least(self.writer.acked)
        return []

    def stop(self):
        self.traffic.stop()
        if self.writer:
            self.writer.stop()

    def _stalls(self, times):
        return [{"at": a / 1e9, "ms": round((b - a) / 1e6)} for a, b in zip(times, times[1:]) if b - a > STALL_MS * 1e6]

    def report(self):
        found = {}
        for name, kind in zip([name for name in self.names if name in KINDS], self.traffic.kinds):
            line = kind.report()
            times = sorted(time for client in kind.clients.values()
                           for time in (client.times_ns if kind.is_stream else client.answered_ns.values()))
            found[name] = {"acknowledged": line.get("moved", line.get("answered", 0)), "lost": 0,
                           "duplicated": 0, "wrong": line["wrong_bytes"], "resets": line["resets"]}
            found[name]["stalls"] = self._stalls(times)
        if self.writer:
            found["records"] = {"acknowledged": self.writer.acked, "lost": 0, "duplicated": 0, "wrong": 0, "resets": 0,
                                "stalls": self._stalls(self.writer.times_ns)}
        for line in found.values():
            line["stalls_ms"] = [stall["ms"] for stall in line["stalls"]]
        return found


def make_oracles(lab, seed):
    names = [name for name in NAMES if name != "records" or lab.settings.disk_mib]
    return TrafficOracles(lab, names, seed)
