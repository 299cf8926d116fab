# SPDX-License-Identifier: LGPL-2.1-or-later
"""model.py - what the pair should be doing, and so which steps leave a copy of the guest that can be relied on. Pure.

While the pair is protected both hosts have one, and any one host may be hit. From then on the hit host is `struck`, and
nothing that could take the other one's copy is allowed, until the pair is protected again. After a fault of the link
nobody knows who goes on (it may be either), so neither may be hit before `wait pair alone` has told.
"""
from .steps import CHECKPOINT_STEPS

PROTECTED, STRUCK, EITHER, STALLED = "protected", "struck", "either", "stalled"
HARMLESS_QMP = ("query-status", "query-migrate", "query-colo-status", "query-blockstats")
HARMLESS_COMMANDS = ("checkpoint", "status", "events")


class Illegal(Exception):
    """The step could take the last copy of the guest, or means nothing here."""


class Model:
    """apply(step) for each step of a drawn run, in order."""

    def __init__(self):
        self.phase = PROTECTED
        self.relay = False  # in the peer link: no host may be plugged or unplugged
        self.cut = False  # the whole peer link, or one direction of it: until heal nobody comes back
        self.dull = False  # the client's link or a host's service LAN: the guest may not answer
        self.slow = False
        self.stall = None  # the host that may stand still on entering a state
        self.dead = False  # the struck host's VM has ended, and will be a secondary next
        self.lone = False  # the other one is known to run the VM alone
        self.off = False  # its colod does not run
        self.frozen = set()  # (host, part)
        self.wants = True  # protection
        self.full = False  # a folder of the struck host

    def copy(self):
        other = Model()
        other.__dict__.update(self.__dict__)
        other.frozen = set(self.frozen)
        return other

    def allows(self, step):
        try:
            self.copy().apply(step)
            return True
        except Illegal:
            return False

    def is_whole(self):
        """Nothing is left to be mended."""
        return not (self.relay or self.cut or self.dull or self.slow or self.stall or self.off or self.full or self.frozen) and self.wants

    def apply(self, step):
        if self.phase == STALLED and not (step.verb in ("kill", "freeze", "mend", "pause") and step.args.get("host") in (None, "struck")):
            raise Illegal("a checkpoint stands: only what ends it may follow")
        method = getattr(self, f"_{step.verb.replace('-', '_')}", None)
        if not method:
            raise Illegal(f"{step.verb} is not for drawn runs")
        method(**{key.replace("from", "sender"): value for key, value in step.args.items()})

    def _strike(self, host):
        """May it be hit?"""
        if self.phase == PROTECTED and host in ("primary", "secondary"):
            self.phase = STRUCK
        elif not (self.phase in (STRUCK, STALLED) and host == "struck"):  # not in EITHER: it may have the only one
            raise Illegal(f"{host} may have the only copy")

    def _keeps(self):
        """The struck one goes on, if all works as it should, and the other one is told that it is none any more."""
        self.phase = EITHER

    def _kill(self, host, part):
        self._strike(host)
        if part == "mirror":
            self._keeps()
            return
        if part == "host" and self.relay:
            raise Illegal("a relay is in the link")
        if self.off and part in ("colod", "host"):
            raise Illegal("it does not run")
        self.phase = STRUCK
        self.off = self.off or part in ("colod", "host")
        self.dead = self.dead or part in ("qemu", "colod", "host")
        self.frozen = {(who, what) for who, what in self.frozen if who != "struck" or part not in (what, "host")}

    def _freeze(self, host, part):
        if host == "other" and part == "qemu" and self.lone:  # the only copy is kept
            self.frozen.add((host, part))
            return
        self._strike(host)
        if part == "host" and self.relay:
            raise Illegal("a relay is in the link")
        if self.off or self.phase == STALLED:  # a gate that stands does not go on when its colod does
            raise Illegal("it does not run")
        self.phase = STRUCK
        self.frozen.add(("struck", part))
        if part == "mirror":
            self._keeps()

    def _thaw(self, host, part):
        if (host, part) not in self.frozen and (host, part) != ("other", "colod"):  # a stall that it may have come to
            raise Illegal("it is not frozen")
        self.frozen.discard((host, part))
        if part == "colod" and host == "other":
            self.stall = None
        if host == "struck" and not self.dead and part in ("qemu", "colod", "host"):
            self._keeps()  # it may be early enough to win

    def _stop(self, host):
        self._strike(host)
        if self.off or self.frozen:
            raise Illegal("it does not run")
        self.off = True

    def _start(self, host):
        if host != "struck" or not self.off or self.relay or ("struck", "host") in self.frozen:
            raise Illegal("it runs, or has no links")
        self.off = False

    def _stall(self, host, at):
        if self.phase != PROTECTED or host not in ("primary", "secondary"):
            raise Illegal("not protected")
        if at in CHECKPOINT_STEPS:
            self._strike(host)
            self.phase = STALLED
        else:
            self.stall = host

    def _either(self):
        """Who goes on is open: nothing else may have happened."""
        if self.phase == PROTECTED:
            self.phase = EITHER
        elif not (self.phase == STRUCK and self.off and self.dead):  # one that was started again may be armed
            raise Illegal("the struck one may go on")

    def _cut(self, channel, sender):
        if channel == "lan":
            if self.phase != PROTECTED or sender not in ("primary", "secondary"):
                raise Illegal("not protected")
            self.phase, self.dull = STRUCK, True
        elif channel == "client":
            self.dull = True
        else:
            if sender not in (None, "primary", "secondary") or (self.phase != PROTECTED and (sender or channel != "peer")):
                raise Illegal("who is that now?")
            self._either()
            self.cut = self.cut or channel == "peer"
            self.relay = self.relay or channel != "peer" or sender is not None

    def _corrupt(self, channel, sender):
        if self.phase != PROTECTED or sender not in ("primary", "secondary", None):
            raise Illegal("not protected")
        self.phase = EITHER
        self.relay = True

    _reset = _corrupt

    def _impair(self, channel, value, mild, sender):
        if channel == "client":
            return
        if self.off or self.phase not in (PROTECTED, EITHER):
            raise Illegal("its links may be dead already")
        self.relay = True
        if value > mild and self.phase == PROTECTED:
            self.phase = EITHER

    def _delay(self, channel, ms, jitter, sender):
        self._impair(channel, ms + jitter, 30, sender)

    def _lose(self, channel, percent, sender):
        self._impair(channel, percent, 0, sender)

    def _heal(self):
        self.relay = self.cut = self.dull = self.slow = False

    def _slow_peer(self, host, percent):
        self._strike(host)
        self.slow = True

    def _clock_jump(self, host, seconds):
        pass

    def _qmp(self, host, command, arguments):
        if command not in HARMLESS_QMP:
            self._strike(host)
            if (host, command) == ("primary", "x-colo-lost-heartbeat"):
                self._keeps()

    def _colo(self, host, command):
        if command in HARMLESS_COMMANDS and host == "primary" and self.phase == PROTECTED and not self.relay:
            return
        if command == "failover" and host == "secondary" and self.phase == PROTECTED and not self.relay:
            self.phase, self.dead = STRUCK, True
        elif command == "unprotect" and host == "primary" and self.phase == PROTECTED:
            self.phase, self.wants = EITHER, False
        elif command == "protect" and host == "primary" and not self.wants:
            self.wants = True
        else:
            raise Illegal(f"{command} on {host} now")

    def _guest(self, command):
        if self.phase != PROTECTED or self.dull:
            raise Illegal("it may not answer")

    def _fill_disk(self, host, folder):
        if host != "secondary":
            raise Illegal("the other one must have room")
        self._strike(host)
        self.full = True

    def _free_disk(self, host, folder):
        if host != "struck":
            raise Illegal("it has room")
        self.full = False

    def _decide(self):
        if not self.is_whole():
            raise Illegal("an operator heals first")

    def _pause(self, seconds):
        pass

    def _wait(self, host, condition):
        if host == "pair":
            self._wait_pair(condition)
            return
        if self.phase != STRUCK or host not in ("struck", "other") or condition[0] != "state" or self.slow or self.stall:
            raise Illegal("nobody is struck")
        gone = any(who == "struck" and part in ("qemu", "colod", "host") for who, part in self.frozen)
        if ("other", "qemu") in self.frozen:
            raise Illegal("the other one stands still")
        if host == "other":
            if not (self.dead or gone):
                raise Illegal("the other one need not go on")
            self.lone = "alone" in condition[1]
        elif not self.dead or self.off or self.cut or self.frozen:
            raise Illegal("it cannot come back yet")

    def _wait_pair(self, condition):
        if condition == ("alone",):
            if self.phase != EITHER or not self.cut:
                raise Illegal("it may be protected again already")
            self.phase, self.lone = STRUCK, True
            return
        if not self.is_whole():
            raise Illegal("it cannot be protected yet")
        self.phase, self.dead, self.lone = PROTECTED, False, False

    def _mend(self):
        if self.phase == STALLED:
            raise Illegal("a checkpoint that stands is not mended")
        self._heal()
        self.off = self.full = False
        self.frozen.clear()
        self.stall = None
        self.wants = True
        self.phase = EITHER if self.phase != PROTECTED else PROTECTED


def check(steps):
    """Illegal if a run of these steps could end the service for good reason."""
    model = Model()
    for step in steps:
        model.apply(step)
    if model.phase != PROTECTED or not model.is_whole():
        raise Illegal("it does not end protected")


def is_legal(steps):
    try:
        check(steps)
        return True
    except Illegal:
        return False
