# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_images.py - disks that are an NBD export of this host: qcow2 by qemu-storage-daemon, and one that fails"""
import errno
import os
import random
import subprocess
import threading

import nbd
import pytest
from conftest import DEADLINE_S, Refused
from diskrig import MIB, DiskFailed, Guest, Writer, qemu_path, wait_until
from lablib.exports import Failing, Qcow2
from test_disk import BLOCK, Pair, make_host, pki  # pylint: disable=unused-import  # fixtures  # noqa: F401
from test_faults import refusal
from test_target import errno_of, fio, finish, start

SIZE = 64 * MIB


@pytest.fixture
def make_export(tmp_path):
    exports = []

    def make(cls, name="image", size=SIZE):
        export = Qcow2(str(tmp_path), name, qemu_path()) if cls is Qcow2 else cls(str(tmp_path), name)
        export.make(size)
        exports.append(export.start())
        return export

    yield make
    for export in exports:
        export.kill()


def make_target_on(make_target, export, **options):
    """A started target whose disk is the export."""
    target = make_target(start=False, **options)
    os.unlink(target.disk)
    target.disk = export.uri
    return target.start()


@pytest.fixture
def mirror_on(make_target, make_export):
    """A target that mirrors into a new export: both, and connections of PVM's forwarder and of SVM."""
    def make(cls):
        export = make_export(cls)
        target = make_target_on(make_target, export)
        target.mirror()
        return export, target, target.connect("target"), target.connect("active")
    return make


def content(export, qemu_tool):
    """Of the image, by qemu-img; the export's server has ended."""
    export.kill()
    if isinstance(export, Qcow2):
        qemu_tool("qemu-img", "check", "-q", export.image)
    raw = f"{export.image}.raw"
    qemu_tool("qemu-img", "convert", "-O", "raw", export.image, raw)
    with open(raw, "rb") as file:
        return file.read()


# --- qcow2 ---


