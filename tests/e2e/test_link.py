# SPDX-License-Identifier: LGPL-2.1-or-later
"""The peer link: cut, healed, and corrupted on its way."""
import time

import pytest
from pair import HEARTBEAT_LIMIT_MS, PRIMARY_STATES, STALL_SILENT, STALL_TOLD

from lablib.tamper import Tamper
from lablib.util import wait_until


def wait_winner(pair, mark, seconds=10):
    """Exactly one host goes on in the next generation, the other one gives its VM up. Returns (winner, loser)."""
    def check():
        for name, other in (("a", "b"), ("b", "a")):
            status = pair.status(name)
            if status["state"] in PRIMARY_STATES and status["generation"] > mark.generation:
                return name, other
        return None
    return wait_until(check, seconds, lambda: f"a host that goes on; {pair.lab.describe()}")


def turns_of(pair, winner):
    return [pair.primary] if winner == pair.primary else [pair.primary, pair.secondary]


def test_cut_with_file_arbiter(pair):
    load = pair.load()
    mark = pair.mark()
    pair.lab.cut()
    winner, loser = wait_winner(pair, mark)
    wait_until(lambda: not pair.has_qemu(loser), 10, lambda: f"{loser} has no VM; {pair.lab.describe()}")
    pair.assert_flow(mark, load, STALL_SILENT)
    for name in (winner, loser):
        pair.assert_reason(name)
        pair.assert_told(name, mark, r"heartbeat|link lost|silent")
    pair.lab.heal()
    pair.finish(mark, load, turns_of(pair, winner))


def test_cut_and_healed_at_once(pair):
    """Shorter than the heartbeat limit: nothing happens."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.cut()
    time.sleep(0.15)  # the fault itself, not a wait
    pair.lab.heal()
    load.wait_flow()
    pair.wait_epochs(3)
    assert pair.status(pair.primary)["generation"] == mark.generation
    pair.finish(mark, load, [pair.primary])


@pytest.mark.parametrize("how", ["flip", pytest.param("reset", marks=pytest.mark.long)])  # also bytes.scenario
@pytest.mark.parametrize("channel", ["checkpoint", "control"])
@pytest.mark.parametrize("sender", ["primary", "secondary"])
def test_corrupted_on_the_wire(pair, channel, sender, how):
    """flip: one bit, under a right TCP checksum; reset: the connection ends within a message."""
    load = pair.load()
    tamper = Tamper(pair.lab)
    tamper.start()
    try:
        pair.wait_epochs(2)
        mark = pair.mark()
        tamper.strike(channel, getattr(pair, sender), how)
        winner, _ = wait_winner(pair, mark)
        pair.assert_flow(mark, load, STALL_SILENT)
    finally:
        tamper.stop()
    pair.finish(mark, load, turns_of(pair, winner))
    pair.assert_told(pair.primary, mark, r"TLS|closed|reset|broken|lost|record|link")


def test_corrupted_after_the_checksum(pair):
    """A bit turned behind TLS: the checkpoint's own checksum finds it, and nothing of it is applied."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.host(pair.primary).call("test-corrupt")
    winner, _ = wait_winner(pair, mark)
    pair.assert_flow(mark, load, STALL_TOLD)
    pair.finish(mark, load, turns_of(pair, winner))
    pair.assert_told(pair.secondary, mark, r"checksum|hash")


MANUAL = pytest.mark.lab(arbiter="manual")


def cut_and_wait_for_both(pair, mark):
    """Both sides have noticed and wait for an operator; the time from which on nobody may send."""
    pair.lab.cut()
    # What has matched may leave as long as the lease lasts, however late a busy host gets to it.
    quiet_ns = time.monotonic_ns() + HEARTBEAT_LIMIT_MS * 1_000_000
    pair.wait_state(pair.primary, "claim-primary", 5)
    pair.wait_state(pair.secondary, "claim-secondary", 5)
    for name in (pair.primary, pair.secondary):
        pair.assert_reason(name)
        pair.assert_told(name, mark, r"heartbeat|link lost|silent")
    return quiet_ns


def watch_silence(pair, quiet_ns, seconds=2.0):
    """Neither side sends a byte."""
    time.sleep(seconds)  # the test is that nothing happens in this time
    end_ns = time.monotonic_ns()
    for name in ("a", "b"):
        sent_ms = [(when - quiet_ns) // 1_000_000 for when in pair.sniffer.times_ns(name, quiet_ns, end_ns)]
        assert not sent_ms, f"{name} sent while nobody had decided: so many ms after the lease's end {sent_ms[:20]}"


@MANUAL
@pytest.mark.parametrize("who", ["secondary", "primary"])
def test_cut_with_manual_arbiter(pair, who):
    """Nobody sends until an operator decides, for either side; when the link is back, they join again."""
    load = pair.load()
    mark = pair.mark()
    quiet_ns = cut_and_wait_for_both(pair, mark)
    watch_silence(pair, quiet_ns)
    winner = getattr(pair, who)
    pair.lab.host(winner).call("failover", timeout=15)
    # The guest's retransmission timer has doubled a few times by now.
    pair.takeover(winner, mark, load, 10_000)
    pair.lab.heal()
    pair.finish(mark, load, turns_of(pair, winner))


@MANUAL
def test_manual_link_back_before_a_decision(pair):
    """The secondary gives its VM up and the primary goes on."""
    load = pair.load()
    mark = pair.mark()
    quiet_ns = cut_and_wait_for_both(pair, mark)
    watch_silence(pair, quiet_ns, 1.0)
    pair.lab.heal()
    pair.assert_flow(mark, load, 15_000)
    pair.finish(mark, load, [pair.primary])


@MANUAL
def test_manual_pvm_killed(pair):
    """A peer that says that its VM is dead needs no operator."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary])


@MANUAL
def test_manual_primary_host_gone(pair):
    """Silence is no word: the secondary waits for the operator."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "host")
    pair.wait_state(pair.secondary, "claim-secondary", 5)
    pair.assert_reason(pair.secondary)
    watch_silence(pair, time.monotonic_ns(), 1.0)
    pair.lab.host(pair.secondary).call("failover", timeout=15)
    pair.takeover(pair.secondary, mark, load, 10_000)
    pair.lab.start(pair.primary)
    pair.finish(mark, load, [pair.primary, pair.secondary])
