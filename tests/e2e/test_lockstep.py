# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lock-stepping without faults: what matches leaves at once, what differs costs one checkpoint."""
import glob
import re
import socket
import subprocess

import pytest
from lockstep import RECOVERY_MS, Counts, calm, compare_status, settle

from lablib import netns
from lablib.clients import MIB, Download, Echo, Pinger
from lablib.streams import Lookups, Outbound, Upload, WebServer, allow_many_connections, blob_md5
from lablib.topology import CLIENT_ADDRESS6, GUEST_ADDRESS, GUEST_ADDRESS6
from lablib.util import run, wait_until

BUFFERED_MS = 50  # the interval of a buffered network, which every answer would wait for the half of
LOCKSTEP = pytest.mark.lab(mode="lockstep", interval_ms=10000)
# Where not a single checkpoint is allowed: a guest that gets no turn for 200 ms on a busy machine is not what is looked for.
PATIENT = pytest.mark.lab(mode="lockstep", interval_ms=10000, compare_timeout_ms=1000)
pytestmark = LOCKSTEP


def assert_no_difference(counts):
    """Whatever happened, it took no checkpoint but the timer's."""
    assert counts["checkpoints"] == counts["interval"], f"checkpoints that were no timer's: {counts}"
    assert not any(value for name, value in counts.values.items() if name.startswith("differs ")), counts


@PATIENT
def test_matching_output_needs_no_checkpoint(pair):
    settle(pair)
    echo, pinger = Echo(pair.lab), Pinger(pair.lab)
    echo.start()
    pinger.start()
    echo.wait_more(100)
    pinger.wait_answers(200)
    before = Counts.of(pair)
    download = Download(pair.lab, 32)
    download.start()
    download.wait_done(60)
    counts = Counts.of(pair) - before
    for client in (echo, pinger):
        client.stop()
    assert_no_difference(counts)
    # The counter is of frames, up to 64 KB each, and a checkpoint of the timer covers what is under way then.
    assert counts["released bytes"] > 32 * MIB
    assert counts["released matched"] > 32 * MIB // 65536
    assert counts["released committed"] < counts["released matched"] / 20, counts


def test_latency_is_the_slower_guest_not_the_interval(pair):
    settle(pair)
    pinger = Pinger(pair.lab)
    pinger.start()
    pinger.wait_answers(400)
    pinger.stop()
    trip = pinger.trip_ms()
    print(f"UDP round trip p50 {trip:.2f} ms, p99 {pinger.trip_ms(99):.2f} ms")
    assert trip < BUFFERED_MS / 4, f"p50 is {trip} ms"


def test_divergence_on_purpose(pair, tmp_path):
    """The guests' clocks differ: the answer is the primary's and comes after one checkpoint."""
    settle(pair)
    before = Counts.of(pair)
    answer = pair.lab.guest_command("now")
    assert re.fullmatch(r"ok \d+", answer), answer
    counts = Counts.of(pair) - before
    assert counts["divergence"] == 1 and counts["differs payload"] == 1, counts
    assert counts["checkpoints"] == 1 + counts["interval"], f"one is enough: {counts}"
    text = colo(pair, "explain")
    assert re.search(r"tcp port 9 +payload, 1 times", text), text
    assert "captures written" in colo(pair, "explain", "--save", str(tmp_path))
    newest = sorted(glob.glob(f"{tmp_path}/*-payload.pcapng"))[-1]
    replay = subprocess.run([f"{pair.lab.settings.build}/compare/colo-replay", newest], capture_output=True, text=True,
                            check=False)
    assert replay.returncode == 1, f"exit {replay.returncode}: {replay.stderr}"
    assert re.search(r" payload 10\.77\.0\.2:9 > ", replay.stdout), replay.stdout


def colo(pair, *args):
    return run(f"{pair.lab.settings.build}/colod/colo", "--socket", pair.lab.host(pair.primary).socket, *args)


def test_divergence_over_udp(pair):
    """A datagram that differs has no second chance: it must come all the same, and only once."""
    settle(pair)
    before = Counts.of(pair)
    with pair.lab.client_socket(socket.SOCK_DGRAM) as sock:
        sock.settimeout(RECOVERY_MS / 1000)
        sock.sendto(b"now\n", (GUEST_ADDRESS, 9))
        assert re.fullmatch(rb"ok \d+\n?", sock.recv(100))
    counts = Counts.of(pair) - before
    assert counts.of_differences() == 1, counts


def test_upload(pair):
    upload = Upload(pair.lab, 8)
    upload.start()
    upload.wait_done(60)


def test_parallel_connections(pair):
    allow_many_connections(pair.lab)
    settle(pair)
    before = Counts.of(pair)
    downloads = [Download(pair.lab, 1, name=f"get-{n}") for n in range(100)]
    for download in downloads:
        download.start()
    for download in downloads:
        download.wait_done(120)
    counts = Counts.of(pair) - before
    print(counts)
    assert counts["divergence"] == 0, f"the guests said different things: {counts}"
    assert counts["released matched"] > 100, counts


