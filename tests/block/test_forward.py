# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_forward.py - a guest's writes through the forwarder to a target, over real sockets"""
import contextlib
import errno
import os
import random
import socket
import subprocess
import threading
import time

import nbd
import pytest
from conftest import DEADLINE_S, SOURCE, Refused
from test_faults import start_with_sockets

MIB = 1 << 20
CHUNK = 65536


class Pair:
    """A forwarder and a target; `write` is what QEMU's quorum does: to the local image and to the forwarder."""

    def __init__(self, make_forwarder, make_target, tmp_path, size=16 * MIB, target=None, content=None, **options):
        self.size = size
        self.forwarder = make_forwarder(size, folder=f"{tmp_path}/primary", start=False, **options)
        if content:
            with open(self.forwarder.disk, "r+b") as disk:
                disk.write(content)
        self.forwarder.start()
        self.target = make_target(size, folder=f"{tmp_path}/secondary", map=f"{tmp_path}/secondary-map",
                                  **(target or {}))
        self.guest = self.forwarder.connect("")
        self.image = os.open(self.forwarder.disk, os.O_RDWR)

    def write(self, data, offset):
        os.pwrite(self.image, data, offset)
        self.guest.pwrite(data, offset)

    def zero(self, length, offset):
        os.pwrite(self.image, bytes(length), offset)
        self.guest.zero(length, offset)

    def sync(self, generation=1, rate_limit=0):
        self.target.ask("sync", generation=generation)
        self.forwarder.ask("connect", host=self.target.nbd, generation=generation, rate_limit=rate_limit,
                           timeout_ms=20000)

    def mirror(self, generation=1):
        """What colod does until the pair is armed."""
        self.forwarder.ask("alone", generation=generation, first=True)
        self.sync(generation)
        self.forwarder.wait_status(lambda status: status["synced"])
        self.forwarder.ask("finish", timeout_ms=20000)
        self.target.ask("mirror", generation=generation, epoch=0)
        self.forwarder.ask("release", epoch=0)

    def checkpoint(self, epoch):
        self.forwarder.ask("barrier", epoch=epoch, timeout_ms=20000)
        self.target.ask("checkpoint", epoch=epoch)
        self.forwarder.ask("release", epoch=epoch)

    def seen(self):
        """What the secondary's guest would see."""
        handle = self.target.connect("active")
        return b"".join(bytes(handle.pread(min(MIB, self.size - at), at)) for at in range(0, self.size, MIB))

    def local(self):
        return os.pread(self.image, self.size, 0)

    def expect_equal(self):
        seen, local = self.seen(), self.local()
        assert len(seen) == len(local)
        differ = [at for at in range(0, self.size, 4096) if seen[at:at + 4096] != local[at:at + 4096]]
        assert not differ, f"{len(differ)} blocks differ, the first at {differ[0]}"

    def close(self):
        os.close(self.image)