def test_target_on_qcow2(make_target, make_export, qemu_tool, tmp_path):
    """A sync, both sides' writes of any size, checkpoints, a failover: what SVM saw is in the image."""
    rng = random.Random(1)
    export = make_export(Qcow2)
    target = make_target_on(make_target, export)
    source = f"{tmp_path}/source"
    with open(source, "wb") as file:
        for offset in range(0, SIZE, 8 * MIB):
            file.seek(offset)
            file.write(rng.randbytes(MIB))
        file.truncate(SIZE)
    target.ask("sync", generation=1)
    subprocess.run(["nbdcopy", "--flush", source, target.uri("target")], check=True)
    target.ask("mirror", generation=1, epoch=0)
    with open(source, "rb") as file:
        mirror = bytearray(file.read())
    assert os.path.getsize(export.image) < 32 * MIB, "holes were written"
    primary, svm = target.connect("target"), target.connect("active")
    for epoch in range(1, 4):
        view = bytearray(mirror)
        for _ in range(150):
            for handle, model in ((primary, mirror), (svm, view)):
                offset, data = rng.randrange(SIZE - 70000), rng.randbytes(rng.randrange(1, 65536))
                handle.pwrite(data, offset)
                model[offset:offset + len(data)] = data
            offset, length = rng.randrange(SIZE - 70000), rng.randrange(1, 65536)
            primary.zero(length, offset)
            mirror[offset:offset + length] = bytes(length)
        assert b"".join(bytes(svm.pread(MIB, i * MIB)) for i in range(SIZE // MIB)) == view
        if epoch < 3:
            target.ask("checkpoint", epoch=epoch)
    target.ask("failover", generation=2)
    target.stop()
    assert content(export, qemu_tool) == view


class Plain(Failing):
    """A raw image by an nbdkit that negotiates no meta context."""

    def command(self):
        return ["nbdkit", "-f", "-U", self.socket, "--no-sr", "file", self.image]


@pytest.mark.parametrize("cls,has_holes", [(Failing, True), (Plain, False)])
def test_block_status(make_target, make_export, cls, has_holes):
    """Of a disk whose export knows base:allocation the holes are known; of another one all is data."""
    target = make_target_on(make_target, make_export(cls))
    target.mirror()
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(target.uri("active"))
    handle.pwrite(b"x" * 4096, 0)
    found = []
    handle.block_status(MIB, 0, lambda _context, _offset, entries, _error: found.extend(entries) or 0)
    handle.shutdown()
    assert found[:2] == [4096, 0] if has_holes else set(found[1::2]) == {0}
    assert any(found[1::2]) is has_holes and sum(found[::2]) >= MIB


def test_fio_on_qcow2(make_target, make_export):
    """fio writes and verifies while checkpoints are made; requests run in parallel."""
    target = make_target_on(make_target, make_export(Qcow2))
    target.mirror()
    job = start(fio(target, "target", "--rw=randwrite", "--bsrange=512-16k", "--size=16M"))
    epoch = 0
    while job.poll() is None:
        epoch += 1
        target.ask("checkpoint", epoch=epoch)
    finish(job)
    assert epoch > 5 and target.ask("status")["faults"] == {}


def test_qcow2_on_both_hosts(make_host, make_export, qemu_tool):  # pylint: disable=redefined-outer-name  # noqa: F811
    """From the first copy to a failover and the move to the local image, with the real QEMU; then its disk is equal to
    what the guest wrote."""
    exports = {name: make_export(Qcow2, name) for name in ("a", "b")}
    pair = Pair(lambda name: make_host(name, image=exports[name].uri))
    guest = pair.start_primary()
    guest.write(b"before" + bytes(BLOCK - 6), 0)
    pair.start_secondary()
    pair.protect()
    guest.write(b"epoch 1" + bytes(BLOCK - 7), BLOCK)
    pair.checkpoint(1)
    writer = Writer(Guest(pair.b), 2048)
    svm = pair.b.guests[-1]
    assert svm.read(6, 0) == b"before" and svm.read(7, BLOCK) == b"epoch 1"
    writer.start()
    writer.wait_more()
    pair.a.stop_qemu()
    pair.fail_over()
    writer.wait_more()
    writer.end()
    svm.flush()
    nodes = {node["node-name"]: node for node in pair.b.qmp.call("query-named-block-nodes")}
    assert exports["b"].socket in nodes["disk0-file"]["file"] and "disk0-target" not in nodes
    pair.b.stop_qemu()
    pair.b.tool.call("stop")
    image = content(exports["b"], qemu_tool)
    assert all(image[block * BLOCK:(block + 1) * BLOCK] == data for block, data in writer.written.items())


def test_resync_from_qcow2(make_host, make_export):  # pylint: disable=redefined-outer-name  # noqa: F811
    """The forwarder reads what the peer lacks from the export, while QEMU writes there."""
    exports = {"a": make_export(Qcow2, "a"), "b": make_export(Failing, "b")}
    pair = Pair(lambda name: make_host(name, image=exports[name].uri))
    writer = Writer(pair.start_primary(), 4096)
    writer.start()
    writer.wait_more(500)
    pair.start_secondary()
    pair.protect()
    writer.wait_more()
    writer.end()
    pair.checkpoint(1)
    assert writer.differences(exports["b"].image) == []


def test_unfit_exports(make_target, make_export, make_host, tmp_path):  # pylint: disable=redefined-outer-name  # noqa: F811
    export = make_export(Qcow2)
    target = make_target(start=False)
    for uri, why in ((f"nbd+unix:///other?socket={export.socket}", "no export|not found|Unknown"),
                     (f"nbd+unix:///disk?socket={tmp_path}/nobody", "No such file"),
                     ("nbd://127.0.0.1/disk", "UNIX socket of this host")):
        target.disk = uri
        assert any(word in refusal(target) for word in why.split("|")), uri
    export.kill()
    command = export.command
    export.command = lambda: [word.replace("writable=on", "writable=off") for word in command()]
    target.disk = export.start().uri
    assert "read-only" in refusal(target)
    export.kill()
    blocks = Failing(str(tmp_path), "blocks")
    blocks.make(SIZE)
    plain = blocks.command
    blocks.command = lambda: ["nbdkit", "--filter=blocksize-policy", *plain()[1:], "blocksize-minimum=512"]
    target.disk = blocks.start().uri
    assert "takes only blocks" in refusal(target)
    blocks.kill()
    host = make_host(image=export.uri)
    assert "No such file" in host.tool.call("standing")["reason"] or "refused" in host.tool.call("standing")["reason"]
    with pytest.raises(DiskFailed, match="export 'disk'"):
        host.tool.call("start primary 1 first")


def test_server_is_lost(mirror_on):
    """What qemu-storage-daemon had not flushed is gone with it: the mirror stops, though a new one is there at once."""
    export, target, primary, _ = mirror_on(Qcow2)
    primary.pwrite(b"x" * 4096, 0)
    export.kill()
    export.start()
    assert errno_of(primary.pwrite, b"y" * 4096, 4096) == errno.EIO
    assert target.ask("status")["stale"] in ("hidden-copy", "secondary-disk")
    with pytest.raises(Refused, match="hidden-copy|secondary-disk"):
        target.ask("checkpoint", epoch=1)


# --- The disk fails (docs/block.md, "Errors") ---


def test_hidden_copy(mirror_on):
    """The old block cannot be read: nothing of the write is applied, the mirror stops, SVM's view is whole."""
    export, target, primary, svm = mirror_on(Failing)
    primary.pwrite(b"1" * 4096, 0)
    svm.pwrite(b"mine", 8192)
    with export.failing("pread"):
        primary.pwrite(b"2" * 4096, 0)  # saved already
        assert errno_of(primary.pwrite, b"x" * 4096, 4096) == errno.EIO
        assert target.ask("status")["stale"] == "hidden-copy"
    assert errno_of(primary.pwrite, b"x", MIB) == errno.EIO
    with pytest.raises(Refused, match="hidden-copy"):
        target.ask("checkpoint", epoch=1)
    assert bytes(svm.pread(8196, 0)) == bytes(8192) + b"mine"
    target.ask("failover", generation=2)
    target.wait_status(lambda status: status["mode"] == "local")
    with open(export.image, "rb") as image:
        assert image.read(8196) == bytes(8192) + b"mine"


def test_secondary_disk(mirror_on):
    """The disk refuses a mirrored write: the primary is told, and SVM goes on with what it sees."""
    export, target, primary, svm = mirror_on(Failing)
    with export.failing("pwrite", "zero"):
        svm.pwrite(b"mine", 0)  # goes to the overlay
        assert errno_of(primary.pwrite, b"x" * 4096, 4096) == errno.EIO
    assert target.ask("status")["stale"] == "secondary-disk"
    assert errno_of(primary.flush) == errno.EIO
    assert bytes(svm.pread(8192, 0)) == b"mine" + bytes(8188)


def test_active_disk(mirror_on):
    """SVM is told; the mirror goes on, and what SVM has of its own can be read."""
    export, target, primary, svm = mirror_on(Failing)
    primary.pwrite(b"P" * 4096, MIB)
    svm.pwrite(b"S" * 4096, 0)
    with export.failing("pread"):
        assert errno_of(svm.pread, 4096, 4096) == errno.EIO
        assert bytes(svm.pread(4096, 0)) == b"S" * 4096
        primary.pwrite(b"Q" * 4096, MIB)
    status = target.ask("status")
    assert status["faults"] == {"active-disk": 1} and status["stale"] == "none"
    target.ask("checkpoint", epoch=1)
    assert bytes(svm.pread(4096, MIB)) == b"Q" * 4096


def test_emptying(mirror_on):
    """A read of SVM's hangs in the disk: the checkpoint gives up at its deadline, by name, and has emptied nothing."""
    export, target, _, svm = mirror_on(Failing)
    svm.pwrite(b"S" * 4096, 0)
    with export.hanging():
        reader = threading.Thread(target=svm.pread, args=(4096, MIB))
        reader.start()
        wait_until(lambda: target.ask("status")["under_way"] == 1)
        with pytest.raises(Refused, match="emptying: .*in time"):
            target.ask("checkpoint", epoch=1, timeout_ms=300)
        status = target.ask("status")
        assert status["faults"] == {"emptying": 1} and status["active"]["used_bytes"] == 4096 and status["epoch"] == 0
    reader.join(DEADLINE_S)
    target.ask("checkpoint", epoch=1)
    assert bytes(svm.pread(4096, 0)) == bytes(4096)


def test_failover_commit(mirror_on):
    """The disk takes no writes when the overlays are copied into it: SVM goes on, the commit is given again."""
    export, target, _, svm = mirror_on(Failing)
    svm.pwrite(b"S" * 100000, 0)
    with export.failing("pwrite"):
        with pytest.raises(Refused, match="failover-commit"):
            target.ask("failover", generation=2)
        assert bytes(svm.pread(100000, 0)) == b"S" * 100000
    target.ask("failover", generation=2)
    with open(export.image, "rb") as image:
        assert image.read(100000) == b"S" * 100000


def test_primary_disk(make_target, make_forwarder, make_export, tmp_path):
    """What the peer lacks cannot be read: by name; the next connection copies it."""
    export = make_export(Failing, size=16 * MIB)
    forwarder = make_forwarder(16 * MIB, start=False)
    os.unlink(forwarder.disk)
    forwarder.disk = export.uri
    forwarder.start()
    target = make_target(16 * MIB, folder=f"{tmp_path}/secondary", map=f"{tmp_path}/map")
    forwarder.ask("alone", generation=1, first=True)
    with open(export.image, "r+b") as image:
        image.write(b"x" * MIB)
    target.ask("sync", generation=1)
    with export.failing("pread"):
        forwarder.ask("connect", host=target.nbd, generation=1)
        assert forwarder.wait_status(lambda status: status["mode"] == "alone")["fault"] == "primary-disk"
    target.ask("sync", generation=1)
    forwarder.ask("connect", host=target.nbd, generation=1)
    wait_until(lambda: forwarder.ask("status")["synced"])
    forwarder.ask("finish")
    with open(target.disk, "rb") as disk:
        assert disk.read(MIB + 1) == b"x" * MIB + b"\0"


def test_reads_are_parallel(mirror_on):
    """A read that hangs does not hold up others: the server says that connections may share."""
    export, target, _, svm = mirror_on(Failing)
    svm.pwrite(b"S" * 4096, 0)
    with export.hanging():
        cookies = [svm.aio_pread(nbd.Buffer(4096), MIB + i * 4096) for i in range(4)]
        assert bytes(svm.pread(4096, 0)) == b"S" * 4096
        assert not any(svm.aio_command_completed(cookie) for cookie in cookies)
    wait_until(lambda: svm.poll(100) >= 0 and svm.aio_in_flight() == 0)
