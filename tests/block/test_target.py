# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_target.py - what each side sees through real NBD clients"""
import errno
import json
import os
import random
import re
import subprocess

import nbd
import pytest
from conftest import DEADLINE_S, Refused

MIB = 1 << 20


def read_disk(target):
    with open(target.disk, "rb") as disk:
        return disk.read()


def errno_of(call, *arguments):
    with pytest.raises(nbd.Error) as caught:
        call(*arguments)
    return caught.value.errnum


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_exports(make_target):
    target = make_target(10 * MIB)
    exports = json.loads(run("nbdinfo", "--json", "--list", f"nbd+unix:///?socket={target.nbd}"))["exports"]
    assert [export["export-name"] for export in exports] == ["target", "active", "digest"]
    for export in exports[:2]:
        assert export["export-size"] == 10 * MIB
        for flag in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_df"):
            assert export[flag], flag
        assert not export["is_read_only"] and not export["is_rotational"] and not export["can_fast_zero"]
        assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)
    with pytest.raises(nbd.Error):
        target.connect("other")
    with pytest.raises(nbd.Error):
        target.connect("")


def test_modes_as_seen_by_clients(make_target):
    target = make_target()
    primary, svm = target.connect("target"), target.connect("active")
    assert errno_of(primary.pwrite, b"x", 0) == errno.ESHUTDOWN
    assert errno_of(svm.pwrite, b"x", 0) == errno.ESHUTDOWN
    assert not target.ask("status")["startable"]
    target.ask("sync", generation=1)
    primary.pwrite(b"synced", 5)
    assert errno_of(svm.pwrite, b"x", 0) == errno.ESHUTDOWN
    target.ask("mirror", generation=1, epoch=0)
    svm.pwrite(b"SVM", 6)
    assert bytes(svm.pread(6, 5)) == b"sSVMed" and bytes(primary.pread(6, 5)) == b"synced"
    target.ask("failover", generation=2)
    assert bytes(svm.pread(6, 5)) == b"sSVMed" and read_disk(target)[5:11] == b"sSVMed"
    assert errno_of(primary.pwrite, b"x", 0) == errno.ESHUTDOWN
    assert target.ask("status")["startable"]


def test_copy_in_and_out(make_target, tmp_path):
    """nbdcopy, several connections and requests at once, sparse: a sync and what SVM sees after it."""
    image = f"{tmp_path}/image"
    with open(image, "wb") as file:
        for offset in range(0, 64 * MIB, 4 * MIB):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(MIB))
        file.truncate(64 * MIB)
    target = make_target(64 * MIB)
    target.ask("sync", generation=1)
    run("nbdcopy", "--flush", image, target.uri("target"))
    run("cmp", image, target.disk)
    target.ask("mirror", generation=1, epoch=0)
    primary = target.connect("target")
    for offset in range(0, 64 * MIB, 3 * MIB):
        primary.pwrite(b"P" * 5000, offset + 100)
    run("nbdcopy", target.uri("active"), f"{tmp_path}/seen")
    run("cmp", image, f"{tmp_path}/seen")
    target.ask("checkpoint", epoch=1)
    run("nbdcopy", target.uri("active"), f"{tmp_path}/seen")
    run("cmp", target.disk, f"{tmp_path}/seen")


