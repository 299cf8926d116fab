# SPDX-License-Identifier: LGPL-2.1-or-later
"""draw.py - rounds of random steps: a protected pair, something happens to it, it is mended and protected again. Pure."""
import random

from .model import Model, is_legal
from .steps import parse_line

# Weight, lines. {step}, {part}, {channel}, {ms}, {percent} and {side} are drawn, too.
MAIN = (
    (6, ("kill primary qemu",)),
    (3, ("kill primary host",)),
    (2, ("kill primary colod",)),
    (2, ("freeze primary host",)),
    (2, ("freeze primary colod",)),
    (1, ("freeze primary qemu",)),
    (1, ("stop primary",)),
    (3, ("colo secondary failover",)),
    (5, ("stall primary at {step}", "kill struck {part}")),
    (1, ("stall primary at {step}", "freeze struck colod")),
    (2, ("stall secondary at {step}", "kill struck {part}")),
    (2, ("stall secondary at {failover}", "kill primary {part}", "pause {ms}ms", "thaw other colod")),
    (1, ("stall primary at {handing}", "colo secondary failover")),
    (1, ("kill secondary qemu",)),
    (1, ("kill secondary {part}",)),
    (1, ("kill secondary target",)),
    (1, ("kill primary mirror",)),
    (1, ("freeze secondary {frozen}",)),
    (1, ("freeze primary mirror",)),
    (1, ("stop secondary",)),
    (2, ("cut peer",)),
    (1, ("cut peer from {side}",)),
    (1, ("cut {channel}",)),
    (1, ("reset {channel} from {side}",)),
    (1, ("corrupt {channel} from {side}",)),
    (1, ("lose peer {percent}%",)),
    (1, ("qmp {side} {qmp}",)),
    (1, ("slow-peer {side} {share}%",)),
    (1, ("cut lan from {side}", "pause {ms}ms")),
    (1, ("colo primary unprotect", "pause {ms}ms", "colo primary protect")),
)
BEFORE = (
    (3, ("colo primary checkpoint",)),
    (2, ("guest dirty {rate} 16",)),
    (2, ("clock-jump {side} {jump}",)),
    (2, ("delay client {short}ms 5ms",)),
    (1, ("lose client 1%",)),
    (2, ("delay peer {short}ms",)),
    (2, ("qmp {side} query-status",)),
)
AFTER = (
    (4, ("pause {ms}ms",)),
    (4, ("wait other state alone|preparing|syncing|migrating|protected within 20s",)),
    (3, ("kill struck {part}",)),
    (2, ("kill struck qemu",)),
    (2, ("freeze struck {frozen}",)),
    (2, ("start struck",)),
    (4, ("start struck", "wait struck state incoming-start|incoming|standby within 20s", "kill struck {part}")),
    (3, ("wait struck state incoming-start|incoming|standby within 20s", "kill struck qemu")),
    (1, ("freeze other qemu", "pause {ms}ms", "thaw other qemu")),
    (2, ("wait pair alone within 20s", "kill struck {part}")),
    (2, ("heal",)),
    (1, ("cut peer",)),
    (1, ("clock-jump {side} {jump}",)),
    (1, ("thaw struck {frozen}",)),
)
# Only in labs whose folders have file systems of their own.
FULL = (
    (8, ("fill-disk secondary {folder}", "pause {ms}ms")),
    (4, ("fill-disk secondary {folder}", "kill struck {part}")),
    (2, ("fill-disk secondary {folder}", "pause {ms}ms", "free-disk struck {folder}")),
)
END = ("mend", "wait pair protected within 60s")
# With the manual arbiter who goes on may be nobody, until an operator says so.
MANUAL_END = ("mend", "decide", "wait pair protected within 60s")
CHANCE_BEFORE, CHANCES_AFTER = 0.35, (0.8, 0.5, 0.3)


def without_a_primary(templates):
    """Those that need none, nor wait for one."""
    return tuple((weight, lines) for weight, lines in templates
                 if not any(line.startswith("wait") or "{side}" in line for line in lines))


class Draw:
    """options: those of the lab."""

    def __init__(self, seed, options=None):
        options = options or {}
        self.random = random.Random(seed)
        self.full = bool(options.get("images"))
        self.manual = options.get("arbiter") == "manual"
        self.main = (*MAIN, *(FULL if self.full else ()))
        self.after = without_a_primary(AFTER) if self.manual else AFTER
        self.end = MANUAL_END if self.manual else END

    def _values(self):
        choice = self.random.choice
        folder = {"folder": choice(("images", "overlays"))} if self.full else {}
        return {**folder, "step": choice("1234567"), "part": choice(("qemu", "colod", "host")), "side": choice(("primary", "secondary")),
                "frozen": choice(("qemu", "colod", "host")), "channel": choice(("control", "checkpoint", "frames")),
                "ms": round(self.random.choice((30, 300, 600, 1000)) * self.random.uniform(0.5, 2)), "percent": choice((1, 5, 20)),
                "share": choice((30, 60, 90)), "short": choice((2, 5, 10)), "rate": choice((0, 500, 2000)),
                "jump": choice(("+60s", "-60s", "+25h", "-10m")),
                "failover": choice(("claim-secondary", "taking-over", "alone", "preparing")),
                "handing": choice(("handing-over", "stopping", "idle")),
                "qmp": choice(("quit", "x-colo-lost-heartbeat"))}

    def _pick(self, model, templates):
        """Steps of one that the model allows now, and the model behind it; None if chance finds none."""
        for _ in range(10):
            lines = self.random.choices([lines for _, lines in templates], [weight for weight, _ in templates])[0]
            values = self._values()
            steps = [parse_line(line.format(**values)) for line in lines]
            after = model.copy()
            if all(self._goes(after, step) for step in steps):
                return steps, after
        return None

    @staticmethod
    def _goes(model, step):
        if not model.allows(step):
            return False
        model.apply(step)
        return True

    def round(self):
        """A list of steps that begins and ends protected."""
        model, steps = Model(), []

        def add(templates):
            nonlocal model
            found = self._pick(model, templates)
            if found:
                steps.extend(found[0])
                model = found[1]
        if self.random.random() < CHANCE_BEFORE:
            add(BEFORE)
        steps.append(parse_line(f"pause {round(self.random.uniform(0, 1000))}ms"))  # anywhere within an epoch
        add(self.main)
        for chance in CHANCES_AFTER:
            if self.random.random() < chance:
                add(self.after)
        steps += [parse_line(line) for line in self.end]
        assert is_legal(steps), [str(step) for step in steps]
        return steps