@PATIENT
def test_long_lived_echo(pair):
    """One connection over checkpoints: each epoch begins in its middle."""
    settle(pair)
    echo = Echo(pair.lab)
    echo.start()
    for _ in range(10):
        echo.wait_more(32)
        pair.lab.host(pair.primary).call("checkpoint", timeout=10)
    # What the last of them may have made SVM miss (the ring of a tap) has been healed.
    calm(pair)
    before = Counts.of(pair)
    echo.wait_more(300 * 32)
    counts = Counts.of(pair) - before
    echo.stop()
    assert_no_difference(counts)


@PATIENT
def test_ipv6(pair):
    settle(pair)
    before = Counts.of(pair)
    clients = [Echo(pair.lab, address=GUEST_ADDRESS6), Pinger(pair.lab, address=GUEST_ADDRESS6)]
    for client in clients:
        client.start()
    download = Download(pair.lab, 8, address=GUEST_ADDRESS6)
    download.start()
    download.wait_done(60)
    clients[0].wait_more(32)
    clients[1].wait_answers(20)
    for client in clients:
        client.stop()
    assert_no_difference(Counts.of(pair) - before)


@pytest.mark.parametrize("address", [None, CLIENT_ADDRESS6])
def test_guest_fetches_from_the_client(pair, address):
    """wget in the guest, both ways. The guests choose ports and sequence numbers of their own, so that each
    connection may cost a checkpoint; seconds would be a rewriter that does not know the connection."""
    server = WebServer(pair.lab, address) if address else WebServer(pair.lab)
    server.start()
    try:
        before = Counts.of(pair)
        output = pair.lab.guest_script(f"""set -e
            wget -q -O - {server.url}/4 | md5sum
            guest-agent blob 2 >/tmp/two
            wget -q -O - --post-file /tmp/two {server.url}/
            rm /tmp/two""")
        print(Counts.of(pair) - before)
    finally:
        server.stop()
    assert blob_md5(4) in output and "right" in output, output


def test_guest_keeps_a_connection_to_the_client(pair):
    outbound = Outbound(pair.lab, 4)
    outbound.start()
    outbound.join(60)
    outbound.stop()


def test_names(pair):
    """DNS: ids and ports are random, so each lookup may be a difference; each answer must be the right one."""
    lookups = Lookups(pair.lab, 10)
    lookups.start()
    lookups.stop()


@PATIENT
def test_large_datagrams(pair):
    """Fragments of both guests are put together before they are compared."""
    settle(pair)
    before = Counts.of(pair)
    pinger = Pinger(pair.lab, sizes=(2000, 1472, 1473, 9000, 30000), period_ns=20_000_000)
    pinger.start()
    wait_until(lambda: len(pinger.answered_ns) >= 200 or pinger.failure, 30, lambda: "answers to large datagrams")
    pinger.stop()
    counts = Counts.of(pair) - before
    by_size = {pinger.sizes[number % 5] for number in pinger.answered_ns}
    assert by_size == set(pinger.sizes), f"answered were {by_size}"
    assert pinger.repeated == 0
    assert_no_difference(counts)


@PATIENT
def test_large_pings(pair):
    settle(pair)
    before = Counts.of(pair)
    for address in (GUEST_ADDRESS, GUEST_ADDRESS6):
        output = run(*netns.enter_argv(pair.lab.topology.name("c")), "ping", "-q", "-c", "20", "-i", "0.05", "-s",
                     "3000", address)
        assert " 20 received" in output and "duplicates" not in output, output
    assert_no_difference(Counts.of(pair) - before)


def test_adaptive(pair):
    """Differences in quick succession: checkpoints become frequent for a while, and rare again."""
    settle(pair)

    def dense():
        pair.lab.guest_command("now")
        return compare_status(pair)["dense"]
    wait_until(dense, 20, lambda: f"dense checkpoints; {pair.lab.describe()}", poll=0)
    assert re.search(r"differ|dense|often", colo(pair, "status")), colo(pair, "status")
    before = Counts.of(pair)
    # What they are for: with 10 s between two of the timer's, ten within one of those times.
    pair.wait_epochs(10, 5)
    assert (Counts.of(pair) - before)["interval"] >= 10
    pair.wait(pair.primary, lambda s: not s["network"]["compare"]["dense"], 10, "dense time of 5 s is over")
    settle(pair)
    before = Counts.of(pair)
    pair.wait(pair.primary, lambda s: s["checkpoint"]["since_commit_ms"] > 1000, 5, "a second without a checkpoint")
    assert (Counts.of(pair) - before)["checkpoints"] == 0