@pytest.mark.parametrize("export", ["target", "active"])
def test_qemu_io(make_target, qemu_tool, export):
    """QEMU's own client: patterns, parts of blocks, zeros, discard, FUA, vectors, several requests at once."""
    target = make_target()
    target.mirror()
    out = qemu_tool("qemu-io", "-f", "raw", "-c", "write -P 0x11 0 1M", "-c", "write -P 0x22 1000 5000",
                    "-c", "read -P 0x11 0 1000", "-c", "read -P 0x22 1000 5000", "-c", "read -P 0x11 6000 1042576",
                    "-c", "write -z 8192 12288", "-c", "read -P 0 8192 12288", "-c", "write -z -u 64k 64k",
                    "-c", "read -P 0 64k 64k", "-c", "write -f -P 0x33 2M 512", "-c", "read -P 0x33 2M 512",
                    "-c", "discard 4M 1M", "-c", "flush", "-c", "writev -P 0x44 3M 4k 8k 512",
                    "-c", "readv -P 0x44 3M 4k 8k 512", "-c", "aio_write -P 0x55 5M 1M", "-c", "aio_write -P 0x66 6M 1M",
                    "-c", "aio_flush", "-c", "read -P 0x55 5M 1M", "-c", "read -P 0x66 6M 1M", target.uri(export))
    assert "Pattern verification failed" not in out
    other = target.connect("active" if export == "target" else "target")
    assert bytes(other.pread(8 * MIB, 0)) == bytes(8 * MIB)


def test_qemu_img_sees_holes(make_target, qemu_tool):
    target = make_target(16 * MIB)
    target.mirror()
    svm = target.connect("active")
    svm.pwrite(b"x" * 4096, 8 * MIB)
    found = json.loads(qemu_tool("qemu-img", "map", "--output=json", "-f", "raw", target.uri("active")))
    data = [(extent["start"], extent["length"]) for extent in found if extent["data"]]
    assert data == [(8 * MIB, 4096)]
    assert all(extent["zero"] for extent in found if not extent["data"])
    # A saved block is data, whatever the disk has there now.
    target.connect("target").pwrite(b"y" * 4096, 4 * MIB)
    text = run("nbdinfo", "--map", target.uri("active"))
    assert re.search(rf"^\s*{4 * MIB}\s+4096\s+0\s+data", text, re.M), text


