# SPDX-License-Identifier: LGPL-2.1-or-later
"""disk.py - what the lab's client does to the guest's disk (guest-disk.c), and checks of both hosts' images."""
import filecmp
import os
import subprocess
import time

from .clients import Client
from .control import ControlGone
from .util import LabError, wait_until

PORT = 10
ANSWER_S = 30


class DiskConnection:
    """Commands to the guest's disk program, one at a time."""

    def __init__(self, lab, timeout=ANSWER_S):
        self.sock = lab.client_socket()
        self.sock.settimeout(timeout)
        self.sock.connect(("10.77.0.2", PORT))
        self.file = self.sock.makefile()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.sock.close()

    def answer(self, command):
        self.sock.sendall(command.encode() + b"\n")
        line = self.file.readline()
        if not line.endswith("\n"):
            raise LabError(f"the guest closed the connection in '{command}'")
        return line.strip()

    def call(self, command):
        """What stands behind `ok`, as a number if there is one."""
        line = self.answer(command)
        if not line.startswith("ok"):
            raise LabError(f"the guest answered '{line}' to '{command}'")
        return int(line[3:] or 0)


class Writer(Client):
    """Puts numbered records, or rows, one after the other; .acked of them are on the disk, says the guest.

    kind: "records", "wal" or "delete".
    """

    def __init__(self, lab, kind="records", name=None, pause_s=0.0):
        super().__init__(lab, name or f"writer of {kind}")
        self.kind = kind
        self.target = f"db {kind}" if kind in ("wal", "delete") else f"put {kind}"
        self.acked = 0
        self.times_ns = []
        self.pause_s = pause_s

    def work(self):
        with DiskConnection(self.lab) as guest:
            while not self.stopping.is_set():
                guest.call(f"{self.target} {self.acked + 1}")
                self.acked += 1
                self.times_ns.append(time.monotonic_ns())
                self.stopping.wait(self.pause_s)

    def wait_more(self, count=1, seconds=30):
        goal = self.acked + count

        def reached():
            self.check()
            return self.acked >= goal
        wait_until(reached, seconds, lambda: f"{self.name} has {self.acked} acknowledged, wanted {goal}")

    def verify(self, at_least=None):
        """Everything acknowledged is there and right; one more may be (its answer got lost)."""
        check = f"db-check {self.kind}" if self.kind in ("wal", "delete") else f"check {self.kind}"
        wanted = self.acked if at_least is None else at_least
        with DiskConnection(self.lab) as guest:
            count = guest.call(check)
        if not wanted <= count <= wanted + 1:
            raise LabError(f"{self.name}: {wanted} were acknowledged and {count} are there")
        return count

    def verify_at_least(self, wanted):
        """The same while it goes on."""
        check = f"db-check {self.kind}" if self.kind in ("wal", "delete") else f"check {self.kind}"
        with DiskConnection(self.lab) as guest:
            for _ in range(20):  # the other connection's transaction may be in the way
                answer = guest.answer(check)
                if "locked" not in answer:
                    break
                time.sleep(0.1)
        if not answer.startswith("ok") or int(answer[3:]) < wanted:
            raise LabError(f"{self.name}: {wanted} were acknowledged; the guest answered '{answer}'")


def fsck(lab):
    """The file system is clean, by e2fsck of the unmounted disk. Nobody may have files open."""
    lab.guest_script("umount /disk && /bin/e2fsck -fn /dev/vda >/tmp/fsck 2>&1; status=$?; "
                     "mount -t ext4 /dev/vda /disk; [ $status = 0 ] || cat /tmp/fsck; exit $status", 60)


def disks(lab, name):
    status = lab.host(name).status()
    return status["disks"] if status else []


def images_equal(lab):
    """Both hosts' images, byte for byte. Only while nothing is under way."""
    return all(_image_equal(lab, number) for number in lab.settings.disk_numbers())


def _image_equal(lab, number):
    hosts = [lab.host(name) for name in ("a", "b")]
    if not any(host.export(number) for host in hosts):
        return filecmp.cmp(hosts[0].image(number), hosts[1].image(number), shallow=False)
    names = [host.export(number).uri if host.export(number) else host.image(number) for host in hosts]
    compare = [f"{os.path.dirname(lab.settings.qemu)}/qemu-img", "compare", "-q", "-U", "-f", "raw", "-F", "raw", *names]
    return subprocess.run(compare, check=False).returncode == 0


def wait_images_equal(lab, primary, seconds=20):
    """With a guest that writes nothing: after a checkpoint both images are equal."""
    def check():
        try:
            lab.host(primary).call("checkpoint", timeout=10)
        except (LabError, ControlGone):
            return False
        return images_equal(lab)
    wait_until(check, seconds, lambda: f"equal images; {lab.describe()}", poll=0.2)
