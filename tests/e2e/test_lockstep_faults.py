# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lock-stepping with faults: the primary dies in each kind of traffic, frames get lost in each place, links are bad."""
import pytest
from lockstep import RECOVERY_MS, Counts, calm, compare_status, settle
from pair import PRIMARY_STATES, REPROTECT_S, STALL_SILENT, STALL_TOLD, TCP_MS

from lablib.clients import Download, Echo, Pinger, longest_gap_ms
from lablib.impair import Impair
from lablib.streams import Lookups, Outbound, Upload, allow_many_connections
from lablib.tamper import Tamper
from lablib.topology import GUEST_ADDRESS6
from lablib.util import wait_until

pytestmark = pytest.mark.lab(mode="lockstep", interval_ms=10000)
RATE = 1 << 20

KINDS = {
    "download": lambda lab: [Download(lab, rate=8 * RATE)],
    "upload": lambda lab: [Upload(lab, 12, RATE)],
    "parallel": lambda lab: [Download(lab, 1, RATE // 16, f"get-{n}") for n in range(100)],
    "echo": lambda lab: [Echo(lab)],
    "ipv6": lambda lab: [Echo(lab, address=GUEST_ADDRESS6), Download(lab, rate=RATE, address=GUEST_ADDRESS6)],
    "outbound": lambda lab: [Outbound(lab, 12, RATE)],
    "names": lambda lab: [Lookups(lab, 40)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_primary_killed(pair, kind):
    """Every byte arrives, in both directions, without a reset; then the pair protects itself again."""
    if kind == "parallel":
        allow_many_connections(pair.lab)
    load = pair.load(streams=KINDS[kind](pair.lab))
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD + allowance(kind))
    pair.finish(mark, load, [pair.primary, pair.secondary])


def allowance(kind):
    """What the guest itself needs. A lookup whose answer was lost asks again after 5 s (busybox)."""
    return 5000 if kind == "names" else 0


def test_primary_killed_under_large_datagrams(pair):
    """Fragments are lost with the host, never mixed up: an answer is whole and right, or does not come."""
    pinger = Pinger(pair.lab, sizes=(2000, 9000, 30000), period_ns=20_000_000)
    load = pair.load(streams=[Echo(pair.lab)], pinger=pinger)
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary])
    after = {pinger.sizes[n % 3] for n, when in pinger.answered_ns.items() if pinger.sent_ns[n] > mark.ns}
    assert after == set(pinger.sizes), f"sizes answered after the takeover: {after}"


@pytest.mark.lab(mode="lockstep", interval_ms=10000, port="stream")
def test_primary_killed_with_stream_ports(pair):
    load = pair.load(streams=[Echo(pair.lab), Download(pair.lab, rate=RATE), Upload(pair.lab, 8, RATE)])
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary])


def fail_over_back(pair, load):
    """The survivor's next secondary takes over in turn."""
    pair.lab.wait_protected(pair.secondary, REPROTECT_S)
    load.wait_flow()
    mark = pair.mark(pair.secondary)
    pair.lab.kill(pair.secondary, "qemu")
    pair.takeover(pair.primary, mark, load, STALL_TOLD)
    pair.finish(mark, load, [pair.primary, pair.secondary, pair.primary])


def test_two_failovers_of_young_connections(pair):
    """Opened since the last checkpoint, so that the survivor's numbers are not those that the client knows; the next
    survivor must know of that too."""
    settle(pair)
    load = pair.load(streams=[Echo(pair.lab), Download(pair.lab, rate=RATE), Upload(pair.lab, 24, RATE)])
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    fail_over_back(pair, load)


def add_young_stream(pair, load):
    """Of its connection no checkpoint has heard: inside the secondary it has numbers of its own."""
    for _ in range(8):
        before = Counts.of(pair)
        echo = Echo(pair.lab)
        load.streams.append(echo)
        echo.start()
        echo.wait_more(32, 20)
        if (Counts.of(pair) - before)["checkpoints"] == 0:
            return
        calm(pair)
    raise AssertionError("no connection without a checkpoint in 8 tries")


@pytest.mark.parametrize("when", ["taking-over", "alone"])
def test_survivors_colod_killed_with_young_connections(pair, when):
    """The survivor's guest lives and its colod dies, before the output is open and after it: the next colod translates
    the connections that the first one did. Twice, and then the new secondary takes over in its turn."""
    settle(pair)
    load = pair.load()
    if when == "taking-over":
        pair.lab.host(pair.secondary).call("test-stall", state=when)
    add_young_stream(pair, load)
    pair.lab.kill(pair.primary, "host")
    if when == "taking-over":
        wait_until(lambda: pair.lab.host(pair.secondary).colod().stands_still(), 5, "the stall")
    else:
        pair.wait_state(pair.secondary, PRIMARY_STATES, 10)
    guest = pair.lab.host(pair.secondary).qemu()
    for _ in range(2):
        pair.lab.kill(pair.secondary, "colod")
        pair.lab.start(pair.secondary)
        pair.wait_state(pair.secondary, PRIMARY_STATES, 10)
        pair.assert_told(pair.secondary, None, r"connections: \d+ are translated as by the colod before")
        load.wait_flow()
    assert pair.lab.host(pair.secondary).qemu().pid == guest.pid, "another QEMU was started"
    pair.lab.start(pair.primary)
    fail_over_back(pair, load)


