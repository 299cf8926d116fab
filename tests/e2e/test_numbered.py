# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbered datagrams through checkpoints: none is given to a guest twice, or not at all (how that is seen inside the
secondary's guest, whose memory each checkpoint replaces: tests/lab/lablib/numbered.py). tests/chaos/checkpoints does
the same a thousand times."""
import socket

import pytest
from lockstep import RECOVERY_MS, compare_status, settle

from lablib.numbered import PORT, Account, Consoles, Epochs, Numbered, judge, survive
from lablib.topology import GUEST_ADDRESS
from lablib.util import wait_until

EPOCHS = 60


@pytest.mark.parametrize("port", [
    pytest.param("stream", marks=pytest.mark.lab(mode="lockstep", interval_ms=10000, port="stream")),
    pytest.param("tap", marks=pytest.mark.lab(mode="lockstep", interval_ms=10000)),
])
def test_through_checkpoints(pair, port):
    """And through two failovers at the end, after which each survivor is asked what it was given."""
    numbered = Numbered(pair.lab)
    numbered.start()
    numbered.wait_answers(100)
    epochs = Epochs(pair.lab, numbered, seed=1)
    for _ in range(EPOCHS):
        epochs.one()
    report = {"port": port, **epochs.report()}
    report["after_failovers"] = [survive(pair.lab, numbered) for _ in range(2)]
    numbered.stop()
    print(report)
    assert not judge(report)


@pytest.mark.lab(mode="lockstep", interval_ms=10000)
@pytest.mark.parametrize("place", ["mirror", "secondary-ingress", "rewriter-ingress"])
def test_a_lost_one_is_seen_inside_the_secondary(pair, place):
    """What the test above relies on: one datagram that only the secondary is not given is missing there and is told
    there, its answers are not the primary's any more, and one checkpoint heals it."""
    settle(pair)
    numbered = Numbered(pair.lab)
    numbered.start()
    numbered.wait_answers(100)
    settle(pair)
    consoles, first = Consoles(pair.lab), numbered.first_open()
    before = sum(compare_status(pair)["differences"].values())
    host = pair.primary if place == "mirror" else pair.secondary
    pair.lab.host(host).call("test-lose", place=place, frames=1)
    said = wait_until(lambda: consoles.said(pair.secondary), 5, "the secondary's guest misses one")
    wait_until(lambda: sum(compare_status(pair)["differences"].values()) > before, 5, "the answers differ")
    settle(pair)
    numbered.stop()
    assert said[0][0] == "missing" and said[0][1] >= first, said
    assert consoles.said(pair.primary) == [], "the primary's guest misses something"
    assert numbered.worst_trip_ms(first) <= RECOVERY_MS
    assert numbered.last.missing == numbered.last.twice == 0, numbered.last
    assert consoles.said(pair.secondary) == [], "still different after the checkpoint"


@pytest.mark.lab(mode="lockstep", interval_ms=10000)
def test_one_that_comes_twice_or_late_is_told(pair):
    """By both guests, since both get it so."""
    settle(pair)
    consoles = Consoles(pair.lab)
    with pair.lab.client_socket(socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        for number in (0, 1, 1, 3, 2):
            sock.sendto(b"77 %d" % number, (GUEST_ADDRESS, PORT))
            account = Account(sock.recv(1000).decode())
    assert (account.missing, account.twice, account.late) == (0, 1, 1), account
    for name in (pair.primary, pair.secondary):
        said = []
        wait_until(lambda: said.extend(consoles.said(name)) or len(said) >= 3, 5, "both guests say so")
        assert said == [("twice", 1), ("missing", 2), ("late", 2)], f"{name}: {said}"
