# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks of a protected pair: what was acknowledged as written is there, whoever dies."""
import contextlib
import os
import signal
import subprocess
import time

import pytest
from lablib import control
from lablib.disk import DiskConnection, Writer, disks, fsck, wait_images_equal
from lablib.util import LabError, wait_until
from pair import REPROTECT_S, STALL_TOLD

DISK = pytest.mark.lab(disk_mib=64)
MODES = pytest.mark.parametrize("mode", [pytest.param("buffered", marks=pytest.mark.lab(disk_mib=64, mode="buffered")),
                                         pytest.param("lockstep", marks=pytest.mark.lab(disk_mib=64, mode="lockstep"))])


class Writers:
    """Records and two data bases, all of them anew in each test."""

    def __init__(self, pair, kinds=("records", "wal", "delete")):
        pair.lab.guest_script("rm -f /disk/records* /disk/*.db*")
        self.writers = [Writer(pair.lab, kind) for kind in kinds]
        for writer in self.writers:
            writer.start()
        self.wait_more(5)

    def wait_more(self, count, seconds=30):
        for writer in self.writers:
            writer.wait_more(count, seconds)

    def stop_and_verify(self, lab):
        for writer in self.writers:
            writer.stop()
        for writer in self.writers:
            writer.verify()
        fsck(lab)

    def abandon(self):
        for writer in self.writers:
            writer.stopping.set()


@contextlib.contextmanager
def writing(pair, **options):
    writers = Writers(pair, **options)
    try:
        yield writers
    finally:
        writers.abandon()


def wait_booted(lab):
    """After a start anew: the pair may be protected while the guest still boots."""
    wait_until(lambda: lab.http_get("/index.html") is not None, 60, lambda: f"the guest answers; {lab.describe()}")


def copied_bytes(lab, primary):
    return sum(disk["forwarder"]["copied_bytes"] for disk in disks(lab, primary))


@MODES
def test_primary_killed(pair, mode):
    """The survivor has all that was acknowledged; the pair protects itself again, and its disks are equal."""
    load = pair.load()
    with writing(pair) as writers:
        mark = pair.mark()
        pair.lab.kill(pair.primary, "qemu")
        pair.takeover(pair.secondary, mark, load, STALL_TOLD)
        pair.assert_told(pair.secondary, mark, "failover is durable")
        writers.wait_more(5)
        pair.lab.wait_protected(pair.secondary, REPROTECT_S)
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    load.stop()
    wait_images_equal(pair.lab, pair.secondary)


@DISK
def test_returning_peer_gets_what_changed_only(pair):
    with DiskConnection(pair.lab) as guest:
        guest.call("fill ballast 16384")
        guest.call("sync")
    pair.lab.host(pair.primary).call("checkpoint")  # until then it is what SVM has of its own, which a survivor copies
    forwarder = pair.lab.host(pair.primary).socket.replace("control.sock", "disk0-mirror.ctl")
    # Asked itself: what colod knows of it may be of the time before the ballast.
    wait_until(lambda: control.call(forwarder, "status", 5)["marked_bytes"] < 4 << 20, 20, "the ballast on the other host")
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
    assert copied_bytes(pair.lab, pair.secondary) < 8 << 20
    wait_images_equal(pair.lab, pair.secondary)


@DISK
def test_returning_peer_of_a_guest_that_writes(pair):
    """What was written just before the peer came back is not waited for: QEMU has drained."""
    with writing(pair) as writers:
        mark = pair.mark()
        pair.lab.kill(pair.secondary, "host")
        pair.wait(pair.primary, lambda s: s["state"] == "alone", 15, "goes on alone")
        with DiskConnection(pair.lab) as guest:
            guest.call("fill lately 4096")
            guest.call("sync")
        pair.lab.start(pair.secondary)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert disks(pair.lab, pair.primary)[0]["forwarder"]["sync_ms"] < 4000
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.primary)


@DISK
def test_planned_failover(pair):
    with writing(pair) as writers:
        mark = pair.mark()
        pair.lab.host(pair.secondary).call("failover", timeout=20)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert pair.lab.primary() == pair.secondary
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.secondary)


@DISK
def test_secondary_killed(pair):
    with writing(pair) as writers:
        mark = pair.mark()
        pair.lab.kill(pair.secondary, "qemu")
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.primary)


@DISK
def test_colod_of_a_lone_primary_restarted(pair):
    """The next colod finds QEMU and the disks' processes, and protects the VM again."""
    with writing(pair, kinds=("records",)) as writers:
        pair.lab.kill(pair.secondary, "host")
        pair.wait_state(pair.primary, "alone", 15)
        writers.wait_more(5)
        plugins = pair.lab.host(pair.primary).plugins()
        pair.lab.kill(pair.primary, "colod")
        pair.lab.start(pair.primary)
        pair.wait_state(pair.primary, "alone", 15)
        writers.wait_more(5)
        assert pair.lab.host(pair.primary).plugins()["disk0-mirror"].pid == plugins["disk0-mirror"].pid
        pair.lab.start(pair.secondary)
        pair.lab.wait_protected(pair.primary, REPROTECT_S)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.primary)