# place -> (which host's proxy loses it, whether a burst there needs a checkpoint to be healed). What gets lost behind
# the comparison, TCP asks for again, of both guests alike.
PLACES = {
    "at-engine": ("primary", True),
    "primary-egress": ("primary", True),
    "release": ("primary", False),
    "mirror": ("primary", True),
    "secondary-ingress": ("secondary", True),
    "rewriter-ingress": ("secondary", True),
    "rewriter-egress": ("secondary", True),
    "secondary-egress": ("secondary", True),
}
BURST = 20


def lose(pair, place, frames):
    """Returns when all of them are lost."""
    host = pair.primary if PLACES[place][0] == "primary" else pair.secondary
    goal = compare_status(pair, host)["test_lost_frames"] + frames
    pair.lab.host(host).call("test-lose", place=place, frames=frames)
    wait_until(lambda: compare_status(pair, host)["test_lost_frames"] >= goal, 5,
               lambda: f"{frames} frames lost at {place}; {pair.lab.describe()}", poll=0.002)


def all_kinds(lab):
    return [Echo(lab), Download(lab, rate=RATE), Upload(lab, 12, RATE)]


@pytest.mark.parametrize("place", PLACES)
def test_frames_lost(pair, place):
    """One frame, then a burst, under a mixed load: service goes on after at most the time that a frame may wait, and a
    checkpoint. Then the primary dies right behind another burst, and nothing is missing that a client was told."""
    settle(pair)
    load = pair.load(streams=all_kinds(pair.lab))
    calm(pair)
    for frames in (1, BURST):
        before = Counts.of(pair)
        start_ns = pair.mark_ns()
        lose(pair, place, frames)
        load.wait_flow()
        calm(pair)
        counts = Counts.of(pair) - before
        silence = load.pinger.silence_ms(start_ns)
        stall = max(longest_gap_ms(stream.times_ns, start_ns) for stream in load.streams)
        print(f"{place}, {frames} lost: UDP silence {silence:.0f} ms, stall {stall:.0f} ms; {counts}")
        assert silence <= RECOVERY_MS, f"no answer for {silence:.0f} ms, allowed are {RECOVERY_MS}"
        assert stall <= RECOVERY_MS + TCP_MS, f"a stream stalled for {stall:.0f} ms"
    # Among 20 frames of this load are datagrams, which nobody sends again.
    assert counts.of_differences() > 0 or not PLACES[place][1], f"healed without a checkpoint? {counts}"
    mark = pair.mark()
    lose(pair, place, BURST)
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD + RECOVERY_MS)
    pair.finish(mark, load, [pair.primary, pair.secondary])


@pytest.mark.parametrize("link, how", [
    pytest.param("client", "delay 5ms 2ms loss 1%", marks=pytest.mark.long),  # also lan.scenario
    ("client", "delay 2ms reorder 5% 10ms"),
    pytest.param("peer", "delay 5ms 2ms", marks=pytest.mark.long),  # also links.scenario
    ("peer", "delay 1ms loss 0.5% reorder 1% 5ms"),
])
@pytest.mark.parametrize("port", [
    pytest.param("tap"), pytest.param("stream", marks=[pytest.mark.long, pytest.mark.lab(mode="lockstep", interval_ms=10000, port="stream")])])
def test_bad_link(pair, link, how, port):
    """Loss, delay and reordering of TCP in both directions, with a kill in the middle. Neither makes the guests say
    different things: at most one of them says something so late that it counts as a difference."""
    impair = Impair(pair.lab, link, how)
    load = pair.load(streams=[Echo(pair.lab), Download(pair.lab, rate=RATE), Upload(pair.lab, 10, RATE)])
    before = Counts.of(pair)
    impair.start()
    try:
        for stream in load.streams:
            stream.wait_more(3 * RATE if isinstance(stream, Download) else 300 * 32, 60)
        counts = Counts.of(pair) - before
        print(f"{port}, {link}, {how}: {counts}")
        assert counts["divergence"] == 0, f"the guests said different things: {counts}"
        pair.wait_epochs(1, 15)
        mark = pair.mark()
        pair.lab.kill(pair.primary, "qemu")
        # Each loss may cost a stream a retransmission timer, and one such loss may hit a retransmission.
        pair.takeover(pair.secondary, mark, load, STALL_TOLD + 2 * TCP_MS)
        pair.finish(mark, load, [pair.primary, pair.secondary])
        print(f"{link}: {impair.passed} frames passed, {impair.lost} lost, {impair.overtaken} overtaken")
        assert impair.passed > 500
        assert impair.lost > 0 or "loss" not in how, "the link lost nothing"
        assert impair.overtaken > 0 or "reorder" not in how, "the link reordered nothing"
    finally:
        impair.stop()


@pytest.mark.parametrize("how", ["flip", pytest.param("reset", marks=pytest.mark.long)])  # also bytes.scenario
@pytest.mark.parametrize("sender", ["primary", "secondary"])
def test_frames_channel_broken(pair, sender, how):
    """The two proxies no longer hear each other: as bad as the end of the checkpoint channel, and said so."""
    load = pair.load(rate=8 * RATE)
    tamper = Tamper(pair.lab)
    tamper.start()
    try:
        mark = pair.mark()
        tamper.strike("frames", getattr(pair, sender), how)
        winner = pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        told = [event["text"] for name in ("a", "b") for event in pair.events(name, mark)]
        assert any("frames channel" in text for text in told), "\n".join(told)
        pair.assert_flow(mark, load, STALL_SILENT)
        pair.finish(mark, load, [pair.primary] if winner == pair.primary else [pair.primary, pair.secondary])
    finally:
        tamper.stop()
