# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_colod.py - the whole colod, alone on this host: a VM without NICs and disks, and a peer that the tests lead."""

import contextlib
import hashlib
import json
import os
import pathlib
import socket
import ssl
import struct
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "lab"))

# pylint: disable=wrong-import-position
from lablib.util import wait_until  # noqa: E402

COLOD = os.environ["COLOD"]
COLO = os.environ["COLO"]
COLO_PKI = os.environ["COLO_PKI"]
DEADLINE = 20  # of every wait
HELLO, HEARTBEAT, STATE, VM_DEAD = 1, 16, 17, 21
UUID = "6f0b9e9c-2b6a-4f57-9d5e-0d9a3f6f2d11"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Colod:
    """host-b, the host that accepts; nobody is host-a but the tests."""

    def __init__(self, folder, pki):
        self.folder, self.pki, self.port, self.process = folder, pki, free_port(), None
        self.vm_dir = folder / "run/web1"
        self.vm_dir.mkdir(parents=True)
        (folder / "state/web1").mkdir(parents=True)
        (folder / "web1.conf").write_text(f"""\
[vm]
uuid={UUID}
qemu=/nonexistent/qemu
accel=tcg
memory-mib=64
[host]
name=host-b
initial-role=secondary
[peer]
name=host-a
listen=127.0.0.1:{self.port}
address=127.0.0.1:{self.port + 1 if self.port < 65535 else 1}
tls-ca={pki}/host-b/ca.pem
tls-cert={pki}/host-b/host-b.pem
tls-key={pki}/host-b/host-b-key.pem
heartbeat-limit-ms=20000
""")

    def save(self, **values):
        """The state that an earlier colod has left."""
        lines = {"generation": 0, "claiming": 0, "role": "none", "protecting": 0, "unprotect": 0, "qemu-pid": 0,
                 "qemu-start-ticks": 0, "tap-fds": ",".join(["-1"] * 8), "boot-id": ""}
        lines.update({key.replace("_", "-"): value for key, value in values.items()})
        text = "colod-state 1\n" + "".join(f"{key}={value}\n" for key, value in lines.items())
        (self.folder / "state/web1/state").write_text(
            f"{text}sha256={hashlib.sha256(text.encode()).hexdigest()}\n")

    def start(self):
        self.process = subprocess.Popen(
            [COLOD, "-c", self.folder / "web1.conf", "--run-dir", self.folder / "run", "--state-dir",
             self.folder / "state", "web1"], stderr=(self.folder / "log").open("w"))
        wait_until(lambda: self.colo("status").returncode == 0, DEADLINE, "an answer")

    def colo(self, *arguments):
        return subprocess.run([COLO, "--socket", self.vm_dir / "control.sock", *arguments], check=False,
                              capture_output=True, text=True, timeout=DEADLINE)

    def request(self, command, **arguments):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(self.vm_dir / "control.sock"))
            sock.sendall(json.dumps({"id": 1, "command": command, "arguments": arguments}).encode() + b"\n")
            return json.loads(sock.makefile().readline())

    def status(self):
        return json.loads(self.colo("status", "--json").stdout)

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(DEADLINE)


def message(kind, **body):
    payload = json.dumps(body, ensure_ascii=False).encode()
    return struct.pack(">BBHI", 1, kind, 0, len(payload)) + payload


class Peer:
    """The colod of host-a: what it says is for the tests to choose."""

    def __init__(self, colod):
        self.colod, self.streams, session = colod, [], "0"
        for channel in "control", "checkpoint", "frames":
            stream = self.connect()
            self.streams.append(stream)
            stream.sendall(message(HELLO, channel=channel, vm="web1", uuid=UUID, host="host-a", role="none",
                                   generation="0", boot_id="1", software="0.1.0", session=session))
            session = self.receive(stream)[1]["session"]
        self.control = self.streams[0]

    def connect(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.colod.pki / "host-a/ca.pem")
        context.load_cert_chain(self.colod.pki / "host-a/host-a.pem", self.colod.pki / "host-a/host-a-key.pem")
        sock = socket.create_connection(("127.0.0.1", self.colod.port), DEADLINE)
        return context.wrap_socket(sock, server_hostname="host-b")

    @staticmethod
    def receive(stream):
        def exactly(length):
            data = b""
            while len(data) < length:
                part = stream.recv(length - len(data))
                assert part, "colod has closed the connection"
                data += part
            return data

        _version, kind, _zero, length = struct.unpack(">BBHI", exactly(8))
        payload = exactly(length)
        return kind, payload if kind == HEARTBEAT else json.loads(payload)

    def wait_for(self, kind):
        while True:
            found, body = self.receive(self.control)
            if found == kind:
                return body

    def close(self):
        for stream in self.streams:
            stream.close()


