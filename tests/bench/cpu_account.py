# SPDX-License-Identifier: LGPL-2.1-or-later
"""cpu_account.py - whose CPU time it was: threads by role, to the nanosecond (/proc/PID/task/*/schedstat)."""
import os
import resource

NS_PER_S = 1_000_000_000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
IDLE_FIELDS = (3, 4)  # of the first line of /proc/stat: idle, iowait
BUSY_FIELDS = range(8)  # guest time is in user time


def thread_role(pid, tid, name):
    """What a thread of QEMU or colod does."""
    if tid == pid:
        return "main"
    if name.startswith("CPU "):
        return "vcpu"
    if name == "colo-proxy":
        return "proxy"
    if name.startswith("IO iothread"):
        return "compare"  # the chain's colo-compare has an iothread of its own
    return "other"


def process_ns(pid):
    """{role: nanoseconds on a CPU}. Threads that end meanwhile take theirs with them: there are none that count."""
    found = {}
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for tid in tids:
        try:
            with open(f"/proc/{pid}/task/{tid}/comm", encoding="utf-8", errors="replace") as file:
                role = thread_role(pid, int(tid), file.read().strip())
            with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="ascii") as file:
                found[role] = found.get(role, 0) + int(file.read().split()[0])
        except OSError:
            continue
    return found


def host_busy_ns():
    """Of all CPUs."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(value) for value in file.readline().split()[1:]]
    busy = sum(fields[i] for i in BUSY_FIELDS if i not in IDLE_FIELDS)
    return busy * NS_PER_S // TICKS_PER_S


def clients_ns():
    """This process and the programs that it ran."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return int(total * NS_PER_S)


def snapshot(processes):
    """processes: {name: pid}. {"name role": ns}, and beside them the clients' and the whole host's."""
    found = {f"{name} {role}": ns for name, pid in processes.items() for role, ns in process_ns(pid).items()}
    found["clients"] = clients_ns()
    found["host"] = host_busy_ns()
    return found


def placement(processes):
    """Where each may run and with what precedence: it must be the same for all ways but for what colod's unit asks for."""
    return {name: {"cpus": sorted(os.sched_getaffinity(pid)), "nice": os.getpriority(os.PRIO_PROCESS, pid)}
            for name, pid in processes.items()}


class Account:
    """CPU time by role, and how much was done with it."""

    def __init__(self):
        self.ns = {}
        self.units = 0.0

    def add(self, before, after, units):
        for name, ns in after.items():
            self.ns[name] = self.ns.get(name, 0) + ns - before.get(name, 0)
        self.units += units

    def per_unit_us(self):
        """Microseconds. "rest": of the host's busy time what is nobody's here: kernel threads, interrupts, guests of the
        other ways that idle, other programs."""
        if not self.units:
            return {}
        named = sum(ns for name, ns in self.ns.items() if name != "host")
        found = {**self.ns, "all but rest": named, "rest": self.ns.get("host", 0) - named}
        return {name: round(ns / self.units / 1000, 1) for name, ns in sorted(found.items())}
