# SPDX-License-Identifier: LGPL-2.1-or-later
"""oracles - clients that know what the guest must still know: one object that runs them, asks them, and reports.

    oracles = Oracles(lab, ("http", "echo", "udp", "kv", "records", "memory"), seed)
    oracles.start()
    oracles.wait_flow(30)       # each was acknowledged something new
    oracles.check()             # [what has gone wrong since the last call]: cheap, after each step
    oracles.after_failover()    # the same, and the survivor is asked for all that was acknowledged
    oracles.stop()              # the same once more, and the clients end
    oracles.report()

`kv` needs Settings(kv=True), `records` a disk. tests/chaos/oracles is the command line.
"""
import time

from ..util import LabError, wait_until
from .base import PATIENCE_S
from .datagrams import Udp
from .stores import Kv, Memory, Records
from .streams import Echo, Http

KINDS = {kind.NAME: kind for kind in (Http, Echo, Udp, Kv, Records, Memory)}
NAMES = tuple(KINDS)


def available(settings):
    """The names of those that work in such a lab."""
    return tuple(name for name in NAMES
                 if (name != "kv" or settings.kv) and (name != "records" or settings.disk_mib))


class Oracles:
    def __init__(self, lab, names=None, seed=0):
        names = available(lab.settings) if names is None else names
        unknown = [name for name in names if name not in KINDS]
        if unknown:
            raise LabError(f"unknown oracle {', '.join(unknown)}: {', '.join(KINDS)}")
        self.oracles = [KINDS[name](lab, seed) for name in names]

    def start(self):
        for oracle in self.oracles:
            try:
                oracle.prepare()
            except OSError as error:
                raise LabError(f"{oracle.NAME}: the guest does not answer: {error}") from error
        for oracle in self.oracles:
            oracle.start()

    def wait_flow(self, deadline_s=30):
        """LabError names those that stand still."""
        goals = {oracle: oracle.account.acknowledged for oracle in self.oracles}

        def standing():
            return [oracle.NAME for oracle, goal in goals.items() if oracle.account.acknowledged <= goal]
        wait_until(lambda: not standing(), deadline_s, lambda: f"oracles that stand still: {', '.join(standing())}")

    def check(self):
        """What has gone wrong since the last call; each fault is told once."""
        found = []
        for oracle in self.oracles:
            if isinstance(oracle, Memory):
                oracle.read_consoles()
            found += oracle.new_faults()
            if not oracle.is_alive() and not oracle.stopping.is_set():
                found.append(f"{oracle.NAME}: the oracle itself has ended")
        return found

    def after_failover(self):
        """The survivor is asked; it has to answer within half a minute."""
        found = []
        for oracle in self.oracles:
            found += oracle.ask_now()
        return found + self.check()

    def stop(self):
        """Asks for the last time, ends the clients and returns what check() would."""
        found = self.after_failover()
        for oracle in self.oracles:
            oracle.stopping.set()
        deadline = time.monotonic() + PATIENCE_S + 10
        for oracle in self.oracles:
            oracle.join(max(0, deadline - time.monotonic()))
            if oracle.is_alive():
                found.append(f"{oracle.NAME}: the oracle does not end")
        for oracle in self.oracles:
            try:
                getattr(oracle, "finish", lambda: None)()
            except (OSError, LabError) as error:
                found.append(f"{oracle.NAME}: {error}")
        return found + self.check()

    def abandon(self):
        """For a lab that is about to be removed: nobody is asked or waited for."""
        for oracle in self.oracles:
            oracle.stopping.set()

    def report(self):
        return {oracle.NAME: oracle.report() for oracle in self.oracles}
