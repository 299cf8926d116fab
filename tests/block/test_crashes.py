# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_crashes.py - both disks are equal after whatever came between: processes and hosts that die, in any order

A host that crashes loses what its disk was not told to flush: a library in the target's process keeps a copy of the
disk at each flush, and each block of the disk becomes, at random, what it was then. The map of that host is given the
boot id of another life. Only what the maps say is copied, so a difference that neither has stays, and is found here.

COLOD_CRASH_SEEDS   how many orders of events (default 3)
"""
import os
import random
import re
import subprocess

import pytest
from conftest import Forwarder, Target, makers

MIB = 1 << 20
SIZE = 4 * MIB + 4096
BLOCK = 4096
SEEDS = int(os.environ.get("COLOD_CRASH_SEEDS", "3"))
ROUNDS = 5

KEEPER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char buffer[1 << 16];

int fdatasync(int fd)
{
    char link[64], path[PATH_MAX] = "", new_copy[PATH_MAX], copy[PATH_MAX];
    const char *disk = getenv("COLOD_TEST_DISK");
    off_t at = 0;
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if (!disk || readlink(link, path, sizeof(path) - 1) < 0 || strcmp(path, disk) != 0)
        return fsync(fd);
    pthread_mutex_lock(&mutex);
    snprintf(new_copy, sizeof(new_copy), "%s.flushed.new", disk);
    snprintf(copy, sizeof(copy), "%s.flushed", disk);
    int to = open(new_copy, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    while ((n = pread(fd, buffer, sizeof(buffer), at)) > 0) {
        if (pwrite(to, buffer, n, at) != n)
            abort();
        at += n;
    }
    close(to);
    rename(new_copy, copy);
    pthread_mutex_unlock(&mutex);
    return 0;
}
"""


@pytest.fixture(scope="session")
def keeper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keeper")
    with open(folder / "keeper.c", "w", encoding="utf-8") as file:
        file.write(KEEPER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", folder / "keeper.so", folder / "keeper.c", "-pthread"],
                   check=True)
    return f"{folder}/keeper.so"


class KeptTarget(Target):
    """A target whose flushes are kept."""

    keeper = None

    def command(self, *sockets):
        return ["env", f"LD_PRELOAD={self.keeper}", f"COLOD_TEST_DISK={self.disk}", *super().command(*sockets)]


@pytest.fixture
def make_kept_target(tmp_path, keeper):
    KeptTarget.keeper = keeper
    yield from makers(KeptTarget, tmp_path)


@pytest.fixture
def make_forwarder(tmp_path):
    yield from makers(Forwarder, tmp_path)


def set_other_boot(path):
    """The map was last armed in another life of its host."""
    with open(path, "r+b") as file:
        header = bytearray(file.read(512))
        if header[24] & 1:
            return  # clean: not armed
        header[32:68] = b"00000000-0000-0000-0000-000000000000"
        done = subprocess.run(["xxhsum", "-H3", "-"], input=bytes(header[:504]), capture_output=True, check=True)
        header[504:] = bytes.fromhex(re.search(rb"[0-9a-f]{16}", done.stdout).group().decode())
        file.seek(0)
        file.write(header)


