# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the relay tells the peer link's connections from each other."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lablib.tamper import least_of  # noqa: E402  # pylint: disable=wrong-import-position

CONTROL, CHECKPOINT, FRAMES = 40001, 40002, 40003
BEFORE = {CONTROL: {"a": 9000, "b": 9000}, CHECKPOINT: {"a": 5_000_000, "b": 300}}


@pytest.mark.parametrize("more, least", [
    ({}, None),
    ({CONTROL: (300, 300)}, None),  # the guests' frames may still come to less
    ({CONTROL: (300, 300), CHECKPOINT: (1_000_000, 40)}, None),  # one side is not heard yet
    ({CONTROL: (150, 300), FRAMES: (90_000, 80_000)}, None),  # too early
    ({CONTROL: (250, 200), FRAMES: (90_000, 80_000)}, CONTROL),
    ({CONTROL: (250, 200), FRAMES: (90_000, 80_000), CHECKPOINT: (1_000_000, 600)}, CONTROL),
    ({CONTROL: (4000, 4000), FRAMES: (300, 300)}, FRAMES)])
def test_least(more, least):
    now = {flow: dict(seen) for flow, seen in BEFORE.items()}
    for flow, counts in more.items():
        seen = now.setdefault(flow, {"a": 0, "b": 0})
        for host, count in zip("ab", counts):
            seen[host] += count
    assert least_of(BEFORE, now) == least
