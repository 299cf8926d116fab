# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_disk.py - a Disk of colod with both plugins and the real QEMU"""
import contextlib
import glob
import json
import os
import signal
import subprocess
import time

import nbd
import pytest
from diskrig import MIB, DiskFailed, Guest, Host, Writer, make_pki, wait_until
from test_target import finish, fio, start

BLOCK = 4096
RECONNECT_DELAY_S = 10  # disk-private.h


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    return make_pki(f"{tmp_path_factory.mktemp('pki')}/ca")


@pytest.fixture
def make_host(tmp_path, pki):
    hosts = []

    def make(name="a", **options):
        hosts.append(Host(tmp_path, pki, name, **options))
        return hosts[-1]

    yield make
    for host in hosts:
        host.destroy()
        text = host.logs()
        print(text)
        assert "assertion" not in text and "Sanitizer" not in text


def read_file(path, length, offset):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def listeners(tool):
    """How many descriptors of this life of colod are listening sockets."""
    pid = tool.process.pid
    listening = set()
    for kind, state, at, inode in (("unix", "00010000", 3, 6), ("tcp", "0A", 3, 9)):
        with open(f"/proc/{pid}/net/{kind}", encoding="ascii") as file:
            lines = [line.split() for line in file.read().splitlines()[1:]]
        listening.update(f"socket:[{line[inode]}]" for line in lines if line[at] == state)
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}") in listening for fd in os.listdir(f"/proc/{pid}/fd"))


class Pair:
    """a protected by b, without COLO: the guests are started and stopped by hand."""

    def __init__(self, make_host, **options):
        self.a, self.b = make_host("a", **options), make_host("b", **options)

    def start_primary(self):
        self.a.tool.call("start primary 1 first")
        self.a.start_qemu("primary")
        return Guest(self.a)

    def start_secondary(self, generation=1):
        self.b.tool.call(f"start secondary {generation}")
        self.b.start_qemu("secondary")

    def protect(self, generation=1):
        self.a.tool.call(f"connect {generation}")
        self.a.tool.event("synced")
        self.a.qmp.call("stop")
        self.a.tool.call("finish")
        self.b.tool.call(f"mirror {generation}")
        self.release(0)
        self.a.qmp.call("cont")

    def release(self, epoch):
        """Has no answer of its own; but what follows it must find it done."""
        self.a.tool.send(f"release {epoch}")
        wait_until(lambda: not self.a.control("mirror", "status")["return"]["holding"])

    def checkpoint(self, epoch):
        self.a.qmp.call("stop")
        self.a.tool.call(f"barrier {epoch}")
        self.b.tool.call(f"checkpoint {epoch}")
        self.a.tool.send(f"release {epoch}")
        self.a.qmp.call("cont")

    def fail_over(self, generation=2):
        self.b.tool.call(f"failover {generation}")
        self.b.tool.event("committed")
        self.b.tool.call(f"move {generation}")


@pytest.fixture
def pair(make_host):
    return Pair(make_host)


def test_primary_alone(make_host):
    host = make_host()
    assert host.tool.call("standing")["never_used"]
    with pytest.raises(DiskFailed, match="never"):
        host.tool.call("start primary 1")
    host.tool.call("start primary 1 first")
    host.start_qemu("primary")
    guest = Guest(host)
    guest.write(b"x" * BLOCK, MIB)
    guest.flush()
    assert guest.read(BLOCK, MIB) == b"x" * BLOCK == read_file(host.image, BLOCK, MIB)
    assert host.tool.call("status")["status"]["forwarder"]["mode"] == "alone"
    assert host.tool.call("status")["percent"] == -1
    host.stop_qemu()
    host.tool.call("stop")
    assert host.pid("mirror") == 0
    standing = host.tool.call("standing")
    assert standing["up_to_date"] and standing["generation"] == 1


