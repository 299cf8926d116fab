# SPDX-License-Identifier: LGPL-2.1-or-later
"""colo-compare in the place of -object colo-compare: QEMU's own filters, a real guest, checkpoints by the notify protocol."""
import hashlib
import os
import socket

import pytest

from lablib.clients import Download, Echo
from lablib.qemu_chain import QemuChain
from lablib.settings import Settings
from lablib.topology import GUEST_ADDRESS
from lablib.util import LabError, run, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get("COLOD_E2E_BUILD", f"{SOURCE}/build/dev"))
DATAGRAMS = 200
ANNOUNCEMENTS = 3  # after each load of its state the guest's NIC announces itself some times


def settings():
    return Settings(qemu=run(f"{SOURCE}/tests/lab/qemu-root", timeout=900).strip(),
                    guest=run(f"{SOURCE}/tests/lab/guest-image", timeout=900).strip())


@pytest.fixture(name="chain")
def fixture_chain(request, keeper):
    """options: of colo-compare, from @pytest.mark.parametrize(indirect)."""
    keeper.drop()  # its QEMUs are not needed here
    options = getattr(request, "param", ())
    with QemuChain(f"cldlab{keeper.lab.id}q", settings(), compare=f"{BUILD}/compare/colo-compare",
                   timeout_ms=500, options=options) as chain:
        yield chain
        report = getattr(request.node, "report_call", None)
        if report is not None and report.failed:
            print(chain.describe())


def released(stats):
    return {why: stats[f"released_{why}"] for why in ("matched", "ack_lowered", "by_policy", "by_checkpoint")}


def assert_compared(stats):
    """Nearly all that left was compared; what a checkpoint covers is what was under way at that moment."""
    ways = released(stats)
    both = ways["matched"] + ways["ack_lowered"]
    assert ways["by_policy"] == 0
    assert both > 0.9 * sum(ways.values()), f"released: {ways}"
    assert stats["primary"]["malformed"] == stats["secondary"]["malformed"] == stats["framing_errors"] == 0
    return both


def ask(sock, data):
    """As UDP's users do: again, if no answer comes. QEMU drops what it has queued for a guest that it stops."""
    for _ in range(10):
        sock.send(data)
        try:
            while sock.recv(2048) != data:  # a late one: it was asked for twice
                pass
            return
        except TimeoutError:
            pass
    raise AssertionError(f"no echo of {data[:6]}")


def udp_echo(chain, count):
    with chain.client_socket(socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((GUEST_ADDRESS, 7))
        for number in range(count):
            ask(sock, b"%06d" % number * (1 + number % 200))


@pytest.mark.parametrize("chain", [(), ("--shards", "2")], ids=["one-thread", "two-shards"], indirect=True)
def test_download_echo_and_divergence(chain):
    with open(f"{chain.settings.guest}/blob.sha256", encoding="ascii") as file:
        wanted = file.read().strip()
    echo = Echo(chain)
    echo.start()
    echo.wait_more(1000)

    # 64 MiB in frames of up to 64 KiB with the checksum left to the NIC
    assert hashlib.sha256(chain.http_get("/blob")).hexdigest() == wanted
    stats = chain.stats()
    assert_compared(stats)
    for side in ("primary", "secondary"):
        assert stats[side]["bytes"] > 0.9 * (64 << 20)  # the secondary skips what a checkpoint brings it
        assert stats[side]["bytes"] > 3000 * stats[side]["packets"], "no large frames: offload is off"
    assert stats["divergences"]["payload"] == 0

    udp_echo(chain, DATAGRAMS)
    after = chain.stats()
    assert after["primary"]["udp"] >= stats["primary"]["udp"] + DATAGRAMS
    assert after["secondary"]["udp"] >= stats["secondary"]["udp"] + 0.9 * DATAGRAMS
    assert assert_compared(after) >= assert_compared(stats) + 0.9 * DATAGRAMS

    diverge(chain, after)
    echo.wait_more(1000)
    echo.stop()  # every byte came back once and in order
    chain.check()


def diverge(chain, before):
    """Both say something else: a checkpoint, after which the primary's answer leaves and all goes on."""
    with chain.client_socket() as sock:
        sock.settimeout(20)
        sock.connect((GUEST_ADDRESS, 9))
        for _ in range(3):
            sock.sendall(b"now\n")
            answer = sock.recv(1024)
            assert answer.startswith(b"ok ") and answer.endswith(b"\n")
    stats = chain.stats()
    assert stats["divergences"]["payload"] >= 1
    assert stats["checkpoints"] > before["checkpoints"]
    assert stats["checkpoints"] == chain.driver.checkpoints
    assert any(d["rule"] == "payload" and d["flow"].startswith(f"{GUEST_ADDRESS}:9 >")
               for d in stats["recent_divergences"]), stats["recent_divergences"]
    # Only the secondary announces itself now; that is no reason for another checkpoint.
    goal = stats["secondary_announcements"] + ANNOUNCEMENTS
    wait_until(lambda: chain.stats()["secondary_announcements"] >= goal, 20, "announcements of the secondary")
    causes = [d for d in chain.stats()["recent_divergences"]
              if d["rule"] == "timeout-secondary" and d["proto"] not in ("tcp", "udp")]
    assert not causes, causes


def test_primary_killed_in_a_download(chain):
    """What the client was told, the secondary knows: no byte and no acknowledgement left without it."""
    echo, download = Echo(chain), Download(chain, 16, rate=4 << 20)
    for client in (echo, download):
        client.start()
    download.wait_more(4 << 20)
    echo.wait_more(1000)
    chain.kill_primary()
    chain.fail_over()
    echo.wait_more(1000)
    download.wait_done(60)
    echo.stop()
    with pytest.raises(LabError, match="a is dead"):
        chain.check()
