# SPDX-License-Identifier: LGPL-2.1-or-later
"""session.py - one lab, and the scenarios that run on it in turn."""
import dataclasses
import time

from lablib.capture import Capture
from lablib.lab import Lab
from lablib.settings import Settings
from lablib.util import LabError, say

from .actions import Performer, wait_settled
from .audit import Audit
from .watch import Watch

SETTLE_S = 60
BLOWS = ("kill", "freeze", "stop", "stall", "slow-peer", "cut", "corrupt", "reset")  # drawn for a protected pair, if they name its hosts
INTERVAL_MS = 400  # a scenario waits for checkpoints


@dataclasses.dataclass
class Done:
    """A step that was carried out."""
    text: str
    start: float
    end: float
    line: int
    resolved: str = ""
    wrong: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Outcome:
    scenario: object
    steps: list
    wrong: list  # (kind, text)

    @property
    def kinds(self):
        return {kind for kind, _ in self.wrong}


def folder_sizes(text):
    return {host: int(size) for host, _, size in (part.partition(":") for part in text.split(","))} if text else {}


def export_kinds(text):
    return dict(part.split(":") for part in text.split(",")) if text else {}


def settings_of(options, build):
    mode = options.get("mode", "lockstep")
    return Settings(mode=mode, port=options.get("port", "tap"), arbiter=options.get("arbiter", "file"),
                    disk_mib=int(options.get("disk", 64)), interval_ms=int(options.get("interval", INTERVAL_MS)),
                    overlay_mib=int(options.get("overlay", 0)), queues=int(options.get("queues", 1)),
                    disks=int(options.get("disks", 1)), cpus=int(options.get("cpus", 1)), hold_mib=int(options.get("hold", 0)),
                    sync_mib=int(options.get("sync", 0)), exports=export_kinds(options.get("exports")),
                    images_fs_mib=folder_sizes(options.get("images")), overlays_fs_mib=folder_sizes(options.get("overlays")),
                    qmp=True, clock=True, kv=True, build=build)


class Session:
    """A protected pair with streams, watched; run() as often as wanted while it is fit for it."""

    def __init__(self, lab_id, options, build, seed):
        self.lab = Lab(lab_id)
        self.options = options
        self.build = build
        self.seed = seed
        self.watch = self.performer = self.audit = None
        self.capture = Capture(self.lab)
        self.fit = False

    def open(self):
        self.lab.down()
        self.lab.up(settings_of(self.options, self.build), progress=lambda _: None)
        self.watch = Watch(self.lab)
        self.watch.start()
        self.capture.start()
        self.performer = Performer(self.lab, self.watch, self.seed)
        self.audit = Audit(self.lab, self.watch, self.performer)
        self.performer.start_streams()
        self.fit = True

    def close(self):
        """The streams' end is the last thing that is checked: each byte of each."""
        wrong = []
        if self.performer and self.fit:
            wrong = [("streams", text) for text in self.performer.stop_streams()]
        elif self.performer:
            self.performer.abandon_streams()
        try:
            if self.watch:
                self.watch.stop()
        except LabError as error:
            wrong.append(("watch", str(error)))
        self.capture.stop()
        return wrong

    def drop(self):
        self.lab.down()

    # Scenarios

    def run(self, scenario, on_step=lambda done: None):
        """All steps, until something is wrong. Afterwards the pair is protected again, if the scenario does not spoil it."""
        outcome = Outcome(scenario, [], [])
        self.performer.cast.struck = None
        self.performer.begin()
        for step in scenario.steps:
            if not self._one(step, outcome, on_step):
                break
        whole = self._ends_settled(scenario.steps) and self.performer.links.is_clean()
        if not outcome.wrong and not scenario.spoils and not whole:
            self._end(outcome, on_step)
        self.fit = not outcome.wrong and not scenario.spoils
        return outcome

    def _one(self, step, outcome, on_step):
        done = Done(str(step), time.monotonic(), 0, step.line)
        outcome.steps.append(done)
        try:
            if outcome.scenario.drawn and step.verb in BLOWS and {"primary", "secondary"} & set(map(str, step.args.values())):
                self.lab.wait_protected(None, SETTLE_S)  # on a busy host it may just have lost its peer
            self.performer.perform(step)
        except (LabError, OSError, AttributeError) as error:
            done.wrong.append((step.verb, f"{step}: {type(error).__name__}: {error}"))
        done.end = time.monotonic()
        done.resolved = self.performer.cast.struck or ""
        try:
            if self._is_settled(step) and not done.wrong:
                done.wrong += self.audit.settled()
                self.performer.begin()
            else:
                done.wrong += self.audit.after_step()
        except LabError as error:
            done.wrong.append(("audit", f"after {step}: {error}"))
        outcome.wrong += done.wrong
        on_step(done)
        return not done.wrong

    @staticmethod
    def _is_settled(step):
        return step.verb == "wait" and step.args["host"] == "pair" and step.args["condition"] == ("protected",)

    @classmethod
    def _ends_settled(cls, steps):
        """Whoever only looks changes nothing."""
        left = [step for step in steps if step.verb != "assert"]
        return bool(left) and cls._is_settled(left[-1])

    def _end(self, outcome, on_step):
        done = Done("(end: all healed, protected again)", time.monotonic(), 0, 0)
        try:
            self.performer.do_mend(None)
            wait_settled(self.lab, SETTLE_S)
            done.wrong += self.audit.settled()
        except LabError as error:
            done.wrong.append(("end", str(error)))
        done.end = time.monotonic()
        outcome.steps.append(done)
        outcome.wrong += done.wrong
        on_step(done)


def tell(done):
    say(f"{done.end - done.start:6.2f} s  {done.text}" + (f"  [{done.resolved}]" if done.resolved else ""))
    for kind, text in done.wrong:
        say(f"    WRONG ({kind}): {text}")