@pytest.mark.parametrize("device", ["virtio-blk-pci", "scsi-hd", "ide-hd", "nvme"])
def test_boots(make_host, device):
    """Without a kernel the firmware boots from the disk."""
    host = make_host(device=device)
    code = bytes.fromhex("baf803b042eef4ebfd")  # mov dx,0x3f8; mov al,'B'; out dx,al; hlt; jmp to hlt
    with open(host.image, "r+b") as image:
        image.write(code + bytes(510 - len(code)) + b"\x55\xaa")
    host.tool.call("start primary 1 first")
    host.start_qemu("primary", "-serial", f"file:{host.folder}/serial")
    wait_until(lambda: b"B" in read_file(f"{host.folder}/serial", 4096, 0))


@pytest.mark.parametrize("overlay", ["files", "memory"])
def test_copy_mirror_failover_move(make_host, overlay):
    """The guest's writes at each stage, and all of them in the image of the host that goes on."""
    pair = Pair(make_host, overlay=overlay)
    guest = pair.start_primary()
    guest.write(b"before" + bytes(BLOCK - 6), 0)
    pair.start_secondary()
    pair.protect()
    assert Guest(pair.b).read(6, 0) == b"before"
    guest.write(b"epoch 1" + bytes(BLOCK - 7), BLOCK)
    pair.checkpoint(1)
    svm = pair.b.guests[-1]
    assert svm.read(7, BLOCK) == b"epoch 1"
    target = pair.b.tool.call("status")["status"]["target"]
    assert target["durable_overlays"] is (overlay == "files")
    assert os.path.exists(f"{pair.b.state}/disk0.overlays/active") is (overlay == "files")
    svm.write(b"own" + bytes(BLOCK - 3), 2 * BLOCK)
    guest.write(b"lost" + bytes(BLOCK - 4), 3 * BLOCK)
    pair.a.qmp.call("stop")
    pair.a.stop_qemu()
    pair.fail_over()
    assert svm.read(7, BLOCK) == b"epoch 1" and svm.read(3, 2 * BLOCK) == b"own" and svm.read(4, 3 * BLOCK) == bytes(4)
    svm.write(b"after" + bytes(BLOCK - 5), 4 * BLOCK)
    svm.flush()
    image = read_file(pair.b.image, 5 * BLOCK, 0)
    assert [image[i * BLOCK:i * BLOCK + 5] for i in range(5)] == [b"befor", b"epoch", b"own\0\0", bytes(5), b"after"]
    assert pair.b.pid("target") == 0
    status = pair.b.tool.call("status")["status"]
    assert status["forwarder"]["mode"] == "alone" and status["forwarder"]["meta"]["generation"] == 2
    names = {node["node-name"] for node in pair.b.qmp.call("query-named-block-nodes")}
    assert {"disk0", "disk0-quorum", "disk0-local", "disk0-mirror", "disk0-file"} <= names and "disk0-target" not in names


def test_forwarder_of_a_secondary(pair):
    """What SVM writes is not sent to its forwarder, which would forget it; nor does it wait for one that hangs."""
    pair.start_primary()
    pair.start_secondary()
    pair.protect()
    os.kill(pair.b.pid("mirror"), signal.SIGSTOP)
    svm = Guest(pair.b)
    svm.write(b"own" + bytes(BLOCK - 3), BLOCK)
    svm.flush()
    assert svm.read(3, BLOCK) == b"own"
    os.kill(pair.b.pid("mirror"), signal.SIGCONT)
    assert pair.b.control("mirror", "status")["return"]["requests"] == 0
    names = {node["node-name"] for node in pair.b.qmp.call("query-named-block-nodes")}
    assert {"disk0", "disk0-target", "disk0-mirror"} <= names and not {"disk0-quorum", "disk0-local"} & names
    pair.a.stop_qemu()
    pair.fail_over()
    svm.write(b"counted" + bytes(BLOCK - 7), BLOCK)
    assert pair.b.control("mirror", "status")["return"]["requests"] == 1