@pytest.fixture  # the forwarders end first: a target's nbdkit waits for its clients
def make_pair(make_target, make_forwarder, tmp_path):
    pairs = []

    def make(**options):
        pairs.append(Pair(make_forwarder, make_target, tmp_path, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def errno_of(call, *arguments):
    with pytest.raises(nbd.Error) as caught:
        call(*arguments)
    return caught.value.errnum


def test_export(make_forwarder):
    forwarder = make_forwarder(10 * MIB)
    guest = forwarder.connect("")
    assert guest.get_size() == 10 * MIB and not guest.is_read_only()
    for can in (guest.can_flush, guest.can_fua, guest.can_trim, guest.can_zero, guest.can_multi_conn, guest.can_cache):
        assert can()
    assert errno_of(guest.pread, 512, 0) == errno.EIO
    guest.pwrite(b"forgotten", 0)
    guest.flush()
    guest.cache(4096, 0)
    status = forwarder.ask("status")
    assert (status["mode"], status["fault"], status["queued_bytes"]) == ("idle", "none", 0)


def test_a_life(make_pair):
    """From the first start to a mirror, a checkpoint, and the other host's view of it."""
    content = random.Random(1).randbytes(3 * MIB)
    pair = make_pair(content=content)
    pair.mirror()
    pair.expect_equal()
    status = pair.forwarder.ask("status")
    assert (status["mode"], status["marked_bytes"], status["left_bytes"]) == ("mirroring", 0, 0)
    pair.write(b"a" * 10000, 12345)
    pair.zero(100000, 2 * MIB - 7)
    pair.guest.trim(CHUNK, 8 * MIB)
    pair.guest.flush()
    assert pair.seen() == content + bytes(13 * MIB)
    pair.checkpoint(1)
    pair.expect_equal()
    assert pair.forwarder.ask("status")["epoch"] == 1


def test_what_a_barrier_holds(make_pair):
    pair = make_pair()
    pair.mirror()
    pair.write(b"n" * 4096, 0)
    pair.forwarder.ask("barrier", epoch=7)
    primary = pair.target.connect("target")
    assert bytes(primary.pread(4096, 0)) == b"n" * 4096
    pair.write(b"m" * 4096, 0)
    pair.write(b"m" * 4096, MIB)
    assert pair.forwarder.ask("status")["held_bytes"] == 8192
    pair.target.ask("checkpoint", epoch=7)
    assert bytes(primary.pread(4096, 0)) == b"n" * 4096
    for epoch in (6, 8):
        with pytest.raises(Refused):
            pair.forwarder.ask("release", epoch=epoch)
    pair.forwarder.ask("barrier", epoch=7)  # asked again
    with pytest.raises(Refused, match="not released"):
        pair.forwarder.ask("barrier", epoch=8)
    pair.forwarder.ask("release", epoch=7)
    pair.forwarder.ask("release", epoch=7)
    pair.checkpoint(8)
    pair.expect_equal()


def test_marks_are_taken_back(make_pair):
    """A while after a checkpoint the map has nothing of what was before it."""
    pair = make_pair()
    pair.mirror()
    pair.write(b"x" * 4096, 5 * CHUNK)
    assert pair.forwarder.ask("status")["marked_bytes"] == CHUNK
    deadline, epoch = time.monotonic() + DEADLINE_S, 0
    while pair.forwarder.ask("status")["marked_bytes"] > 0:
        epoch += 1
        pair.checkpoint(epoch)
        assert time.monotonic() < deadline
    pair.write(b"y" * 4096, 5 * CHUNK)
    assert pair.forwarder.ask("status")["marked_bytes"] == CHUNK


class Writer(threading.Thread):
    """The guest: writes, zeroes and flushes at random until stopped."""

    def __init__(self, pair, seed=1, pause=0.0):
        super().__init__()
        self.pair, self.random, self.pause = pair, random.Random(seed), pause
        self.stopped = threading.Event()
        self.writes, self.error, self.longest = 0, None, 0.0

    def run(self):
        try:
            while not self.stopped.wait(self.pause):
                self.step()
        except (nbd.Error, OSError) as error:
            self.error = error

    def step(self):
        offset = self.random.randrange(self.pair.size // 512) * 512
        length = min(self.random.choice((512, 4096, 4096, 65536, 200 * 1024)), self.pair.size - offset)
        started = time.monotonic()
        if self.random.random() < 0.1:
            self.pair.zero(length, offset)
        else:
            self.pair.write(bytes([self.random.randrange(256)]) * length, offset)
        self.longest = max(self.longest, time.monotonic() - started)
        self.writes += 1

    def stop(self):
        self.stopped.set()
        self.join()
        assert self.error is None, self.error


@contextlib.contextmanager
def guest_that_writes(pair, **options):
    writer = Writer(pair, **options)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()


def test_sync_and_checkpoints_under_writes(make_pair):
    pair = make_pair(content=random.Random(2).randbytes(16 * MIB), target={"overlay_limit": "32M"})
    pair.forwarder.ask("alone", generation=1, first=True)
    with guest_that_writes(pair, pause=0.001) as writer:
        pair.sync(rate_limit=8 * MIB)
        pair.forwarder.wait_status(lambda status: status["synced"])
    assert writer.writes > 100
    pair.forwarder.ask("finish", timeout_ms=20000)
    pair.target.ask("mirror", generation=1, epoch=0)
    pair.expect_equal()
    pair.forwarder.ask("release", epoch=0)
    for epoch in range(1, 6):
        with guest_that_writes(pair, seed=epoch) as writer:
            while writer.writes <= 50 and writer.is_alive():
                time.sleep(0.001)
        pair.forwarder.ask("barrier", epoch=epoch, timeout_ms=20000)
        pair.target.ask("checkpoint", epoch=epoch)
        pair.expect_equal()
        pair.forwarder.ask("release", epoch=epoch)


def test_the_peer_is_killed(make_pair):
    """The guest goes on, what the peer lacks is in the map, and a new connection copies just that."""
    pair = make_pair(content=random.Random(3).randbytes(16 * MIB))
    pair.mirror()
    with guest_that_writes(pair, pause=0.001) as writer:
        pair.target.kill()
        status = pair.forwarder.wait_status(lambda status: status["mode"] == "alone")
        assert status["fault"] == "forwarding"
        before = writer.writes
        pair.forwarder.ask("alone", generation=2)
        while writer.writes < before + 20:
            time.sleep(0.001)
    assert writer.longest < 5
    marked = pair.forwarder.ask("status")["marked_bytes"]
    assert 0 < marked < pair.size
    pair.target.start()
    pair.sync(generation=2)
    status = pair.forwarder.wait_status(lambda status: status["synced"])
    assert status["copied_bytes"] <= marked
    pair.forwarder.ask("finish", timeout_ms=20000)
    pair.target.ask("mirror", generation=2, epoch=0)
    pair.expect_equal()


def test_the_peer_says_no(make_pair):
    """A target that takes no writes any more: the fault is the other disk's."""
    pair = make_pair()
    pair.mirror()
    pair.target.ask("failover", generation=2)
    pair.write(b"x" * 512, 0)
    status = pair.forwarder.wait_status(lambda status: status["mode"] == "alone")
    assert status["fault"] == "secondary-disk"
    assert status["marked_bytes"] == CHUNK
    with pytest.raises(Refused, match="not being mirrored"):
        pair.forwarder.ask("barrier", epoch=1)


def test_a_peer_that_hangs(make_pair, tmp_path):
    """No answer: the request's deadline ends the connection, a full window holds the guest up no longer than that."""
    pair = make_pair(timeout_ms=700, window_limit="4M", target={"nbdkit": ["--filter=pause"],
                                                                "pause-control": f"{tmp_path}/pause"})
    pair.mirror()
    os.kill(pair.target.process.pid, 19)
    try:
        started = time.monotonic()
        for i in range(8):
            pair.write(b"x" * MIB, i * MIB)
        assert 0.5 < time.monotonic() - started < 5
        status = pair.forwarder.wait_status(lambda status: status["mode"] == "alone")
    finally:
        os.kill(pair.target.process.pid, 18)
    assert status["fault"] == "forwarding" and "in time" in status["fault_text"]
    assert status["marked_bytes"] == 8 * MIB


def test_a_slow_peer_does_not_slow_the_guest(make_pair):
    pair = make_pair(target={"nbdkit": ["--filter=delay"], "delay-write": "50ms"})
    pair.mirror()
    started = time.monotonic()
    for i in range(100):
        pair.write(b"x" * 4096, i * 8192)
    assert time.monotonic() - started < 1
    started = time.monotonic()
    pair.checkpoint(1)
    assert time.monotonic() - started >= 0.05
    pair.expect_equal()


def test_giving_up_interrupts(make_pair):
    """`alone` ends a barrier that waits for a peer that does not answer."""
    pair = make_pair(timeout_ms=60000)
    pair.mirror()
    os.kill(pair.target.process.pid, 19)
    try:
        pair.write(b"x" * 4096, 0)
        failed = []

        def barrier():
            with pytest.raises(Refused, match="given up"):
                pair.forwarder.ask("barrier", epoch=1, timeout_ms=60000)
            failed.append(True)

        waiter = threading.Thread(target=barrier)
        waiter.start()
        pair.forwarder.wait_status(lambda status: status["holding"])
        started = time.monotonic()
        pair.forwarder.ask("alone", generation=2)
        waiter.join(DEADLINE_S)
        assert failed and time.monotonic() - started < 2
    finally:
        os.kill(pair.target.process.pid, 18)
    status = pair.forwarder.ask("status")
    assert (status["mode"], status["fault"], status["meta"]["generation"]) == ("alone", "none", 2)


def test_unfit_peers(make_pair, make_target, tmp_path):
    pair = make_pair()
    pair.forwarder.ask("alone", generation=1, first=True)
    small = make_target(8 * MIB, folder=f"{tmp_path}/small")
    with pytest.raises(Refused, match="same size"):
        pair.forwarder.ask("connect", host=small.nbd, generation=1)
    with pytest.raises(Refused, match="forwarding"):
        pair.forwarder.ask("connect", host=f"{tmp_path}/nobody", generation=1)
    with pytest.raises(Refused, match="TLS only"):
        pair.forwarder.ask("connect", host="127.0.0.1", port=1, generation=1)
    pair.forwarder.ask("alone", generation=5)
    with pytest.raises(Refused, match="older"):
        pair.forwarder.ask("connect", host=pair.target.nbd, generation=4)
    with pytest.raises(Refused, match="older"):
        pair.forwarder.ask("alone", generation=4)
    assert pair.forwarder.ask("status")["mode"] == "alone"


def test_a_new_process_knows_what_the_peer_lacks(make_pair):
    pair = make_pair(content=random.Random(4).randbytes(16 * MIB))
    pair.mirror()
    pair.write(b"x" * 4096, 3 * MIB)
    pair.forwarder.kill()
    pair.forwarder.start()
    pair.guest = pair.forwarder.connect("")
    pair.forwarder.ask("alone", generation=2)
    pair.write(b"y" * 4096, 5 * MIB)
    assert pair.forwarder.ask("status")["marked_bytes"] == 2 * CHUNK
    pair.sync(generation=2)
    pair.forwarder.wait_status(lambda status: status["synced"])
    pair.forwarder.ask("finish", timeout_ms=20000)
    assert pair.forwarder.ask("status")["copied_bytes"] == 2 * CHUNK
    pair.target.ask("mirror", generation=2, epoch=0)
    pair.expect_equal()


def test_quit(make_forwarder, make_target):
    """The process ends, a client or not."""
    for process in (make_forwarder(), make_target()):
        handle = process.connect("" if hasattr(process, "map") else "target")
        assert handle.get_size() > 0
        process.ask("quit")
        assert process.process.wait(DEADLINE_S) == 0
        process.process = None


def test_what_is_equal_is_not_sent(make_pair):
    """Two disks that nobody knows anything of are compared; what the other has already stays here."""
    content = random.Random(5).randbytes(16 * MIB)
    pair = make_pair(content=content)
    other = bytearray(content)
    other[3 * MIB:3 * MIB + 5] = b"other"
    other[9 * MIB:10 * MIB] = bytes(MIB)
    with open(pair.target.disk, "r+b") as disk:
        disk.write(other)
    pair.mirror()
    status = pair.forwarder.ask("status")
    assert status["copied_bytes"] == 16 * MIB
    assert status["equal_bytes"] == 16 * MIB - CHUNK - MIB
    assert status["sent_bytes"] == CHUNK + MIB
    pair.expect_equal()


def test_verify_finds_what_differs(make_pair):
    pair = make_pair(content=random.Random(6).randbytes(16 * MIB), target={"overlay_limit": "32M"})
    pair.mirror()
    with open(pair.target.disk, "r+b") as disk:
        disk.seek(5 * MIB + 100)
        disk.write(b"!")
    pair.forwarder.ask("verify")
    with guest_that_writes(pair, pause=0.01):
        pair.forwarder.wait_status(lambda status: status["verify"]["done_bytes"] > 4 * MIB)
    deadline, epoch = time.monotonic() + DEADLINE_S, 0
    while pair.forwarder.ask("status")["verify"]["state"] == "running":
        epoch += 1
        pair.checkpoint(epoch)
        assert time.monotonic() < deadline
    verify = pair.forwarder.ask("status")["verify"]
    assert (verify["state"], verify["differences"], verify["unsettled"]) == ("done", 1, 0)
    assert (verify["listed"][0]["offset"], verify["listed"][0]["length"]) == (5 * MIB, CHUNK)
    assert verify["listed"][0]["local"] != verify["listed"][0]["peer"]


def test_verify_ends_with_the_connection(make_pair):
    pair = make_pair(target={"nbdkit": ["--filter=delay"], "delay-read": "200ms"})
    pair.mirror()
    pair.forwarder.ask("verify")
    with pytest.raises(Refused, match="under way"):
        pair.forwarder.ask("verify")
    pair.target.kill()
    status = pair.forwarder.wait_status(lambda status: status["mode"] == "alone")
    assert status["verify"]["state"] in ("cancelled", "failed")


def certificates(folder, host):
    """The pair's authority and a certificate for @host, with nbdkit's names in its folder."""
    tool = f"{SOURCE}/deploy/colo-pki"
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(f"{folder}/pki"):
        subprocess.run([tool, "init", f"{folder}/pki"], check=True, capture_output=True)
    subprocess.run([tool, "host", f"{folder}/pki", host], check=True, capture_output=True)
    made = f"{folder}/pki/{host}"
    for name, file in (("ca-cert", "ca"), ("server-cert", host), ("server-key", f"{host}-key")):
        os.symlink(f"{made}/{file}.pem", f"{made}/{name}.pem")
    return made


def test_over_tls(make_forwarder, make_target, tmp_path):
    """One target with a TCP socket; the name in its certificate must be the one it is reached by."""
    server, client = certificates(str(tmp_path), "localhost"), certificates(str(tmp_path), "alpha")
    stranger = certificates(str(tmp_path / "other"), "alpha")
    target = make_target(8 * MIB, start=False, map=f"{tmp_path}/target-map")
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as tcp:
        local.bind(target.nbd)
        local.listen()
        port = tcp.getsockname()[1]
        start_with_sockets(target, [local, tcp], "--tls=on", f"--tls-certificates={server}", "--tls-verify-peer")
        target.wait_ready()
        target.ask("sync", generation=1)
        folders = ((client, "forward"), (stranger, "stranger"))
        good, bad = [make_forwarder(8 * MIB, folder=tmp_path / name, tls_ca=f"{folder}/ca.pem",
                                    tls_cert=f"{folder}/alpha.pem", tls_key=f"{folder}/alpha-key.pem")
                     for folder, name in folders]
        for forwarder in (good, bad):
            forwarder.ask("alone", generation=1, first=True)
        with pytest.raises(Refused, match="forwarding"):
            bad.ask("connect", host="localhost", port=port, generation=1)
        with pytest.raises(Refused, match="forwarding"):
            good.ask("connect", host="127.0.0.1", port=port, generation=1)
        good.connect("").pwrite(b"over TLS", 70000)
        good.ask("connect", host="localhost", port=port, generation=1)
        good.wait_status(lambda status: status["synced"])
        good.ask("finish")
        target.ask("mirror", generation=1, epoch=0)
        good.ask("release", epoch=0)
        good.connect("").pwrite(b"over TLS", 12345)
        good.ask("barrier", epoch=1)
        assert bytes(target.connect("target").pread(8, 12345)) == b"over TLS"
        assert not [name for name in os.listdir(good.folder) if name.startswith("colod-tls")]
        good.ask("alone", generation=2)
