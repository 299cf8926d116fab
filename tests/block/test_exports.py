# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_exports.py - what a primary reads of a target: `changed` and `digest`, with real NBD clients"""
import errno
import json
import random
import subprocess
import sys

import nbd
import pytest

MIB = 1 << 20
CHUNK = 65536
SIZE = 6 * MIB + 777
CHUNKS = SIZE // CHUNK + 1


@pytest.fixture
def make_survivor(make_target, tmp_path):
    """make_survivor() -> a target with a map; the disk has random bytes."""

    def make(**options):
        target = make_target(SIZE, start=False, map=f"{tmp_path}/map", **options)
        with open(target.disk, "wb") as disk:
            disk.write(random.Random(1).randbytes(SIZE))
        return target.start()

    return make


def marked(target):
    """The chunks that `changed` has."""
    bits = target.connect("changed").pread((CHUNKS + 7) // 8, 0)
    return [chunk for chunk in range(len(bits) * 8) if bits[chunk // 8] >> chunk % 8 & 1]


def digests(target):
    handle = target.connect("digest")
    size = handle.get_size()
    data = b"".join(bytes(handle.pread(min(1024, size - at), at)) for at in range(0, size, 1024))
    return [data[at:at + 16] for at in range(0, size, 16)]


def reference(path):
    """xxhsum's digests of the chunks of a file."""
    with open(path, "rb") as disk:
        data = disk.read()
    found = []
    for at in range(0, len(data), CHUNK):
        done = subprocess.run(["xxhsum", "-H2", "-"], input=data[at:at + CHUNK], capture_output=True, check=True)
        found.append(bytes.fromhex(done.stdout.split()[0].decode()))
    return found


def test_nbdinfo(make_survivor):
    target = make_survivor()
    done = subprocess.run(["nbdinfo", "--json", "--list", f"nbd+unix:///?socket={target.nbd}"], capture_output=True,
                          text=True, check=True)
    exports = {export["export-name"]: export for export in json.loads(done.stdout)["exports"]}
    assert list(exports) == ["target", "active", "changed", "digest"]
    assert exports["changed"]["export-size"] == (CHUNKS + 7) // 8
    assert exports["digest"]["export-size"] == CHUNKS * 16
    assert exports["digest"]["block_size_minimum"] == 16 and exports["digest"]["block_size_maximum"] == 1024
    for name in ("changed", "digest"):
        assert exports[name]["is_read_only"] and exports[name]["can_multi_conn"]
        assert not exports[name]["can_trim"] and not exports[name]["can_zero"]
        with pytest.raises(nbd.Error):
            target.connect(name).pwrite(b"x" * 16, 0)


def test_nbdsh(make_survivor):
    """The shell that an operator has, in the Python that the tests have."""
    target = make_survivor()
    script = f"import sys; sys.stdout.write(h.pread({(CHUNKS + 7) // 8}, 0).hex())"
    done = subprocess.run([sys.executable, "-m", "nbd", "-u", target.uri("changed"), "-c", script], capture_output=True, text=True, check=True)
    bits = bytes.fromhex(done.stdout)
    assert sum(bin(byte).count("1") for byte in bits) == CHUNKS  # a new map: nothing is known


def test_digests_are_xxh3_128(make_survivor):
    target = make_survivor()
    want = reference(target.disk)
    assert digests(target) == want
    target.mirror()
    target.connect("active").pwrite(b"svm" * 1000, 10 * CHUNK)
    assert digests(target) == want  # of the disk, not of what SVM sees
    target.connect("target").pwrite(b"pvm" * 1000, 20 * CHUNK)
    seen = digests(target)
    assert [chunk for chunk in range(CHUNKS) if seen[chunk] != want[chunk]] == [20]
    assert seen == reference(target.disk)


def test_ranges(make_survivor):
    target = make_survivor()
    handle = target.connect("digest")
    handle.set_strict_mode(0)
    for length, offset in ((1040, 0), (1024, 8), (32, CHUNKS * 16 - 16)):
        with pytest.raises(nbd.Error) as caught:
            handle.pread(length, offset)
        assert caught.value.errnum == errno.EINVAL
    assert handle.pread(20, 30) == handle.pread(1024, 0)[30:50]


def test_what_a_failover_changes(make_survivor):
    target = make_survivor()
    assert marked(target) == list(range(CHUNKS))
    target.mirror()
    assert marked(target) == []
    svm, primary = target.connect("active"), target.connect("target")
    primary.pwrite(b"p", 3 * CHUNK)
    target.ask("checkpoint", epoch=1)
    primary.pwrite(b"p" * 5000, 8 * CHUNK - 10)
    svm.pwrite(b"s", SIZE - 1)
    assert marked(target) == []
    target.ask("failover", generation=2)
    assert marked(target) == [7, 8, CHUNKS - 1]
    svm.pwrite(b"s", 30 * CHUNK)
    svm.trim(CHUNK, 40 * CHUNK)
    svm.zero(2, 51 * CHUNK - 1)
    assert marked(target) == [7, 8, 30, 40, 50, 51, CHUNKS - 1]
    target.ask("sync", generation=3)
    assert len(marked(target)) == 7
    target.ask("mirror", generation=3, epoch=0)
    assert marked(target) == []


def test_killed_survivor(make_survivor):
    """In the middle of anything: what was changed is marked when it comes back."""
    target = make_survivor()
    target.mirror()
    svm = target.connect("active")
    svm.pwrite(b"s" * MIB, 2 * MIB)
    target.ask("failover", generation=2, until="durable")
    svm.pwrite(b"s", 5 * MIB)
    target.kill()
    target.start()
    assert marked(target) == [*range(32, 48), 80]
    target.wait_status(lambda status: status["commit"]["phase"] == "done")
    target.stop()
    target.start()
    assert marked(target) == [*range(32, 48), 80]


def test_map_that_is_not_taken(make_survivor):
    target = make_survivor()
    path = target.options["map"]
    target.stop()
    with open(path, "r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    done = subprocess.run(target.command("-U", target.nbd), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0 and "checksum" in done.stderr and "remove the file" in done.stderr