def test_status_is_not_stale(pair):
    """What the peer may lack grows with each write and is taken back after a checkpoint: status shows both within a second."""
    def shown():
        return pair.a.tool.call("status")["status"]["forwarder"]["marked_bytes"]

    def wait_shown(condition):
        wait_until(lambda: condition(pair.a.control("mirror", "status")["return"]["marked_bytes"]))
        wait_until(lambda: condition(shown()), 1)
    guest = pair.start_primary()
    pair.start_secondary()
    pair.protect()
    for turn in range(2):
        for block in range(20):
            guest.write(b"x" * BLOCK, (40 * turn + block) * 65536)
        wait_shown(lambda marked: marked >= 20 * 65536)
        for epoch in range(50):
            pair.checkpoint(100 * turn + epoch + 1)
            if pair.a.control("mirror", "status")["return"]["marked_bytes"] == 0:
                break
            time.sleep(0.1)  # the forwarder flushes the peer's disk once a second
        wait_shown(lambda marked: marked == 0)


def test_fio_through_all(pair):
    """fio as the guest: through QEMU's quorum, forwarder and target, with checkpoints; what it wrote it finds on the other host,
    while the failover is committed and after the move."""
    options = ["--rw=randwrite", "--bsrange=512-32k", "--size=12M", "--randseed=11"]
    guest = pair.start_primary()
    pair.start_secondary()
    pair.protect()
    job = start(fio(guest, "guest", *options))
    epoch = 0
    while job.poll() is None:
        epoch += 1
        pair.checkpoint(epoch)
        time.sleep(0.05)
    finish(job)
    assert epoch > 2
    pair.checkpoint(epoch + 1)
    svm = Guest(pair.b)
    svm.write(b"own" * 512, 20 * MIB)
    pair.a.stop_qemu()
    pair.b.tool.call("failover 2")
    finish(start(fio(svm, "guest", *options, "--verify_only=1")))
    pair.b.tool.event("committed")
    pair.b.tool.call("move 2")
    finish(start(fio(svm, "guest", *options, "--verify_only=1")))
    assert svm.read(1536, 20 * MIB) == b"own" * 512


def test_move_under_load(pair):
    """No request is lost or failed by the move, and none waits for long."""
    pair.start_primary()
    pair.start_secondary()
    pair.protect()
    writer = Writer(Guest(pair.b), 4096)
    writer.start()
    writer.wait_more()
    pair.a.stop_qemu()
    pair.b.tool.call("failover 2")
    pair.b.tool.event("committed")
    writer.wait_more()
    first = len(writer.latencies)
    start = time.monotonic()
    pair.b.tool.call("move 2")
    print(f"move {time.monotonic() - start:.3f} s")
    writer.wait_more()
    print(f"longest write {max(writer.latencies[first:]) * 1000:.0f} ms")
    writer.end()
    pair.b.guests[-1].flush()
    assert max(writer.latencies[first:]) < 5
    assert writer.differences(pair.b.image) == []


def test_forwarder_dies(make_host):
    """It is started anew and marks again; the guest's write waits and succeeds."""
    host = make_host()
    host.tool.call("start primary 1 first")
    host.start_qemu("primary")
    writer = Writer(Guest(host), 1024)
    writer.start()
    writer.wait_more()
    first = host.kill("mirror")
    fault = host.tool.event("fault")
    assert fault["name"] == "forwarding" and "forwarder is gone" in fault["text"]
    writer.wait_more()
    writer.end()
    second = wait_until(lambda: host.pid("mirror"))
    assert second != first
    print(f"longest write {max(writer.latencies) * 1000:.0f} ms")
    assert max(writer.latencies) < 5
    assert wait_until(lambda: host.tool.call("status")["status"]["forwarder"])["mode"] == "alone"


