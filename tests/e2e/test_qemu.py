# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU or a host dies or stands still."""
import hashlib
import time

import pytest
from pair import STALL_SILENT, STALL_STUCK, STALL_TOLD

from lablib.clients import Blob, Download


# Of a buffered network only: PVM runs on from END (early resume), and all that it says is held.
BUFFERED = pytest.mark.lab(mode="buffered")
# Also buffered.scenario.
MODES = pytest.mark.parametrize("mode", ["default", pytest.param("buffered", marks=[BUFFERED, pytest.mark.long])])
# The steps around the commit point are enough unless there is time: tests/chaos/scenarios/steps-*.scenario go through all of them.
STEPS = pytest.mark.parametrize("step", [
    *(pytest.param(step, marks=[] if step in (4, 5) else [pytest.mark.long]) for step in range(1, 8)),
    *(pytest.param(step, id=f"buffered-{step}", marks=[BUFFERED] if step in (4, 5) else [BUFFERED, pytest.mark.long])
      for step in range(1, 8))])


@MODES
def test_pvm_killed(pair, mode):
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary])
    pair.assert_told(pair.primary, mark, r"QEMU.*(signal|kill|ended)")
    pair.assert_told(pair.secondary, mark, r"taken over|primary's VM ended")


@MODES
def test_pvm_killed_in_a_download_with_checksum(pair, mode):
    """/blob to its end, across the takeover, as fast as it goes."""
    with open(f"{pair.lab.settings.guest}/blob.sha256", encoding="ascii") as file:
        wanted = file.read().strip()
    digest = hashlib.sha256()

    class Summing(Download):
        def _take(self, data):
            digest.update(data)
            super()._take(data)

    Blob.differs(0, b"\0")  # makes its table before the clock runs
    download = Summing(pair.lab, 64)
    download.start()
    download.wait_more(8 << 20)
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    download.wait_done(60)
    assert digest.hexdigest() == wanted
    pair.finish(mark, None, [pair.primary, pair.secondary])


@MODES
def test_svm_killed(pair, mode):
    """The primary goes on, unprotected, and releases what it held."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.secondary, "qemu")
    pair.takeover(pair.primary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary])
    pair.assert_told(pair.secondary, mark, r"QEMU.*(signal|kill|ended)")
    pair.assert_told(pair.primary, mark, r"secondary's VM ended|checkpointing failed")


@pytest.mark.parametrize("when", ["alone", "copied"])
def test_lone_pvm_frozen_then_thawed(pair, when):
    """Nobody else has the guest: it is kept, however long it stands still, and not copied before it answers again."""
    load = pair.load()
    pair.lab.kill(pair.secondary, "host")
    mark = pair.mark()
    pair.wait_state(pair.primary, "alone", 10)
    old = pair.lab.host(pair.primary).qemu()
    if when == "copied":
        pair.lab.start(pair.secondary)
        pair.wait_state(pair.primary, ("preparing", "migrating"), 20)
    pair.lab.freeze(pair.primary, "qemu")
    # Not copied yet, or no more.
    pair.wait(pair.primary, lambda s: s["state"] == "resuming" or "only copy" in s["reason"], 20, "QEMU found stuck")
    if when == "alone":
        pair.lab.start(pair.secondary)
    time.sleep(6)  # the test is that nothing happens in this time, which is longer than other deadlines
    assert pair.status(pair.primary)["state"] in ("alone", "resuming")
    pair.lab.thaw(pair.primary, "qemu")
    load.wait_flow()
    pair.finish(mark, load, [pair.primary])
    assert pair.lab.host(pair.primary).qemu().pid == old.pid
    pair.assert_told(pair.primary, mark, r"QEMU answers again")


def test_pvm_frozen(pair):
    load = pair.load()
    mark = pair.mark()
    pair.lab.freeze(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_STUCK)
    pair.finish(mark, load, [pair.primary, pair.secondary])
    pair.assert_told(pair.primary, mark, r"stuck|deadline|within \d+ ms")


def test_svm_frozen(pair):
    load = pair.load()
    mark = pair.mark()
    pair.lab.freeze(pair.secondary, "qemu")
    pair.takeover(pair.primary, mark, load, STALL_STUCK)
    pair.finish(mark, load, [pair.primary])
    pair.assert_told(pair.primary, mark, r"deadline|within \d+ ms|secondary")


def test_primary_host_gone_silently(pair):
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "host")
    pair.takeover(pair.secondary, mark, load, STALL_SILENT)
    pair.assert_reason(pair.secondary)
    pair.assert_told(pair.secondary, mark, r"heartbeat|link lost|silent")
    pair.lab.start(pair.primary)
    pair.finish(mark, load, [pair.primary, pair.secondary])


def test_secondary_host_gone_silently(pair):
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.secondary, "host")
    pair.takeover(pair.primary, mark, load, STALL_SILENT)
    pair.assert_reason(pair.primary)
    pair.assert_told(pair.primary, mark, r"heartbeat|link lost|silent")
    pair.lab.start(pair.secondary)
    pair.finish(mark, load, [pair.primary])


@MODES
def test_primary_host_frozen_then_thawed(pair, mode):
    """It wakes up with held output and a guest that believes to be alone; nothing of that may leave."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.freeze(pair.primary, "host")
    pair.takeover(pair.secondary, mark, load, STALL_SILENT)
    pair.lab.thaw(pair.primary, "host")
    pair.finish(mark, load, [pair.primary, pair.secondary])
    pair.assert_told(pair.primary, mark, r"heartbeat|link lost|newer generation|refused")


def test_secondary_host_frozen_then_thawed(pair):
    load = pair.load()
    mark = pair.mark()
    pair.lab.freeze(pair.secondary, "host")
    pair.takeover(pair.primary, mark, load, STALL_SILENT)
    pair.lab.thaw(pair.secondary, "host")
    pair.finish(mark, load, [pair.primary])
    pair.assert_told(pair.secondary, mark, r"heartbeat|link lost|newer generation|refused|replaced")


@STEPS
def test_primary_killed_at_step(pair, step):
    """The gate stands still at a step of a checkpoint; then the primary host loses its power."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.host(pair.primary).call("test-stall", step=step)
    pair.wait(pair.primary, lambda _: stalled(pair, mark, step), 5, f"a gate stalled at step {step}")
    pair.lab.kill(pair.primary, "host")
    pair.takeover(pair.secondary, mark, load, STALL_SILENT)
    pair.lab.start(pair.primary)
    pair.finish(mark, load, [pair.primary, pair.secondary])


@STEPS
def test_pvm_killed_at_step(pair, step):
    """The same, but colod lives and says that its VM is dead."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.host(pair.primary).call("test-stall", step=step)
    pair.wait(pair.primary, lambda _: stalled(pair, mark, step), 5, f"a gate stalled at step {step}")
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary])


def stalled(pair, mark, step):
    return any(event["event"] == "stalled" and f"stands at step {step} " in event["text"]
               for event in pair.events(pair.primary, mark))


@pytest.mark.long  # test_lockstep_faults.py has such ports, too
@pytest.mark.lab(mode="buffered", port="stream")
def test_stream_port(pair):
    """The other kind of guest port: no offload, a socket per NIC."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary])
