# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_faults.py - full overlays, a full disk, crashes, damaged files, strangers"""
import errno
import os
import random
import socket
import subprocess

import nbd
import pytest
from conftest import DEADLINE_S, SOURCE, Refused
from test_target import MIB, errno_of, read_disk


def fill(handle, step=MIB // 4, offset=0):
    """Writes until that fails; the error."""
    try:
        while offset + step <= handle.get_size():
            handle.pwrite(b"f" * step, offset)
            offset += step
    except nbd.Error as error:
        return error.errnum
    return 0


def test_active_full(make_target):
    """SVM is told; a checkpoint makes room; high water was reported before."""
    target = make_target(overlay_limit="4M")
    target.mirror()
    svm = target.connect("active")
    svm.pwrite(b"x" * 3 * MIB, 0)
    assert target.wait_status(lambda status: status["high_water"])["active"]["used_bytes"] == 3 * MIB
    assert fill(svm, offset=3 * MIB) == errno.ENOSPC
    status = target.ask("status")
    assert status["faults"] == {"active-full": 1} and status["stale"] == "none"
    target.ask("checkpoint", epoch=1)
    assert not target.ask("status")["high_water"]
    svm.pwrite(b"x" * 3 * MIB, 0)


def test_hidden_full(make_target):
    """The mirror stops by name, nothing hangs, SVM's view is whole and can become the truth."""
    target = make_target(overlay_limit="4M")
    target.mirror()
    primary, svm = target.connect("target"), target.connect("active")
    svm.pwrite(b"truth", 2 * MIB)
    assert fill(primary) == errno.ENOSPC
    assert target.wait_status(lambda status: status["stale"] != "none")["stale"] == "hidden-full"
    assert errno_of(primary.pwrite, b"x", 0) == errno.ENOSPC  # what follows fails as the first did
    assert errno_of(primary.flush) == errno.ENOSPC
    for command, arguments in (("checkpoint", {"epoch": 1}), ("barrier", {})):
        with pytest.raises(Refused, match="hidden-full"):
            target.ask(command, **arguments)
    target.ask("failover", generation=2)
    want = bytearray(target.connect("active").get_size())
    want[2 * MIB:2 * MIB + 5] = b"truth"
    assert read_disk(target) == want


@pytest.mark.parametrize("export,fault", [("active", "active-full"), ("target", "hidden-full")])
def test_overlay_directory_full(make_target, small_fs, export, fault):
    """ENOSPC of the file system; then the commit record has no room either, until there is some."""
    overlays = small_fs("2M")
    target = make_target(start=False)
    target.overlays = overlays
    target.start()
    target.mirror()
    assert fill(target.connect(export)) == errno.ENOSPC
    assert target.ask("status")["faults"][fault] == 1
    svm = target.connect("active")
    view = b"".join(bytes(svm.pread(MIB, i * MIB)) for i in range(64))
    subprocess.run(["dd", "if=/dev/zero", f"of={overlays}/filler", "bs=4k"], stderr=subprocess.DEVNULL, check=False)
    with pytest.raises(Refused, match="failover-commit: .*No space left"):
        target.ask("failover", generation=2)
    assert target.ask("status")["commit"]["phase"] == "failed"
    svm.pwrite(view[:10], 0)  # SVM goes on
    subprocess.run(["mount", "-o", "remount,size=8M", overlays], check=True)
    target.ask("failover", generation=2)
    assert read_disk(target) == view


def test_secondary_disk_full(make_target, small_fs):
    """A sparse disk on a full file system: a mirrored write fails in the disk itself."""
    folder = small_fs("4M")
    target = make_target(start=False)
    target.disk = f"{folder}/disk"
    with open(target.disk, "wb") as disk:
        disk.truncate(64 * MIB)
    target.start()
    target.mirror()
    svm = target.connect("active")
    svm.pwrite(b"mine", 100)
    assert fill(target.connect("target")) == errno.ENOSPC
    assert target.ask("status")["stale"] == "secondary-disk"
    assert bytes(svm.pread(4, 100)) == b"mine" and bytes(svm.pread(4, 0)) == bytes(4)
    with pytest.raises(Refused, match="secondary-disk"):
        target.ask("checkpoint", epoch=1)


def write_view(target, rng):
    """Both sides write; what SVM then sees."""
    primary, svm = target.connect("target"), target.connect("active")
    view = bytearray(svm.get_size())
    for _ in range(800):
        offset, length = rng.randrange(0, len(view) - 70000), rng.randrange(1, 65536)
        primary.pwrite(b"P" * length, rng.randrange(0, len(view) - 70000))
        data = rng.randbytes(length)
        svm.pwrite(data, offset)
        view[offset:offset + length] = data
    return view


def test_killed_while_committing(make_target):
    """SIGKILL at once after `durable`, and again in the next lives; SVM's disk is served all the time it can be."""
    target = make_target(64 * MIB)
    target.mirror()
    rng = random.Random(4)
    view = write_view(target, rng)
    target.ask("failover", generation=2, until="durable")
    for _ in range(4):
        target.kill()
        target.start()
        svm = target.connect("active")
        assert target.ask("status")["startable"]
        offset = rng.randrange(0, len(view) - 5000)
        assert bytes(svm.pread(5000, offset)) == bytes(view[offset:offset + 5000])
        data = rng.randbytes(3000)
        svm.pwrite(data, offset + 100, nbd.CMD_FLAG_FUA)
        view[offset + 100:offset + 3100] = data
    status = target.wait_status(lambda status: status["mode"] == "local")
    assert status["state"] == "UpToDate" and status["generation"] == 2
    assert read_disk(target) == view
    assert sorted(os.listdir(target.overlays)) == ["active", "hidden"]
    target.kill()
    target.start()
    assert target.ask("status")["mode"] == "local"


def test_killed_while_mirroring(make_target):
    """SVM is lost with the process: the disk is a mirror's, and must be synced before anybody starts on it."""
    target = make_target()
    target.mirror()
    target.connect("active").pwrite(b"lost", 0)
    target.connect("target").pwrite(b"kept", 0)
    target.kill()
    target.start()
    status = target.ask("status")
    assert status["mode"] == "idle" and status["state"] == "Inconsistent" and not status["startable"]
    assert bytes(target.connect("active").pread(4, 0)) == b"kept"
    target.mirror()


def test_memory_overlays(make_target):
    target = make_target(overlay="memory", overlay_limit="64M")
    target.mirror()
    view = write_view(target, random.Random(9))
    assert target.ask("status")["durable_overlays"] is False
    target.ask("failover", generation=2)
    assert read_disk(target) == view
    assert os.listdir(target.overlays) == []


def refusal(target):
    """Why nbdkit does not start."""
    done = subprocess.run(target.command("-U", target.nbd), capture_output=True, text=True, timeout=DEADLINE_S,
                          check=False)
    assert done.returncode != 0
    return done.stderr


def test_what_is_not_served(make_target):
    target = make_target()
    other = make_target(start=False)
    assert "another process uses it" in refusal(other)
    target.mirror()
    target.connect("active").pwrite(b"x", 0)
    target.ask("failover", generation=2)
    target.stop()
    good = open(target.meta, "rb").read()
    with open(target.meta, "r+b") as meta:
        meta.seek(40)
        meta.write(b"9")
    assert "checksum does not fit" in refusal(target)
    with open(target.meta, "wb") as meta:
        meta.write(good)
    os.truncate(target.disk, 32 * MIB)
    assert "belongs to a disk of" in refusal(target)
    os.truncate(target.disk, 64 * MIB)
    target.options["overlay-limit"] = "1k"
    assert "limit" in refusal(target)
    del target.options["overlay-limit"]
    target.options["colour"] = "red"
    assert "unknown parameter" in refusal(target)
    del target.options["colour"]
    target.disk = "/dev/null"
    assert "raw file or a block device" in refusal(target)


# --- What crosses hosts ---


def make_certificates(folder):
    """The files nbdkit and libnbd want, from colo-pki's."""
    pki = f"{folder}/pki"
    subprocess.run([f"{SOURCE}/deploy/colo-pki", "init", pki], check=True, capture_output=True)
    for name in ("alpha", "localhost"):
        subprocess.run([f"{SOURCE}/deploy/colo-pki", "host", pki, name], check=True, capture_output=True)
        os.makedirs(f"{folder}/{name}")
        for kind in ("server", "client"):
            os.symlink(f"{pki}/{name}/{name}.pem", f"{folder}/{name}/{kind}-cert.pem")
            os.symlink(f"{pki}/{name}/{name}-key.pem", f"{folder}/{name}/{kind}-key.pem")
        os.symlink(f"{pki}/{name}/ca.pem", f"{folder}/{name}/ca-cert.pem")


def start_with_sockets(target, listeners, *options):
    """nbdkit by socket activation: descriptors 3, 4, ... are its sockets."""
    # pylint: disable=consider-using-with
    script = "import os,sys; os.environ['LISTEN_PID']=str(os.getpid()); os.execvp(sys.argv[1], sys.argv[1:])"
    numbers = range(3, 3 + len(listeners))

    def place():
        copies = [os.dup(listener.fileno()) for listener in listeners]
        for number, copy in zip(numbers, [os.dup2(copy, 100 + i) for i, copy in enumerate(copies)]):
            os.dup2(copy, number)

    with open(target.log, "ab") as log:
        target.process = subprocess.Popen(
            ["/usr/bin/python3", "-c", script, *target.command(*options)], stderr=log, preexec_fn=place,
            pass_fds=tuple(numbers), env={**os.environ, "LISTEN_FDS": str(len(listeners))})


def test_two_sockets_and_tls(make_target, tmp_path):
    """One process, a TCP socket for the primary and a UNIX socket for QEMU; over TCP only `target`, only with TLS and
    only for who has a certificate of the pair's authority."""
    make_certificates(tmp_path)
    target = make_target(start=False)
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as tcp:
        local.bind(target.nbd)
        local.listen()
        port = str(tcp.getsockname()[1])
        start_with_sockets(target, [local, tcp], "--tls=on", f"--tls-certificates={tmp_path}/localhost", "--tls-verify-peer")
        target.wait_ready()
        target.mirror()

        def connect(export, certificates):
            handle = nbd.NBD()
            handle.set_export_name(export)
            if certificates:
                handle.set_tls(nbd.TLS_REQUIRE)
                handle.set_tls_certificates(certificates)
                handle.set_tls_username("colod")
            handle.connect_tcp("localhost", port)  # the name in the certificate
            return handle

        primary = connect("target", f"{tmp_path}/alpha")
        primary.pwrite(b"over TLS", 7)
        assert bytes(target.connect("target").pread(8, 7)) == b"over TLS"
        target.handles.append(primary)
        for export, certificates in (("active", f"{tmp_path}/alpha"), ("target", None), ("active", None)):
            with pytest.raises(nbd.Error):
                connect(export, certificates)
        os.makedirs(f"{tmp_path}/stranger")
        os.symlink(f"{tmp_path}/alpha/ca-cert.pem", f"{tmp_path}/stranger/ca-cert.pem")
        with pytest.raises(nbd.Error):
            connect("target", f"{tmp_path}/stranger").pread(1, 0)
        log = target.text_of_log()
        assert "'target' needs TLS" in log and "'active' is for UNIX sockets" in log