def test_forwarder_cannot_be_started(make_host):
    """What was in the way of a new one goes away; the guest's mirror must not stay lost."""
    host = make_host()
    host.tool.call("start primary 1 first")
    os.rename(host.image, f"{host.image}.away")
    host.kill("mirror")
    assert "forwarder is gone" in host.tool.event("fault")["text"]
    fault = host.tool.event("fault")
    assert fault["name"] == "forwarding" and host.image in fault["text"]
    os.rename(f"{host.image}.away", host.image)
    assert wait_until(lambda: host.pid("mirror"))
    assert wait_until(lambda: host.tool.call("status")["status"]["forwarder"])["mode"] == "alone"


def test_forwarder_hangs(make_host):
    """One that does not answer any more is killed; the guest waits for the next."""
    host = make_host(timeout_ms=1000)
    host.tool.call("start primary 1 first")
    host.start_qemu("primary")
    first = host.kill("mirror", signal.SIGSTOP)
    assert host.tool.event("fault")["name"] == "forwarding"
    Guest(host).write(b"x" * BLOCK, 0)
    assert host.pid("mirror") not in (0, first)


def test_colod_dies(pair):
    """Processes are found again, with their sockets; what colod did before, it does after."""
    pair.start_primary()
    pair.start_secondary()
    pair.protect()
    pids = [pair.b.pid("mirror"), pair.b.pid("target"), pair.a.pid("mirror")]
    for host in (pair.a, pair.b):
        host.tool.kill()
        host.open()
        host.tool.call(f"qmp {host.run}/qmp.sock")
        host.tool.call("adopt")
    assert pids == [pair.b.pid("mirror"), pair.b.pid("target"), pair.a.pid("mirror")]
    assert [listeners(host.tool) for host in (pair.a, pair.b)] == [1, 3], "each socket is taken over once"
    pair.a.guests[-1].write(b"new" + bytes(BLOCK - 3), 0)
    pair.checkpoint(1)
    svm = Guest(pair.b)
    assert svm.read(3, 0) == b"new"
    pair.b.kill("mirror")
    assert pair.b.tool.event("fault")["name"] == "forwarding"
    wait_until(lambda: pair.b.pid("mirror"))
    svm.write(b"x" * BLOCK, BLOCK)
    pair.a.stop_qemu()
    pair.fail_over()
    assert svm.read(3, 0) == b"new"


def test_target_dies(pair):
    """Before the failover it is the end of SVM; after it, SVM waits for the next process."""
    pair.start_primary()
    pair.start_secondary()
    pair.protect()
    svm = Guest(pair.b)
    svm.write(b"before" + bytes(BLOCK - 6), 0)
    pair.b.tool.call("failover 2")
    pair.b.kill("target")
    assert pair.b.tool.event("fault")["name"] == "secondary-disk"
    svm.write(b"after" + bytes(BLOCK - 5), BLOCK)
    pair.b.tool.event("committed")
    pair.b.tool.call("move 2")
    assert svm.read(6, 0) == b"before" and read_file(pair.b.image, 5, BLOCK) == b"after"


def test_target_dies_while_mirroring(pair):
    pair.start_primary()
    pair.start_secondary()
    pair.protect()
    svm = Guest(pair.b)
    pair.b.kill("target")
    assert pair.b.tool.event("fault")["name"] == "secondary-disk"
    with pytest.raises(nbd.Error):
        svm.write(b"x" * BLOCK, 0)
    with pytest.raises(DiskFailed, match="target"):
        pair.b.tool.call("failover 2")
    pair.b.tool.kill()
    pair.b.open()
    pair.b.tool.call("adopt")  # what has happened meanwhile is told then
    assert pair.b.tool.event("fault")["name"] == "secondary-disk"


def test_left_over_processes(make_host):
    """What an earlier life of colod has left is ended before a start."""
    host = make_host()
    host.tool.call("start primary 1 first")
    first = host.pid("mirror")
    host.tool.kill()
    host.open()
    host.tool.call("start secondary 2")
    assert host.pid("mirror") not in (0, first) and host.pid("target") > 0
    host.tool.call("stop")
    assert host.pid("mirror") == 0 and host.pid("target") == 0