def test_trims(make_target):
    target = make_target(16 * MIB, overlay_limit="1M")
    target.ask("sync", generation=1)
    primary, svm = target.connect("target"), target.connect("active")
    primary.pwrite(b"d" * 4 * MIB, 0)
    target.ask("mirror", generation=1, epoch=0)
    primary.trim(MIB // 4, 0)
    assert bytes(primary.pread(4, 0)) == bytes(4) and bytes(svm.pread(4, 0)) == b"dddd"
    primary.trim(2 * MIB, MIB)  # more than hidden has room for
    assert bytes(primary.pread(4, MIB)) == b"dddd"
    status = target.ask("status")
    assert status["skipped_trims"] == 1 and status["stale"] == "none"
    svm.trim(MIB, 0)
    primary.zero(MIB // 4, MIB)  # no advice: must be done
    target.ask("checkpoint", epoch=1)
    assert bytes(svm.pread(4, MIB)) == bytes(4)


def test_block_device(make_target, tmp_path):
    """A loop device instead of a file: its size, zeros of parts of sectors, holes that nobody knows."""
    backing = f"{tmp_path}/backing"
    with open(backing, "wb") as file:
        file.truncate(16 * MIB)
    attached = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False)
    if attached.returncode != 0:
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        target = make_target(start=False)
        target.disk = device
        target.start()
        target.mirror()
        primary, svm = target.connect("target"), target.connect("active")
        assert primary.get_size() == 16 * MIB
        primary.pwrite(b"d" * 10000, 0)
        primary.zero(1000, 1001)
        primary.zero(MIB, 8 * MIB)
        svm.pwrite(b"s" * 5000, 6000)
        target.ask("failover", generation=2)
        svm.zero(100, 7000)
        svm.trim(4096, 4096)
        svm.flush()
        want = bytearray(16 * MIB)
        want[6000:11000] = b"s" * 1000 + bytes(100) + b"s" * 3900
        seen = bytes(svm.pread(16 * MIB, 0))
        assert seen[:4096] == want[:4096] and seen[8192:] == want[8192:]
        target.stop()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def fio(target, export, *options):
    return ["fio", "--name=job", "--ioengine=nbd", f"--uri={target.uri(export)}", "--bs=4k", "--iodepth=16",
            "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=1", "--minimal", *options]


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_fio_target_under_checkpoints(make_target):
    """The primary's data stays, however often SVM's is thrown away."""
    target = make_target(64 * MIB)
    target.mirror()
    svm = target.connect("active")
    job = start(fio(target, "target", "--rw=randwrite", "--bsrange=512-16k", "--size=24M"))
    epoch = 0
    while job.poll() is None:
        epoch += 1
        svm.pwrite(b"S" * 100000, 512 * (epoch % 1000))
        target.ask("checkpoint", epoch=epoch)
    finish(job)
    assert epoch > 5
    status = target.ask("status")
    assert status["faults"] == {}
    assert 0 < status["checkpoint_max_us"] < DEADLINE_S * 1000 * 1000


def test_fio_active_over_a_failover(make_target):
    """SVM writes and verifies while the primary writes over the same disk and then dies; the failover commit
    runs under SVM's requests, and the disk alone holds the data in the end."""
    target = make_target(48 * MIB)
    target.mirror()
    noise = start(fio(target, "target", "--rw=randwrite", "--size=48M", "--randseed=7", "--do_verify=0"))
    options = ["--rw=randwrite", "--size=48M", "--verify_backlog=64", "--fsync=256"]
    job = start(fio(target, "active", *options))
    target.wait_status(lambda status: status["active"]["used_bytes"] > 12 * MIB or job.poll() is not None)
    target.ask("failover", generation=2)
    noise.kill()
    noise.communicate()
    finish(job)
    finish(start(fio(target, "active", *options, "--verify_only=1")))
    target.stop()
    local = [option for option in fio(target, "active", *options, "--verify_only=1") if "uri" not in option]
    finish(start([option.replace("=nbd", "=psync") for option in local] + [f"--filename={target.disk}"]))


@pytest.mark.parametrize("filters", [["--filter=delay", "delay-write=300ms"]])
def test_requests_run_in_parallel(make_target, filters):
    """Eight writes that take 300 ms each are through long before they would be one after the other."""
    target = make_target(nbdkit=filters[:1])
    target.stop()
    target.options["delay-write"] = filters[1].split("=")[1]
    target.start()
    target.mirror()
    primary = target.connect("target")
    before = target.ask("status")["target_requests"]
    for i in range(8):
        primary.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 4096)), i * 4096)
    started = os.times().elapsed
    while primary.aio_in_flight() > 0:
        assert primary.poll(DEADLINE_S * 1000) == 1
    assert os.times().elapsed - started < 1.5
    assert target.ask("status")["target_requests"] - before == 8


def test_injected_errors_reach_the_client_only(make_target, tmp_path):
    """An error above the plugin (nbdkit's error filter): the client sees it, the target has lost nothing."""
    target = make_target(nbdkit=["--filter=error"], **{"error-pwrite": "ENOSPC", "error-pwrite-rate": "100%",
                                                       "error-pwrite-file": f"{tmp_path}/inject"})
    target.mirror()
    primary = target.connect("target")
    primary.pwrite(b"x", 0)
    with open(f"{tmp_path}/inject", "wb"):
        assert errno_of(primary.pwrite, b"y", 0) == errno.ENOSPC
    os.unlink(f"{tmp_path}/inject")
    primary.pwrite(b"z", 1)
    target.ask("checkpoint", epoch=1)
    assert bytes(target.connect("active").pread(2, 0)) == b"xz"


def test_commands_are_refused_by_name(make_target):
    target = make_target()
    for command, arguments, reason in (("mirror", {"generation": 1, "epoch": 0}, "not being synced"),
                                       ("checkpoint", {"epoch": 1}, "not being mirrored"),
                                       ("barrier", {}, "takes no mirrored writes"),
                                       ("failover", {"generation": 1}, "nothing to fail over to")):
        with pytest.raises(Refused, match=reason):
            target.ask(command, **arguments)
