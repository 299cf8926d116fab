# SPDX-License-Identifier: LGPL-2.1-or-later
"""cpu.py - who used the cores between two moments, and how long who wanted one had to wait for it.

By thread and in nanoseconds (/proc/PID/task/TID/schedstat), since a load lasts less than a hundred clock ticks. What a thread
did in a system call is its own, what the kernel did for all (writing back, interrupts while nobody ran) is `rest`. A
thread that ended in between is missing there and so is in `rest`, too.
"""
import contextlib
import os

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
IDLE, IOWAIT, STEAL = 3, 4, 7  # columns of `cpu` in /proc/stat


def thread_times(pid):
    """{tid: (name, ns on a core, ns runnable without one)}; empty if there is no such process."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="ascii") as file:
                    ran, waited, _ = map(int, file.read().split())
                with open(f"/proc/{pid}/task/{tid}/comm", encoding="utf-8", errors="replace") as file:
                    found[int(tid)] = (file.read().strip(), ran, waited)
    return found


def machine_times():
    """All cores: (ns busy, ns idle, ns taken by other machines)."""
    with open("/proc/stat", encoding="ascii") as file:
        values = [int(word) for word in file.readline().split()[1:9]]
    idle = values[IDLE] + values[IOWAIT]
    return tuple(value * TICK_NS for value in (sum(values) - idle - values[STEAL], idle, values[STEAL]))


class CpuWatch:
    """roles: {name: pid}. A vCPU's thread is a role of its own: the guest's work, and what emulating it takes."""

    def __init__(self, roles):
        self.roles = roles
        self.machine = machine_times()
        self.before = self._look()

    def _look(self):
        return {role: thread_times(pid) for role, pid in self.roles.items()}

    def since(self):
        """{role: {"ran_ns", "waited_ns"}}, with the roles "rest", "idle" and "stolen" (ran_ns alone)."""
        now, found = self._look(), {}
        for role, threads in now.items():
            for tid, (name, ran, waited) in threads.items():
                _, ran_before, waited_before = self.before[role].get(tid, (name, 0, 0))
                label = f"{role} vCPU" if name.startswith("CPU ") else role
                sums = found.setdefault(label, {"ran_ns": 0, "waited_ns": 0})
                sums["ran_ns"] += ran - ran_before
                sums["waited_ns"] += waited - waited_before
        busy, idle, stolen = (after - before for after, before in zip(machine_times(), self.machine))
        rest = max(0, busy - sum(sums["ran_ns"] for sums in found.values()))
        for name, value in (("rest", rest), ("idle", idle), ("stolen", stolen)):
            found[name] = {"ran_ns": value, "waited_ns": 0}
        return found