class Pair:
    """Two hosts; `primary` and `secondary` change places at a failover."""

    def __init__(self, make_forwarder, make_target, tmp_path, seed):
        self.random = random.Random(seed)
        self.makers = make_forwarder, make_target
        self.hosts = [tmp_path / "a", tmp_path / "b"]
        self.generation = self.epoch = 0
        self.log = []
        for host in self.hosts:
            os.makedirs(host)
            with open(host / "disk", "wb") as disk:
                disk.write(self.random.randbytes(SIZE))
        self.forwarder = self.target = self.guest = self.image = None
        self.pending = []
        self.start_forwarder(first=True)
        self.start_target()

    def start_forwarder(self, first=False):
        self.forwarder = self.makers[0](SIZE, folder=str(self.hosts[0]))
        self.generation += first or self.random.randrange(2)
        self.forwarder.ask("alone", generation=self.generation, first=first)
        self.guest = self.forwarder.connect("")
        self.image = os.open(self.forwarder.disk, os.O_RDWR)

    def start_target(self):
        host = self.hosts[1]
        self.target = self.makers[1](SIZE, folder=str(host), map=f"{host}/map", overlay_limit="16M")

    # --- The guest ---

    def drain(self):
        """QEMU has been told to stand still."""
        for data, offset in self.pending:
            os.pwrite(self.image, data, offset)
        self.pending.clear()

    def write(self):
        """Local first, or the forwarder first and locally a while later."""
        length = self.random.choice((512, 4096, 4096, 20000, 100000))
        offset = self.random.randrange((SIZE - length) // 512) * 512
        if self.random.random() < 0.1:
            offset += 7  # QEMU's guests do not; NBD clients may
        data = self.random.randbytes(length)
        if self.random.random() < 0.5 or len(self.pending) > 8:
            self.drain()
        if self.random.random() < 0.15:
            self.drain()
            data = bytes(length)
            self.guest.zero(length, offset)
            os.pwrite(self.image, data, offset)
            return
        self.guest.pwrite(data, offset)
        self.pending.append((data, offset))

    def write_some(self, most=30):
        for _ in range(self.random.randrange(most)):
            self.write()

    def secondary_writes(self):
        """What SVM does is its own until a failover."""
        active = self.target.connect("active")
        for _ in range(self.random.randrange(20)):
            length = self.random.choice((512, 4096, 70000))
            active.pwrite(self.random.randbytes(length), self.random.randrange((SIZE - length) // 512) * 512)

    # --- colod ---

    def connect(self, **arguments):
        self.target.ask("sync", generation=self.generation)
        self.forwarder.ask("connect", host=self.target.nbd, generation=self.generation, timeout_ms=20000, **arguments)

    def protect(self):
        """Until both are equal, which is what all is about."""
        self.connect()
        self.write_some()
        self.drain()
        self.forwarder.ask("finish", timeout_ms=30000)
        self.expect_equal()
        self.epoch = self.forwarder.ask("status")["epoch"]
        self.target.ask("mirror", generation=self.generation, epoch=self.epoch)
        self.forwarder.ask("release", epoch=0)

    def expect_equal(self):
        disks = []
        for host in self.hosts:
            with open(host / "disk", "rb") as disk:
                disks.append(disk.read())
        differ = [at for at in range(0, SIZE, BLOCK) if disks[0][at:at + BLOCK] != disks[1][at:at + BLOCK]]
        assert not differ, f"{len(differ)} blocks differ, first {differ[0]}, after {self.log}"

    def checkpoint(self):
        self.drain()
        self.epoch += 1
        self.forwarder.ask("barrier", epoch=self.epoch, timeout_ms=20000)
        self.target.ask("checkpoint", epoch=self.epoch)
        self.forwarder.ask("release", epoch=self.epoch)

    def run_epochs(self):
        for _ in range(self.random.randrange(4)):
            self.write_some()
            self.secondary_writes()
            self.checkpoint()
            if self.random.random() < 0.5:  # the forwarder takes marks back
                self.forwarder.wait_status(lambda status, epoch=self.epoch: status["queued_bytes"] == 0)
        self.write_some()
        self.secondary_writes()

    # --- What happens to it ---

    def lose_unflushed(self, host):
        flushed = host / "disk.flushed"
        if flushed.exists():
            with open(flushed, "rb") as old, open(host / "disk", "r+b") as disk:
                for at in range(0, SIZE, BLOCK):
                    block = old.read(BLOCK)
                    if self.random.random() < 0.5:
                        disk.seek(at)
                        disk.write(block)
        set_other_boot(host / "map")

    def alone(self):
        self.drain()
        self.generation += 1
        self.forwarder.ask("alone", generation=self.generation)
        self.write_some()
        self.start_target()

    def secondary_process_dies(self):
        self.target.kill()
        self.alone()

    def secondary_host_crashes(self):
        self.target.kill()
        self.lose_unflushed(self.hosts[1])
        self.alone()

    def secondary_host_crashes_in_a_sync(self):
        self.target.kill()
        self.alone()
        self.connect(rate_limit=self.random.choice((MIB, 4 * MIB)))
        self.write_some()
        if self.random.random() < 0.7:
            self.forwarder.wait_status(lambda status: status["copied_bytes"] > 0 or status["left_bytes"] == 0)
        self.secondary_host_crashes()

    def forwarder_dies(self):
        self.forwarder.kill()
        os.close(self.image)
        self.pending, pending = [], self.pending
        self.start_forwarder()
        self.pending = pending
        self.drain()
        self.target.disconnect()

    def fail_over(self, is_host_crash):
        """The secondary's guest goes on; the old primary comes back as secondary."""
        self.forwarder.kill()
        self.drain()
        os.close(self.image)
        self.generation += 1
        self.target.ask("failover", generation=self.generation, until="durable", timeout_ms=20000)
        self.secondary_writes()
        self.target.ask("failover", generation=self.generation, timeout_ms=20000)
        self.secondary_writes()
        self.target.stop(*([9] if self.random.random() < 0.3 else []))
        if is_host_crash:
            self.lose_unflushed(self.hosts[0])
        self.hosts.reverse()
        self.start_forwarder()
        self.write_some()
        self.start_target()

    def event(self):
        events = [self.secondary_process_dies, self.secondary_host_crashes, self.secondary_host_crashes,
                  self.secondary_host_crashes_in_a_sync, self.forwarder_dies, lambda: self.fail_over(False),
                  lambda: self.fail_over(True)]
        event = self.random.choice(events)
        self.log.append(getattr(event, "__name__", "?"))
        event()


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_crashes(make_kept_target, make_forwarder, tmp_path, seed):
    pair = Pair(make_forwarder, make_kept_target, tmp_path, seed)
    pair.protect()
    for _ in range(ROUNDS):
        pair.run_epochs()
        pair.event()
        pair.protect()
    os.close(pair.image)
