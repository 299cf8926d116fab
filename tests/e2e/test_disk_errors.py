# SPDX-License-Identifier: LGPL-2.1-or-later
"""The seven disk errors (docs/block.md, "Errors"), each injected into a protected pair: by name, at once, and mended.

The second disk is on host b an export that fails or hangs when it is told to (lablib/exports.py), and on host a a qcow2 image
by qemu-storage-daemon. The guest's file system, with the writers, is on the first.
"""
import contextlib
import re
import threading
import time

import pytest
from lablib import control
from lablib.disk import wait_images_equal
from lablib.util import wait_until
from pair import REPROTECT_S
from test_disk import writing

pytestmark = pytest.mark.long  # each of them is in disk-errors.scenario, too
FAILING = pytest.mark.lab(disk_mib=64, disks=2, exports={"a1": "qcow2", "b1": "failing"}, mode="lockstep")
TOLD_S = 5  # from the request that fails to `Not protected`: an error shows at once, silence after message-timeout-ms


@pytest.fixture
def failing(pair):
    """The export of b. What fails it must be b's as a secondary."""
    if pair.primary != "a":
        mark = pair.mark()
        pair.lab.host("a").call("failover", timeout=20)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        pair.primary, pair.secondary = "a", "b"
    return pair.lab.host("b").export(1)


def write_block(pair, block, text="x"):
    pair.lab.guest_script(f"yes {text} | head -c 4096 | dd of=/dev/vdb bs=4096 seek={block} oflag=direct conv=notrunc 2>&1")


def read_block(pair, block):
    return pair.lab.guest_script(f"dd if=/dev/vdb bs=4096 skip={block} count=1 iflag=direct 2>/dev/null | head -n 1").strip()


@contextlib.contextmanager
def looping(pair, command):
    """The guest does this all the while: whenever its secondary runs, it does so too."""
    stop = f"/tmp/stop-{time.monotonic_ns()}"
    pair.lab.guest_script(f"(while [ ! -e {stop} ]; do {command}; done; touch {stop}ped) >/dev/null 2>&1 &")
    try:
        yield
    finally:
        pair.lab.guest_script(f"touch {stop}; while [ ! -e {stop}ped ]; do sleep 0.02; done")


READ = "dd if=/dev/vdb of=/dev/null bs=4096 skip=3100 count=100 iflag=direct"


def ask_plugin(pair, host, kind):
    """The status of a process of the second disk, by itself: colod hears of what matters to it."""
    return control.call(pair.lab.host(host).socket.replace("control.sock", f"disk1-{kind}.ctl"), "status", 5)


def stop_with_overlay_used(pair):
    """PVM stands, all it wrote has been mirrored, and SVM has written since the last checkpoint."""
    for _ in range(20):
        write_block(pair, 6000, "epoch")
        pair.lab.freeze("a", "qemu")
        wait_until(lambda: ask_plugin(pair, "a", "mirror")["queued_bytes"] == 0, 5, "everything is mirrored")
        if ask_plugin(pair, "b", "target")["active"]["used_bytes"] > 0:
            return
        pair.lab.thaw("a", "qemu")
    pytest.fail("SVM's writes do not stay in its overlay")


class Reasons(threading.Thread):
    """Why a host is not protected, each reason once, from the moment on at which this is made."""

    def __init__(self, pair, name):
        super().__init__(daemon=True)
        self.pair, self.name = pair, name
        self.start_s = time.monotonic()
        self.seen, self.stopping = {}, threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(0.01):
            status = self.pair.lab.host(self.name).status()
            if status and not status["protected"]:
                self.seen.setdefault(status["reason"], time.monotonic() - self.start_s)

    def wait(self, pattern, seconds=TOLD_S):
        """Not protected, and for this reason, by what the host says of itself."""
        reason = wait_until(lambda: next((text for text in list(self.seen) if re.search(pattern, text)), None), seconds,
                            lambda: f"{self.name} is not protected because of '{pattern}'; it says {self.seen}")
        self.stopping.set()
        print(f"{self.name} after {self.seen[reason]:.2f} s: {reason}")


@contextlib.contextmanager
def undisturbed(pair):
    """Around what fails: the guest goes on, and when it is over the pair is protected again with equal disks."""
    with writing(pair, kinds=("records",)) as writers:
        mark = pair.mark("a")
        yield mark
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert pair.lab.primary() == "a"
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, "a")