@pytest.mark.long  # also power.scenario
@DISK
def test_both_hosts_crash_at_once(pair):
    """The host whose disk is UpToDate starts the VM again, the other one does not, and says why."""
    pair.spoil()
    with writing(pair) as writers:
        acked = [writer.acked for writer in writers.writers]
        for name in ("a", "b"):
            pair.lab.kill(name, "host")
    pair.lab.start(pair.secondary)
    time.sleep(7)  # longer than the grace after which a host that may starts its VM
    status = pair.status(pair.secondary)
    assert status["state"] == "idle" and not pair.has_qemu(pair.secondary)
    assert "must not start from the disk here" in status["reason"]
    with pytest.raises(LabError, match="must not start from the disk here"):
        pair.lab.host(pair.secondary).call("failover", timeout=10)
    pair.lab.start(pair.primary)
    primary = pair.lab.wait_protected(None, 90)
    assert primary == pair.primary
    wait_booted(pair.lab)
    for writer, count in zip(writers.writers, acked):
        with DiskConnection(pair.lab) as guest:
            check = f"db-check {writer.kind}" if writer.kind != "records" else "check records"
            assert guest.call(check) >= count
    fsck(pair.lab)
    wait_images_equal(pair.lab, primary)


@pytest.mark.long  # also power.scenario
@DISK
def test_survivor_crashes_too(pair):
    """The survivor's disk is the newest: it starts the VM, whatever the old primary's says of itself."""
    pair.spoil()
    with writing(pair, kinds=("records",)) as writers:
        pair.lab.kill(pair.primary, "host")
        pair.wait(pair.secondary, lambda s: s["state"] == "alone", 15, "alone")
        writers.wait_more(5)
        acked = writers.writers[0].acked
        pair.lab.kill(pair.secondary, "host")
    pair.lab.start(pair.primary)
    time.sleep(7)  # longer than the grace after which a host that may starts its VM
    assert not pair.has_qemu(pair.primary)
    pair.assert_reason(pair.primary)
    pair.lab.start(pair.secondary)
    assert pair.lab.wait_protected(None, 90) == pair.secondary
    wait_booted(pair.lab)
    with DiskConnection(pair.lab) as guest:
        assert guest.call("check records") >= acked
    fsck(pair.lab)


# Faults of the disks themselves (docs/block.md, "Errors")

@pytest.mark.long  # also kill-secondary.scenario
@DISK
def test_forwarding_lost(pair):
    """The forwarder dies: the primary goes on alone, as after any loss of its peer; the guest notices nothing."""
    with writing(pair) as writers:
        mark = pair.mark()
        pair.lab.host(pair.primary).plugins()["disk0-mirror"].kill(signal.SIGKILL)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert pair.lab.primary() == pair.primary
        pair.assert_told(pair.primary, mark, "disk-fault: a disk is not replicated any more.*forwarding")
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.primary)


@pytest.mark.long  # also kill-secondary.scenario
@DISK
def test_target_killed(pair):
    """SVM has lost its disk: it is given up, and the primary goes on."""
    with writing(pair) as writers:
        mark = pair.mark()
        pair.lab.host(pair.secondary).plugins()["disk0-target"].kill(signal.SIGKILL)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert pair.lab.primary() == pair.primary
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.primary)


@DISK
def test_target_killed_with_the_primary(pair):
    """A secondary whose disk is gone is not promoted, even if nobody else is left."""
    pair.spoil()
    mark = pair.mark()
    pair.lab.freeze(pair.primary, "host")
    pair.lab.host(pair.secondary).plugins()["disk0-target"].kill(signal.SIGKILL)
    pair.wait_state(pair.secondary, "idle", 15)
    assert not pair.has_qemu(pair.secondary)
    pair.assert_told(pair.secondary, mark, "lost its view of a disk|VM here is not whole")
    pair.lab.thaw(pair.primary, "host")
    pair.lab.wait_protected(pair.primary, REPROTECT_S)


@pytest.mark.lab(disk_mib=64, overlay_mib=2)
def test_hidden_disk_full(pair):
    """Far more is written within one epoch than the hidden disk takes: by name, and the primary goes on."""
    with writing(pair, kinds=("records",)) as writers:
        mark = pair.mark()
        with DiskConnection(pair.lab) as guest:
            guest.call("fill large 24576")
            guest.call("sync")
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        pair.assert_told(pair.secondary, mark, "hidden-full")
        pair.assert_told(pair.primary, mark, "disk-fault: a disk is not replicated any more.*No space left")
        assert pair.lab.primary() == pair.primary
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.primary)


@pytest.mark.lab(disk_mib=64, overlay_mib=24, mode="lockstep", interval_ms=30000)
def test_overlay_three_quarters_full(pair):
    """A checkpoint makes room before an overlay is full."""
    mark = pair.mark()
    before = pair.status(pair.primary)["checkpoint"]["by_cause"]["overlay"]
    pair.lab.guest_command("status")
    with DiskConnection(pair.lab, timeout=60) as guest:
        guest.sock.sendall(b"fill large 20480\nsync\n")
        pair.wait(pair.primary, lambda s: s["checkpoint"]["by_cause"]["overlay"] > before, 9, "a checkpoint for the overlay")
    assert pair.status(pair.primary)["generation"] == mark.generation
    assert pair.lab.primary() == pair.primary


