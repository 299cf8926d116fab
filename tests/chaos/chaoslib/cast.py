# SPDX-License-Identifier: LGPL-2.1-or-later
"""cast.py - who a step means: a, b, primary, secondary, struck (what the last fault hit) and the other one."""
from lablib.util import LabError, wait_until

PRIMARY_STATES = ("starting", "adopting", "adopt-claim", "alone", "preparing", "syncing", "migrating", "protected", "handing-over",
                  "judging", "claim-primary", "resuming")
RUNNING = ("alone", "preparing", "syncing", "migrating", "protected")
PATIENCE_S = 5
ANSWER_S = 0.5


def other_of(name):
    return "b" if name == "a" else "a"


def status_of(host):
    """None also of a colod that stands still."""
    try:
        return host.call("status", timeout=ANSWER_S)
    except LabError:
        return None


class Cast:
    def __init__(self, lab):
        self.lab = lab
        self.struck = None

    def _primary_now(self):
        statuses = {name: status_of(host) for name, host in self.lab.hosts.items()}
        found = [name for name, status in statuses.items() if status and status["state"] in PRIMARY_STATES]
        if len(found) == 2:  # one of them has not heard of the other yet
            found.sort(key=lambda name: statuses[name]["generation"])
        return found[-1] if found else None

    def primary(self):
        return wait_until(self._primary_now, PATIENCE_S, lambda: f"a primary; {self.lab.describe()}")

    def resolve(self, who):
        if who in ("a", "b"):
            return who
        if who in ("struck", "other"):
            if not self.struck:
                raise LabError(f"'{who}' means nothing yet: no fault has hit a host")
            return self.struck if who == "struck" else other_of(self.struck)
        primary = self.primary()
        return primary if who == "primary" else other_of(primary)