@pytest.fixture(name="pki", scope="module")
def make_pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    for arguments in (["init", folder], ["host", folder, "host-a"], ["host", folder, "host-b"]):
        subprocess.run([COLO_PKI, *arguments], check=True)
    return folder


@pytest.fixture(name="colod")
def make_colod(tmp_path, pki):
    daemon = Colod(tmp_path, pki)
    yield daemon
    daemon.stop()
    print((tmp_path / "log").read_text())


def test_waits_as_long_as_colo_may(colod):
    """`colo --timeout` goes up to a day: colod does not take that for a wrong argument."""
    colod.start()
    for command in ["failover", "--yes"], ["checkpoint"]:
        answer = colod.colo("--timeout", "86400", *command)
        assert answer.returncode == 1 and "timeout_ms" not in answer.stderr, answer.stderr


@pytest.mark.parametrize("command", ["failover", "checkpoint"])
def test_a_wait_has_its_bounds(colod, command):
    """Both take `timeout_ms` (docs/PROTOCOL.md), so both look at it."""
    colod.start()
    for timeout_ms in 0, 86400001, "1":
        error = colod.request(command, timeout_ms=timeout_ms)["error"]
        assert error["class"] == "usage" and "timeout_ms" in error["text"]


@pytest.mark.parametrize("text", [pytest.param("x" * 65490, id="long"), pytest.param("/" * 65000, id="escaped"),
                                  pytest.param("\u20ac" * 21830, id="cut-within-a-character")])
def test_what_the_peer_said_is_quoted_within_bounds(colod, text):
    """A reason is sent with what others said in it, and a message has its bound."""
    colod.start()
    peer = Peer(colod)
    peer.control.sendall(message(STATE, generation="0", state=text))
    wait_until(lambda: not colod.status()["peer"]["connected"], DEADLINE, "the end of the link")
    # Whoever is idle tells a new peer that it has no VM, and what failed last.
    peer = Peer(colod)
    peer.control.sendall(message(STATE, generation="0", state="idle", role="none", initial_primary=False))
    assert peer.wait_for(VM_DEAD)["reason"].startswith("peer link: malformed or unexpected STATE")
    assert colod.process.poll() is None
    peer.close()


@pytest.mark.parametrize("answer", [None, b'{"QMP": {}}\n'], ids=["closed", "malformed"])
def test_an_adopted_vm_without_qmp_is_given_up(colod, answer):
    """Its QEMU will never be ready, so there is nothing to claim for: the peer is not kept waiting."""
    with contextlib.ExitStack() as stack:
        qemu = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
        stack.callback(qemu.kill)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(colod.vm_dir / "qmp.sock"))
        listener.listen()
        listener.settimeout(DEADLINE)
        stat = pathlib.Path(f"/proc/{qemu.pid}/stat").read_text()
        colod.save(generation=3, role="primary", protecting=1, qemu_pid=qemu.pid,
                   qemu_start_ticks=stat.rsplit(") ", 1)[1].split()[19],
                   boot_id=pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        colod.start()
        connection = listener.accept()[0]
        if answer:
            connection.sendall(answer)
        connection.close()
        qemu.wait(DEADLINE)
        wait_until(lambda: colod.status()["state"] == "idle", DEADLINE, "another state")
        assert "adopting the running QEMU: QMP" in colod.colo("events").stdout


def test_a_claim_that_nobody_can_follow(colod):
    """The last number there is, in the arbiter's folder: a claim behind it would be number 0."""
    folder = colod.folder / "claims"
    folder.mkdir()
    (folder / "web1.18446744073709551615").write_text("host-a\n")
    with (colod.folder / "web1.conf").open("a") as config:
        config.write(f"[arbiter]\ntype=file\npath={folder}\n")
    colod.start()
    answer = colod.colo("failover", "--yes")
    assert answer.returncode == 1 and "no generation follows" in answer.stderr
    assert colod.process.poll() is None