def test_no_control_socket_is_left(make_host):
    """By a process whose client, the guest's QEMU, does not leave: after a second it goes as it is."""
    host = make_host()
    host.tool.call("start primary 1 first")
    host.start_qemu("primary")
    assert glob.glob(f"{host.run}/*.ctl")
    host.tool.call("stop")
    assert not glob.glob(f"{host.run}/*.ctl")


def test_wrong_certificate(pair, pki):
    """libnbd wants the address it connects to in the certificate."""
    for kind in ("cert", "key"):
        pair.b.values[f"tls-{kind}"] = f"{pki}/c/c{'' if kind == 'cert' else '-key'}.pem"
    pair.b.tool.kill()
    pair.b.open()
    pair.start_primary()
    pair.b.tool.call("start secondary 1")
    with pytest.raises(DiskFailed, match="certificate|TLS|tls"):
        pair.a.tool.call("connect 1")


def test_start_refusals(make_host, tmp_path):
    host = make_host()
    os.unlink(host.image)
    with pytest.raises(DiskFailed, match="No such file"):
        host.tool.call("start primary 1 first")
    with open(host.image, "wb") as file:
        file.truncate(MIB)
    with open(f"{host.state}/disk0.meta", "w", encoding="ascii") as file:
        file.write("garbage")
    with pytest.raises(DiskFailed, match="is no metadata"):
        host.tool.call("start primary 1 first")
    assert "is no metadata" in host.tool.call("standing")["reason"]


# --- Errors ---


@pytest.fixture
def bad_image(tmp_path):
    """bad_image(trigger, *parameters): a change of QEMU's arguments that puts the image behind an NBD server which
    fails while the file @trigger is there."""
    processes = []

    def make(trigger, *parameters):
        path = f"{tmp_path}/bad.sock"

        def change(arguments):
            node = json.loads(arguments[1])
            assert node["node-name"] == "disk0-file"
            # pylint: disable=consider-using-with
            processes.append(subprocess.Popen(["nbdkit", "-f", "-U", path, "--filter=error", "file", node["filename"],
                                               f"error-file={trigger}", *parameters]))
            wait_until(lambda: os.path.exists(path))
            node = {"driver": "nbd", "node-name": "disk0-file", "server": {"type": "unix", "path": path}}
            return ["-blockdev", json.dumps(node), *arguments[2:]]

        return change

    yield make
    for process in processes:
        process.kill()
        process.wait()


def test_local_errors(make_host, bad_image, tmp_path):
    """An error of the image reaches the guest, also one to read: the forwarder has nothing that could replace it."""
    trigger = f"{tmp_path}/fail"
    host = make_host()
    host.tool.call("start primary 1 first")
    host.start_qemu("primary", change=bad_image(trigger, "error=EIO", "error-rate=100%"))

    def fails(command):
        """By the monitor, which tells it in QEMU's log: QEMU's NBD server ends the connection at a read error."""
        with open(f"{host.run}/qemu.log", encoding="utf-8") as log:
            log.seek(0, os.SEEK_END)
            host.qmp.call("human-monitor-command", **{"command-line": f'qemu-io disk0 "{command}"'})
            return "Input/output error" in log.read()

    assert not fails("write -P 0x78 0 4k")
    with open(trigger, "wb"):
        pass
    for command in ("write -P 0x79 0 4k", "read 0 4k", "write -z 0 4k"):
        assert fails(command), command
    os.unlink(trigger)
    assert not fails("read 0 4k") and not fails("write -P 0x7a 0 4k")
    assert read_file(host.image, BLOCK, 0) == b"z" * BLOCK
    assert host.qmp.call("query-status")["status"] == "running"


