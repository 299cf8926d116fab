# SPDX-License-Identifier: LGPL-2.1-or-later
"""lockstep.py - what the tests of a lock-stepping pair count, and their bounds."""
import time

from lablib.util import wait_until

# Milliseconds. The configuration's defaults, and what was measured of a checkpoint of the lab's guest: 10 to 30 from
# trigger to RESUME on a quiet machine.
COMPARE_TIMEOUT_MS = 200
CHECKPOINT_MS = 100
# Two emulated guests, both colods, the client and its threads share the machine's cores.
SLACK_MS = 400
RECOVERY_MS = COMPARE_TIMEOUT_MS + CHECKPOINT_MS + SLACK_MS
# A checkpoint that is asked for by a difference, at its latest.
DIFFERENCES = ("divergence", "compare-timeout")


class Counts:
    """The primary's counters of one moment; `later - earlier` is what happened in between."""

    def __init__(self, values):
        self.values = values

    @classmethod
    def of(cls, pair, name=None):
        status = pair.status(name or pair.primary)
        compare = status["network"]["compare"]
        return cls({**status["checkpoint"]["by_cause"],
                    **{f"released {why}": count for why, count in compare["released"].items()},
                    **{f"differs {rule}": count for rule, count in compare["differences"].items()},
                    "duplicates": compare["duplicate_frames"], "forgotten": compare["forgotten_frames"],
                    "gaps": compare["peer_gaps"], "lost on purpose": compare["test_lost_frames"],
                    "checkpoints": status["checkpoint"]["count"],
                    "released": status["network"]["egress_frames"],
                    "released bytes": status["network"]["egress_bytes"]})

    def __getitem__(self, name):
        return self.values[name]

    def __sub__(self, earlier):
        return Counts({name: value - earlier[name] for name, value in self.values.items()})

    def of_differences(self):
        return sum(self[cause] for cause in DIFFERENCES)

    def __str__(self):
        return ", ".join(f"{name} {value}" for name, value in self.values.items() if value)


def compare_status(pair, name=None):
    return pair.status(name or pair.primary)["network"]["compare"]


def calm(pair, seconds=10):
    """No checkpoint for longer than anything can wait, what came a moment ago too."""
    ms = (pair.lab.settings.compare_timeout_ms or COMPARE_TIMEOUT_MS) + 50
    end = time.monotonic() + ms / 1000
    pair.wait(pair.primary, lambda s: s["checkpoint"]["since_commit_ms"] > ms and time.monotonic() > end, seconds,
              "no checkpoint for a while")


def settle(pair, seconds=10):
    """Nothing waits for the other guest, and the connections from before the arming have had their checkpoint: a
    checkpoint is asked for, and no difference follows it for as long as one could wait."""
    def quiet():
        pair.lab.host(pair.primary).call("checkpoint", timeout=10)
        before = Counts.of(pair)
        calm(pair)
        return (Counts.of(pair) - before)["checkpoints"] == 0 and compare_status(pair)["waiting_bytes"] == 0
    wait_until(quiet, seconds, lambda: f"quiet; {pair.lab.describe()}")