def check_fault(pair, fault, action, reason, told=None):
    """What the guest does while the export has this fault ends protection, for this reason by name, and disturbs nothing else.

    told: what b then says of it among its events, if anything.
    """
    with undisturbed(pair) as mark:
        with fault:
            reasons = Reasons(pair, "a")
            action()
            reasons.wait(reason)
        if told:
            pair.assert_told("b", mark, told)


@FAILING
def test_other_formats(pair, failing):
    """To a disk of another format and back: what was written on either host is in both."""
    assert "qcow2" in pair.lab.settings.exports.values() and failing.is_alive()
    with writing(pair, kinds=("records",)) as writers:
        write_block(pair, 100, "before")
        mark = pair.mark("a")
        pair.lab.kill("a", "qemu")
        assert pair.lab.wait_protected_after(mark.generation, REPROTECT_S) == "b"
        write_block(pair, 200, "between")
        mark = pair.mark("b")
        pair.lab.kill("b", "qemu")
        assert pair.lab.wait_protected_after(mark.generation, REPROTECT_S) == "a"
        assert (read_block(pair, 100), read_block(pair, 200)) == ("before", "between")
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, "a")


@FAILING
def test_hidden_copy(pair, failing):
    """The old block of a mirrored write cannot be read. One that SVM has written already need not be."""
    check_fault(pair, failing.failing("pread"), lambda: [write_block(pair, block) for block in range(1000, 1020)],
                "disk disk1: .*Input/output error", "disk: hidden-copy: disk1: hidden-copy")


@FAILING
def test_secondary_disk(pair, failing):
    """A mirrored write fails in the disk itself."""
    check_fault(pair, failing.failing("pwrite", "zero", "trim"), lambda: write_block(pair, 2000),
                "disk disk1: secondary-disk: ", "disk: secondary-disk: disk1: secondary-disk")


@FAILING
def test_active_disk(pair, failing):
    """A read of SVM's fails: its guest is told, as by any disk. The guest that counts has read its own; a checkpoint ends the
    difference, and the pair stays protected."""
    write_block(pair, 3000, "here")
    pair.wait_epochs(1)
    with writing(pair, kinds=("records",)) as writers:
        generation = pair.status("a")["generation"]
        with failing.failing("pread"), looping(pair, READ):
            pair.wait("b", lambda s: s["disks"][1]["target"]["faults"].get("active-disk"), TOLD_S, "counts it by name")
            assert read_block(pair, 3000) == "here"
            pair.wait_epochs(2)
        assert pair.status("a")["protected"] and pair.status("a")["generation"] == generation
        assert pair.status("b")["disks"][1]["target"]["stale"] == "none"
        assert read_block(pair, 3000) == "here"
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, "a")


@FAILING
def test_active_disk_hangs(pair, failing):
    """QEMU cannot stop SVM for the next checkpoint while a request of its disk is under way: its deadline ends SVM."""
    with undisturbed(pair) as mark:
        with failing.hanging():
            reasons = Reasons(pair, "a")
            with looping(pair, READ):
                reasons.wait(".")
        pair.assert_told("b", mark, "no CHECKPOINT_REPLY from QEMU")


@FAILING
def test_emptying(pair, failing):
    """A read for `colo verify` hangs in the disk, and the checkpoint that has to empty the overlays does not get its turn."""
    check_fault(pair, failing.hanging(), lambda: pair.lab.host("a").call("verify"),
                "disk disk1: emptying: .*, on host b", "disk1: emptying: requests under way did not end in time")


@FAILING
def test_mirrored_write_hangs(pair, failing):
    """It is not answered in time: `forwarding`, as if the link did not answer."""
    check_fault(pair, failing.hanging(), lambda: write_block(pair, 5000), "disk disk1: forwarding: .*in time")


@FAILING
def test_failover_commit(pair, failing):
    """The overlays cannot be copied into the disk: the guest goes on with what it saw, and the commit is given again."""
    with writing(pair, kinds=("records",)) as writers:
        mark = pair.mark("a")
        stop_with_overlay_used(pair)
        with failing.failing("pwrite"):
            pair.lab.kill("a", "qemu")
            pair.wait("b", lambda s: s["state"] == "alone" and "disk disk1: failover-commit: " in s["reason"], 10,
                      "goes on, and says that the commit fails")
            writers.wait_more(5)
        pair.lab.wait_protected_after(mark.generation, REPROTECT_S)
        assert pair.lab.primary() == "b"
        writers.wait_more(5)
        writers.stop_and_verify(pair.lab)
    wait_images_equal(pair.lab, "b")