def test_colod_and_forwarder_die(make_host):
    """Nobody starts it anew: requests, and `stop`, wait for the reconnect delay and no longer; colod mends it."""
    host = make_host()
    host.tool.call("start primary 1 first")
    host.start_qemu("primary")
    guest = Guest(host)
    guest.write(b"x" * BLOCK, 0)
    host.tool.kill()
    host.kill("mirror")
    start = time.monotonic()
    host.qmp.call("stop")
    stopped = time.monotonic() - start
    host.qmp.call("cont")
    with pytest.raises(nbd.Error):
        guest.write(b"y" * BLOCK, 0)
    failed = time.monotonic() - start
    print(f"stop {stopped:.1f} s, write {failed:.1f} s")
    assert stopped < RECONNECT_DELAY_S + 2 and failed < 2 * RECONNECT_DELAY_S + 4
    host.open()
    host.tool.call("adopt")

    def writes():
        with contextlib.suppress(nbd.Error):
            guest.write(b"z" * BLOCK, 0)
            return True
        return False
    wait_until(writes)
    assert host.tool.call("status")["status"]["forwarder"]["marked_bytes"] > 0


# --- Under COLO ---


def enter_colo(pair):
    """As colod does it, but straight from QEMU to QEMU: the secondary's disk is mirrored before SVM may run."""
    path = f"{pair.b.run}/migration"
    capabilities = [{"capability": name, "state": True} for name in ("return-path", "x-colo")]
    pair.a.tool.call("connect 1")
    pair.a.tool.event("synced")
    pair.b.qmp.call("migrate-set-capabilities", capabilities=capabilities)
    pair.b.qmp.call("migrate-incoming", uri=f"unix:{path}")
    pair.a.qmp.call("stop")
    pair.a.tool.call("finish")
    pair.b.tool.call("mirror 1")
    pair.release(0)
    pair.a.qmp.call("migrate-set-capabilities", capabilities=capabilities)
    pair.a.qmp.call("migrate-set-parameters", **{"x-checkpoint-delay": 1000000000})
    pair.a.qmp.events.clear()
    pair.a.qmp.call("migrate", uri=f"unix:{path}")
    pair.a.qmp.wait_event("RESUME")


def colo_checkpoint(pair):
    pair.a.qmp.call("migrate-set-parameters", **{"x-checkpoint-delay": 1000000000})
    pair.a.qmp.wait_event("STOP")
    pair.a.qmp.wait_event("RESUME")


@pytest.mark.parametrize("device", ["virtio-blk-pci", "scsi-hd", "ide-hd", "nvme"])
def test_colo(make_host, device):
    """Each device model migrates, and the graph of each role bears COLO and a failover of it."""
    pair = Pair(make_host, device=device)
    pair.a.tool.call("start primary 1 first")
    pair.a.start_qemu("primary")
    guest = Guest(pair.a)
    guest.write(b"before" + bytes(BLOCK - 6), 0)
    pair.b.tool.call("start secondary 1")
    pair.b.start_qemu("secondary", "-incoming", "defer")
    enter_colo(pair)
    svm = Guest(pair.b)
    for epoch in (1, 2, 3):
        guest.write(b"%d" % epoch + bytes(BLOCK - 1), epoch * BLOCK)
        svm.write(b"own" + bytes(BLOCK - 3), 9 * BLOCK)
        assert svm.read(1, epoch * BLOCK) == b"\0"
        colo_checkpoint(pair)
        pair.a.tool.call(f"barrier {epoch}")
        pair.b.tool.call(f"checkpoint {epoch}")
        pair.release(epoch)
        assert svm.read(1, epoch * BLOCK) == b"%d" % epoch and svm.read(3, 9 * BLOCK) == bytes(3)
    pair.a.stop_qemu()
    pair.b.tool.call("failover 2")
    pair.b.qmp.call("x-colo-lost-heartbeat")
    wait_until(lambda: pair.b.qmp.call("query-status")["status"] == "running")
    pair.b.tool.event("committed")
    pair.b.tool.call("move 2")
    svm.write(b"after" + bytes(BLOCK - 5), 8 * BLOCK)
    assert read_file(pair.b.image, 6, 0) == b"before" and read_file(pair.b.image, 5, 8 * BLOCK) == b"after"
