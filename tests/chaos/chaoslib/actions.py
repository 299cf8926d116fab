# SPDX-License-Identifier: LGPL-2.1-or-later
"""actions.py - carries the steps of a scenario out, each within its deadline."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time

from lablib.control import ControlError
from lablib.oracles import Oracles
from lablib.qmp import Qmp
from lablib.settings import QMP_SOCKET
from lablib.strangers import Strangers
from lablib.topology import GUEST_ADDRESS
from lablib.util import LabError, wait_until

from .cast import RUNNING, Cast, other_of, status_of
from .harm import Harm
from .links import Links

SURE_S = 0.25
FLOW_S = 60
FLOODS = {"nobody": (9999, 1000), "echo": (7, 30000)}  # the guest's port, bytes of a datagram
WORD_S = 1.5  # until both hosts have heard of each other
WAITING = ("claim-primary", "claim-secondary")
SLICE_S = 0.1  # of a slow QEMU's standing and running


def lookup(status, path):
    """status.a.b.c, with numbers for places in arrays."""
    value = status
    for key in path.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def compare(have, operator, want):
    if operator == "contains":
        return have is not None and str(want) in (have if isinstance(have, str) else str(have))
    if operator in ("==", "!="):
        return (have == want) == (operator == "==")
    if have is None:
        return False
    return {">=": have >= want, "<=": have <= want, ">": have > want, "<": have < want}[operator]


class Slow(threading.Thread):
    """A QEMU that stands still for a share of the time."""

    def __init__(self, process, percent):
        super().__init__(daemon=True, name="slow")
        self.process = process
        self.percent = percent
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set() and self.process.is_alive():
            self.process.kill(signal.SIGSTOP)
            self.stopping.wait(SLICE_S * self.percent / 100)
            self.process.kill(signal.SIGCONT)
            self.stopping.wait(SLICE_S * (100 - self.percent) / 100)

    def stop(self):
        self.stopping.set()
        self.join(5)
        self.process.kill(signal.SIGCONT)


class Performer:
    """perform(step) does one step or raises LabError. reset() undoes all that can be undone."""

    def __init__(self, lab, watch, seed):
        self.lab = lab
        self.watch = watch
        self.seed = seed
        self.cast = Cast(lab)
        self.links = Links(lab)
        self.harm = Harm(lab)
        self.slow = []
        self.frozen = set()  # (host, part)
        self.qmps = {}  # host -> (pid, Qmp)
        self.oracles = None
        self.reports = []  # of oracles that have ended
        self.marks = {name: 0 for name in lab.hosts}  # events before the scenario

    def begin(self):
        """Protected, and nobody is struck: `events contain` looks at what comes from now on."""
        self.marks = {name: len(host.events) for name, host in self.watch.hosts.items()}

    def start_streams(self):
        oracles = wait_until(self._begin_streams, FLOW_S, lambda: f"the guest answers; {self.lab.describe()}", poll=0.5)
        oracles.wait_flow(FLOW_S)
        self.oracles = oracles

    def _begin_streams(self):
        """None while the guest boots: no oracle has begun to count then."""
        oracles = Oracles(self.lab, None, self.seed)
        try:
            oracles.start()
            return oracles
        except LabError:
            return None

    def stop_streams(self):
        """The survivor is asked for the last time. What is wrong."""
        oracles, self.oracles = self.oracles, None
        wrong = oracles.stop() if oracles else []
        if oracles:
            self.reports.append(oracles.report())
        return wrong

    def abandon_streams(self):
        oracles, self.oracles = self.oracles, None
        if oracles:
            oracles.abandon()
            self.reports.append(oracles.report())

    def perform(self, step):
        getattr(self, f"do_{step.verb.replace('-', '_')}")(step, **{key.replace("from", "sender"): value
                                                                for key, value in step.args.items()})

    def resolve(self, who, struck=False):
        name = self.cast.resolve(who)
        if struck:
            self.cast.struck = name
        return name

    # Processes

    def _is_there(self, name, part):
        """What is gone already, by the fault before, needs no other one."""
        host = self.lab.host(name)
        return bool({"qemu": host.qemus, "colod": host.colod, "host": host.everything, "export": host.exports}.get(part, host.plugins)())

    def do_kill(self, step, host, part):
        name = self.resolve(host, struck=True)
        if not self._is_there(name, part):
            return
        if part == "host":
            self.links.check_free("kill host")
        if part in ("colod", "qemu", "host"):
            self.frozen = {(who, what) for who, what in self.frozen if (who, what) != (name, part)}
        self._unless_gone(self.lab.kill, name, part)

    def _unless_gone(self, what, name, part):
        """It may end between the look and the deed."""
        try:
            what(name, part)
        except (LabError, AttributeError):
            if self._is_there(name, part):
                raise

    def do_freeze(self, step, host, part):
        name = self.resolve(host, struck=True)
        if part == "host":
            self.links.check_free("freeze host")
        if not self._is_there(name, part):
            return
        self._unless_gone(self.lab.freeze, name, part)
        self.frozen.add((name, part))

    def do_thaw(self, step, host, part):
        name = self.resolve(host)
        self.frozen.discard((name, part))
        if part == "colod":
            self._go_on(self.lab.host(name))
        elif self._is_there(name, part):
            self._unless_gone(self.lab.thaw, name, part)

    def do_start(self, step, host):
        self.links.check_free("start")
        name = self.resolve(host)
        self.frozen = {(who, what) for who, what in self.frozen if who != name}
        self.lab.start(name)

    def do_stop(self, step, host):
        self.lab.stop(self.resolve(host, struck=True))

    def do_slow_peer(self, step, host, percent):
        slow = Slow(self.lab.host(self.resolve(host, struck=True)).qemu(), percent)
        self.slow.append(slow)
        slow.start()

    def do_clock_jump(self, step, host, seconds):
        self.lab.jump_clock(self.resolve(host), seconds)

    def do_stall(self, step, host, at):
        name = self.resolve(host, struck=True)
        events = len(self.watch.hosts[name].events)
        if not at.isdigit():
            self.lab.host(name).call("test-stall", state=at)
            return
        self.lab.host(name).call("test-stall", step=int(at))
        wait_until(lambda: any(event["event"] == "stalled" and f"stands at step {at} " in event["text"]
                               for event in self.watch.hosts[name].events[events:]),
                   step.within, lambda: f"a checkpoint that stands at step {at}; {self.lab.describe()}")

    # Links and disks

    def do_cut(self, step, channel, sender):
        self.links.cut(channel, sender and self.resolve(sender, struck=channel == "lan"))

    def do_heal(self, step):
        self.links.heal()
        while self.slow:
            self.slow.pop().stop()

    def do_delay(self, step, channel, ms, jitter, sender):
        self.links.delay(channel, ms, jitter, sender and self.resolve(sender))

    def do_lose(self, step, channel, percent, sender):
        self.links.lose(channel, percent, sender and self.resolve(sender))

    def do_corrupt(self, step, channel, sender):
        self.links.strike(channel, self.resolve(sender or "primary"), "flip")

    def do_reset(self, step, channel, sender):
        self.links.strike(channel, self.resolve(sender or "primary"), "reset")

    def _ballast(self, host, folder):
        return f"{self.lab.host(host).dir}/{folder}/ballast"

    def do_fill_disk(self, step, host, folder):
        name = self.resolve(host, struck=True)
        if not os.path.ismount(os.path.dirname(self._ballast(name, folder))):
            raise LabError(f"the {folder} of {name} have no file system of their own: lab {folder}={name}:32")
        with open(self._ballast(name, folder), "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass

    def do_free_disk(self, step, host, folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._ballast(self.resolve(host), folder))

    def do_disk_fault(self, step, host, what):
        self.harm.disk_fault(self.resolve(host, struck=True), what)

    def do_disk_mend(self, step, host):
        self.harm.disk_mend(self.resolve(host))

    # Files, the arbiter, strangers, frames

    def do_damage(self, step, host, what):
        self.harm.damage(self.resolve(host, struck=True), what)

    def do_repair(self, step, host, what):
        self.harm.repair(self.resolve(host), what)

    def do_remember(self, step, host):
        self.harm.remember(self.resolve(host))

    def do_new_life(self, step, host):
        self.lab.host(self.resolve(host)).new_life()

    def do_arbiter(self, step, where):
        self.harm.arbiter(where)

    def do_disturb(self, step, host, door):
        getattr(Strangers(self.lab), door)(self.resolve(host))

    def do_flood(self, step, count, port):
        place, size = FLOODS[port]
        with self.lab.client_socket(socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                with contextlib.suppress(OSError):  # that nobody listens
                    sock.sendto(bytes(size), (GUEST_ADDRESS, place))

    def do_lose_frames(self, step, host, place, count):
        """Ends when all of them are lost."""
        colod = self.lab.host(self.resolve(host, struck=True))

        def lost():
            return colod.status()["network"]["compare"]["test_lost_frames"]
        goal = lost() + count
        colod.call("test-lose", place=place, frames=count)
        wait_until(lambda: lost() >= goal, step.within, lambda: f"{count} frames lost at {place}; {self.lab.describe()}", poll=0.005)

    # QMP and operators

    def _qmp(self, name):
        process = self.lab.host(name).qemu()
        known = self.qmps.get(name)
        if not known or known[0] != process.pid:
            self.qmps[name] = (process.pid, Qmp(f"{self.lab.host(name).dir}/{QMP_SOCKET}"))
        return self.qmps[name][1]

    def do_qmp(self, step, host, command, arguments):
        name = self.resolve(host, struck=command not in ("query-status", "query-colo-status", "query-migrate"))
        qmp = self._qmp(name)
        qmp.events.clear()
        if command in ("quit", "x-colo-lost-heartbeat"):  # QEMU, or colod, ends it before it has answered
            with contextlib.suppress(LabError):
                qmp.call(command, **arguments)
        else:
            qmp.call(command, **arguments)

    def do_await(self, step, host, event):
        self._qmp(self.resolve(host)).wait_event(event, step.within)

    def do_colo(self, step, host, command):
        name = self.resolve(host)
        if command == "failover":
            self.cast.struck = other_of(name)
        self.lab.host(name).call(command, timeout=step.within)

    def do_refused(self, step, host, command, text):
        try:
            self.lab.host(self.resolve(host)).call(command, timeout=step.within)
        except ControlError as error:
            if text not in str(error):
                raise LabError(f"refused with '{error}', which has no '{text}' in it") from error
        else:
            raise LabError(f"'{command}' was not refused")

    def do_start_refused(self, step, host, text):
        try:
            self.do_start(step, host)
        except LabError as error:
            if text not in str(error):
                raise LabError(f"it ended, and there is no '{text}' in {error}") from error
        else:
            raise LabError("colod was not refused")

    def do_decide(self, step):
        """A host that waits for a word for longer than it takes to hear one gets it; who runs the VM comes first, if both wait."""
        end, since = time.monotonic() + step.within, None
        while time.monotonic() < end:
            states = {name: (status_of(host) or {}).get("state") for name, host in self.lab.hosts.items()}
            waiting = sorted((WAITING.index(state), name) for name, state in states.items() if state in WAITING)
            if set(states.values()) & set(RUNNING) - {"protected"} or self.lab.primary():
                return
            since = (since or time.monotonic()) if waiting else None
            if since and time.monotonic() - since > WORD_S:
                with contextlib.suppress(ControlError):  # it has heard from the other host meanwhile
                    self.lab.host(waiting[0][1]).call("failover", timeout=step.within)
                return
            time.sleep(0.05)

    # Conditions

    def holds(self, name, condition):
        kind, *rest = condition
        host = self.lab.host(name)
        if kind == "events":
            return any(re.search(rest[0], f"{event['event']}: {event['text']}")
                       for event in list(self.watch.hosts[name].events)[self.marks[name]:])
        if kind == "stalled":
            return self._stands_still(host)
        if kind in ("vm", "no-vm"):
            return bool(host.qemus()) == (kind == "vm")
        if kind == "gone":
            return not host.colod()
        status = None if self._stands_still(host) else status_of(host)
        if not status:
            return False
        if kind == "state":
            return status["state"] in rest[0]
        if kind == "protected":
            return status["protected"]
        return compare(lookup(status, rest[0]), rest[1], rest[2])

    @staticmethod
    def _stands_still(host):
        colod = host.colod()
        return bool(colod) and colod.stands_still()

    def _lone(self):
        """Who goes on while the other one has no VM any more."""
        states = {name: (status_of(host) or {}).get("state") for name, host in self.lab.hosts.items()}
        for name in states:
            if states[name] == "alone" and states[other_of(name)] in (None, "idle", "off"):
                return name
        return None

    def do_wait(self, step, host, condition):
        if host == "pair" and condition[0] == "alone":
            self.cast.struck = other_of(wait_until(self._lone, step.within, lambda: f"one goes on alone; {self.lab.describe()}"))
            return
        if host == "pair":
            wait_settled(self.lab, step.within)
            return
        name = self.resolve(host)
        wait_until(lambda: self.holds(name, condition), step.within,
                   lambda: f"{name}: {' '.join(map(str, condition))}; {self.describe(name, condition)}", poll=0.02)

    def describe(self, name, condition):
        if condition[0] == "events":
            texts = [f"{event['event']}: {event['text']}" for event in self.watch.hosts[name].events[self.marks[name]:]]
            return "its events are\n" + "\n".join(texts[-40:])
        return "; ".join(host.describe() for host in self.lab.hosts.values() if not self._stands_still(host))

    def do_assert(self, step, host, condition):
        if host:
            name = self.resolve(host)
            if condition[0] == "events":  # the watch looks twenty times a second
                wait_until(lambda: self.holds(name, condition), 1, lambda: f"{name} has no event with '{condition[1]}'; "
                           f"{self.describe(name, condition)}")
            elif not self.holds(name, condition):
                raise LabError(f"{name} is not {' '.join(map(str, condition))}: {self.describe(name, condition)}")
        elif condition[0] == "streams":
            self.oracles.wait_flow(step.within)
            wrong = self.oracles.after_failover()
            if wrong:
                raise LabError("; ".join(wrong))
        elif condition[1] == "equal":
            verify(self.lab, step.within)
        else:
            self._differ(step.within)

    def _differ(self, seconds):
        try:
            verify(self.lab, seconds)
        except LabError as error:
            if "differ" in str(error):
                return
            raise
        raise LabError("colo verify finds no difference")

    def do_streams(self, step, what):
        if what == "stop":
            wrong = self.stop_streams()
            if wrong:
                raise LabError("; ".join(wrong))
        elif not self.oracles:
            self.start_streams()

    def do_guest(self, step, command):
        """A guest that ends may do so before its answer is released."""
        try:
            self.lab.guest_command(command, step.within)
        except OSError:
            if command not in ("reboot", "poweroff"):
                raise

    def do_sh(self, step, command):
        self.lab.guest_script(command, step.within)

    def do_pause(self, step, seconds):
        time.sleep(seconds)

    def _go_on(self, host):
        """Also if a state where it is to stand still is not reached yet, or just now."""
        for _ in range(2):
            if host.colod() and self._stands_still(host):
                host.colod().kill(signal.SIGCONT)
            if host.colod():
                with contextlib.suppress(LabError):
                    host.call("test-stall", timeout=2, state="boot")

    def do_mend(self, step):
        """Nothing of ours is in the way any more; who is dead is started."""
        self.do_heal(None)
        for name, part in list(self.frozen):
            with contextlib.suppress(LabError, AttributeError):
                self.lab.thaw(name, part)
        self.frozen.clear()
        self.harm.repair_all()
        for name, host in self.lab.hosts.items():
            for folder in ("images", "overlays"):
                self.do_free_disk(None, name, folder)
            self._go_on(host)
            if not host.colod():
                self.lab.start(name)


def wait_settled(lab, seconds):
    """Protected, and still so a moment later: a fault of just now may not have been noticed yet."""
    deadline = time.monotonic() + seconds
    while True:
        primary = lab.wait_protected(None, max(0.1, deadline - time.monotonic()))
        time.sleep(SURE_S)
        if lab.primary() == primary:
            return primary


def verify(lab, seconds):
    """colo verify: every chunk of both disks. A pair that loses its protection meanwhile is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        primary = lab.wait_protected(None, max(1, deadline - time.monotonic()))
        left = max(2, round(deadline - time.monotonic()))
        done = subprocess.run([f"{lab.settings.build}/colod/colo", "--timeout", str(left), "--socket", lab.host(primary).socket,
                               "verify"], capture_output=True, text=True, timeout=left + 10, check=False)
        if done.returncode == 0:
            return
        if "differ" in done.stdout or time.monotonic() > deadline:
            raise LabError(f"colo verify on {primary}: {done.stdout.strip()} {done.stderr.strip()}")
        time.sleep(0.2)