@pytest.mark.lab(disk_mib=64, mode="buffered", images_fs_mib={"a": 12, "b": 12})
def test_disks_of_both_hosts_full(pair):
    """The guest gets ENOSPC from its disk, as it would without us; what was acknowledged before stays."""
    with writing(pair, kinds=("records",)) as writers:
        writers.writers[0].stop()
        with DiskConnection(pair.lab, timeout=60) as guest:
            guest.answer("fill large 24576")
            guest.answer("sync")
        pair.lab.guest_script("dmesg | grep -q 'I/O error\\|critical space'", 30)
        assert pair.status(pair.primary)["role"] == "primary"
        assert pair.lab.http_get("/index.html", 10)
        writers.writers[0].verify()
    pair.spoil()


@pytest.mark.lab(disk_mib=64, mode="buffered", images_fs_mib={"b": 12})
def test_secondary_disk_full(pair):
    """By name; the primary goes on alone, and the secondary's disk is not fit for anything until it is copied."""
    pair.spoil()
    assert pair.primary == "a"
    with writing(pair) as writers:
        mark = pair.mark()
        with DiskConnection(pair.lab, timeout=60) as guest:
            guest.call("fill large 16384")
            guest.call("sync")
        status = pair.wait("a", lambda s: s["generation"] > mark.generation and s["state"] == "alone", 20, "goes on alone")
        pair.assert_told("a", mark,
                         "disk-fault: a disk is not replicated any more: disk disk0: secondary-disk: No space left")
        pair.assert_told("b", None, "disk: secondary-disk: ")
        assert not status["protected"]
        writers.wait_more(5)
        pair.lab.kill("a", "colod")  # nobody forbids it to be promoted but its disk
        pair.lab.kill("a", "qemu")
        pair.wait("b", lambda s: s["state"] == "idle" and "must not start from the disk here" in s["reason"], 20,
                  "refuses to start")
        assert not pair.has_qemu("b")


@pytest.mark.long  # also freeze.scenario
@DISK
def test_target_hangs(pair):
    """The primary does not wait longer than for any message; the guest notices nothing but a pause."""
    with writing(pair) as writers:
        mark = pair.mark()
        target = pair.lab.host(pair.secondary).plugins()["disk0-target"]
        target.kill(signal.SIGSTOP)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert pair.lab.primary() == pair.primary
        assert not target.is_alive(), "the process that hung is still there"
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.primary)


@DISK
def test_failover_commit_fails(pair):
    """The commit record cannot be written: nothing of the guest is let out until it can be, and nothing is lost."""
    in_the_way = f"{pair.lab.host(pair.secondary).dir}/overlays/disk0.overlays/commit.new"
    with writing(pair) as writers:
        os.mkdir(in_the_way)  # where the record is to be written
        mark = pair.mark()
        pair.lab.kill(pair.primary, "qemu")
        pair.wait(pair.secondary, lambda s: s["state"] == "taking-over" and "failover-commit" in s["reason"], 10,
                  "cannot make the failover durable, and says so")
        time.sleep(7)  # longer than the state's own deadline
        assert pair.status(pair.secondary)["state"] == "taking-over"
        assert pair.sniffer.count(pair.secondary, mark.ns) == 0
        os.rmdir(in_the_way)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert pair.lab.primary() == pair.secondary
        writers.wait_more(5, 60)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.secondary)


@pytest.mark.lab(disk_mib=64, disks=2)
def test_two_disks(pair):
    pair.lab.guest_script("dd if=/dev/zero of=/dev/vdb bs=64k count=16 conv=fsync 2>&1; echo second | dd of=/dev/vdb bs=4096 conv=fsync 2>&1")
    with writing(pair) as writers:
        mark = pair.mark()
        pair.lab.kill(pair.primary, "qemu")
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        writers.wait_more(5)
        assert "second" in pair.lab.guest_script("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vdb bs=6 count=1 2>/dev/null")
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, pair.secondary)


@DISK
def test_verify(pair):
    """`colo verify` while the guest writes; a block changed behind our back shows."""
    colo = [f"{pair.lab.settings.build}/colod/colo", "--socket", pair.lab.host(pair.primary).socket, "verify"]
    with writing(pair, kinds=("records",)):
        done = subprocess.run(colo, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "disk0: equal" in done.stdout, done.stdout + done.stderr
    with open(pair.lab.host(pair.secondary).image(), "r+b") as image:
        image.seek(60 << 20)
        old = image.read(1)
        image.seek(60 << 20)
        image.write(bytes([old[0] ^ 1]))
    done = subprocess.run(colo, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"offset {60 << 20}" in done.stdout, done.stdout + done.stderr
    pair.spoil()
