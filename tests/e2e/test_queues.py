# SPDX-License-Identifier: LGPL-2.1-or-later
"""A NIC with two queues, in a guest with two CPUs: flows of both are compared, drained and survive."""
import re

import pytest
from lockstep import Counts, settle
from pair import STALL_TOLD

from lablib.clients import Download, Echo
from lablib.streams import Outbound, Upload

pytestmark = pytest.mark.lab(mode="lockstep", interval_ms=10000, cpus=2, queues=2)
RATE = 1 << 20
QUEUES = ("input.0", "input.1", "output.0", "output.1")


def interrupts(pair):
    """Of each of the guest's queues."""
    text = pair.lab.guest_script("cat /proc/interrupts")
    counts = {}
    for line in text.splitlines():
        match = re.match(r"\s*\d+:((?:\s+\d+)+)\s.*virtio\d+-(\S+)$", line)
        if match:
            counts[match[2]] = sum(map(int, match[1].split()))
    assert set(QUEUES) <= set(counts), text
    return counts


def test_both_queues_are_compared(pair):
    settle(pair)
    irqs, before = interrupts(pair), Counts.of(pair)
    downloads = [Download(pair.lab, 4, RATE * 4, name=f"get-{n}") for n in range(8)]
    for download in downloads:
        download.start()
    for download in downloads:
        download.wait_done(60)
    counts = Counts.of(pair) - before
    used = {name: count - irqs[name] for name, count in interrupts(pair).items()}
    print(f"{counts}; interrupts {used}")
    assert all(used[name] > 0 for name in QUEUES), used
    assert counts["divergence"] == 0, f"the guests said different things: {counts}"
    assert counts["released matched"] > 100, counts


def test_checkpoints_drain_both_queues(pair):
    load = pair.load(streams=[*(Echo(pair.lab) for _ in range(4)), Download(pair.lab, rate=RATE * 4)])
    for _ in range(20):
        load.wait_flow()
        pair.lab.host(pair.primary).call("checkpoint", timeout=10)
    load.wait_flow()
    load.stop()
    assert pair.status(pair.primary)["state"] == "protected"


def test_two_failovers(pair):
    """The second secondary's QEMU has loaded the queues' state; both go on in both queues.

    Slow streams: guests of two CPUs differ often on a busy machine, and each time costs the comparison's timeout."""
    load = pair.load(streams=[Echo(pair.lab), Download(pair.lab, rate=RATE), Upload(pair.lab, 6, RATE // 4),
                              Outbound(pair.lab, 6, RATE // 4)])
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.lab.wait_protected(pair.secondary, 40)
    load.wait_flow()
    mark = pair.mark(pair.secondary)
    pair.lab.kill(pair.secondary, "host")
    pair.takeover(pair.primary, mark, load, STALL_TOLD + 500)
    pair.lab.start(pair.secondary)
    pair.finish(mark, load, [pair.primary, pair.secondary, pair.primary])


@pytest.mark.long  # also manual.scenario
def test_adopted_by_a_restarted_colod(pair):
    """colod finds the tap by one of its descriptors and reads both queues again."""
    load = pair.load(streams=[Echo(pair.lab) for _ in range(4)])
    pair.lab.kill(pair.secondary, "host")
    mark = pair.mark()
    pair.wait_state(pair.primary, "alone", 10)
    old = pair.lab.host(pair.primary).qemu()
    pair.lab.kill(pair.primary, "colod")
    pair.lab.start(pair.primary)
    status = pair.wait_state(pair.primary, "alone", 10)
    assert status["qemu"]["pid"] == old.pid, "another QEMU was started"
    load.wait_flow()
    pair.lab.start(pair.secondary)
    pair.finish(mark, load, [pair.primary])
