# SPDX-License-Identifier: LGPL-2.1-or-later
"""Garbage and truncated bytes on the peer port and the control socket disturb nothing."""
import contextlib
import json
import random
import socket
import ssl
import struct

import pytest

from lablib import netns, topology
from lablib.control import Control, ControlGone
from lablib.settings import PEER_PORT, VM
from lablib.util import LabError, run, wait_until

RANDOM = random.Random(1)
HELLO = 1


@pytest.fixture(scope="module")
def pki(keeper, tmp_path_factory):
    """Certificates that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("pki")
    tool = f"{__file__.rsplit('/tests/', 1)[0]}/deploy/colo-pki"
    run(tool, "init", f"{folder}/other")
    for name in ("a", "b"):
        run(tool, "host", f"{folder}/other", name, f"{folder}/other-{name}")
    keeper.get(keeper.options or {})
    run(tool, "host", f"{keeper.lab.dir}/ca", "mallory", f"{folder}/mallory")
    return folder


def peer_socket(pair, listener, timeout=5):
    """A TCP connection to the peer port of the listener from the other host."""
    other = "b" if listener == "a" else "a"
    with netns.inside(pair.lab.topology.name(other)):
        sock = socket.socket()
    sock.settimeout(timeout)
    sock.connect((topology.PEER_ADDRESS[listener], PEER_PORT))
    return sock


def listeners(pair):
    found = []
    for name in ("a", "b"):
        with contextlib.suppress(OSError):
            peer_socket(pair, name).close()
            found.append(name)
    assert found, "nobody listens for the peer"
    return found


def tls(pair, listener, folder=None, name=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if folder:
        context.load_cert_chain(f"{folder}/{name}.pem", f"{folder}/{name}-key.pem")
    return context.wrap_socket(peer_socket(pair, listener), server_hostname=listener)


def host_tls(pair, listener):
    """With the other host's own certificate: what follows is up to the message parser."""
    other = "b" if listener == "a" else "a"
    return tls(pair, listener, f"{pair.lab.host(other).dir}/pki", other)


def message(kind, payload, version=1, reserved=0, length=None):
    return struct.pack(">BBHI", version, kind, reserved, len(payload) if length is None else length) + payload


def hello(pair, listener, **changes):
    other = "b" if listener == "a" else "a"
    settings = pair.lab.settings
    values = {"channel": "control", "vm": VM, "uuid": settings.uuid, "host": other, "role": "none",
              "generation": "1", "boot_id": "1", "software": "0.1.0", "session": "1"}
    values.update(changes)
    return json.dumps({key: value for key, value in values.items() if value is not None}).encode()


def read_to_end(sock):
    """All until the other side closes; LabError if it does not."""
    data = b""
    try:
        while True:
            part = sock.recv(4096)
            if not part:
                return data
            data += part
    except TimeoutError as error:
        raise LabError("colod keeps the connection open") from error
    except OSError:  # reset, TLS alert: closed as well
        return data


def send(sock, data):
    with contextlib.suppress(OSError):
        sock.sendall(data)


def client_hello():
    """The first message of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="b").do_handshake()
    return outgoing.read()


class Undisturbed:
    """The pair stays protected in its generation, and checkpoints go on."""

    def __init__(self, pair):
        self.pair = pair

    def __enter__(self):
        self.mark = self.pair.mark()
        return self

    def __exit__(self, kind, *_):
        if kind:
            return
        self.pair.wait_epochs(5)
        for name, state in ((self.pair.primary, "protected"), (self.pair.secondary, "standby")):
            status = self.pair.status(name)
            assert status["state"] == state, f"{name} is {status['state']}: {status['reason']}"
            assert status["generation"] == self.mark.generation


RAW = {
    "nothing": b"",
    "garbage": bytes(RANDOM.randrange(256) for _ in range(65536)),
    "zeros": bytes(4096),
    "http": b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
    "truncated client hello": client_hello()[:60],
    "client hello and garbage": client_hello() + bytes(RANDOM.randrange(256) for _ in range(4096)),
    "unencrypted hello": message(HELLO, b"{}"),
}


@pytest.mark.parametrize("what", RAW)
def test_raw_bytes_on_the_peer_port(pair, what):
    with Undisturbed(pair):
        for listener in listeners(pair):
            with peer_socket(pair, listener) as sock:
                send(sock, RAW[what])
                sock.shutdown(socket.SHUT_WR)
                read_to_end(sock)


def test_connections_that_say_nothing(pair):
    """They end by themselves, and the peer's own way in stays free."""
    with Undisturbed(pair):
        silent = [peer_socket(pair, listener, 15) for listener in listeners(pair) for _ in range(50)]
        for sock in silent:
            with sock:
                read_to_end(sock)


@pytest.mark.parametrize("who", ["nobody", "other-a", "other-b", "mallory"])
def test_wrong_certificate(pair, pki, who):
    """None, another CA's for the right names, the right CA's for a wrong name: refused and logged."""
    with Undisturbed(pair):
        for listener in listeners(pair):
            folder = None if who == "nobody" else f"{pki}/{who}"
            name = who.rpartition("-")[2]
            with contextlib.suppress(OSError):  # TLS 1.3: the refusal may come after our handshake
                with tls(pair, listener, folder, name) as sock:
                    send(sock, message(HELLO, hello(pair, listener)))
                    answer = read_to_end(sock)
                    assert answer[1:2] != b"\x02", "a WELCOME for a wrong certificate"
            # The same refusal is not written down again and again: an earlier one will do.
            pair.assert_told(listener, None, r"peer-refused.*certificate")


BAD_MESSAGES = {
    "garbage": lambda pair, listener: bytes(RANDOM.randrange(256) for _ in range(4096)),
    "version 2": lambda pair, listener: message(HELLO, hello(pair, listener), version=2),
    "reserved bytes": lambda pair, listener: message(HELLO, hello(pair, listener), reserved=1),
    "unknown type": lambda pair, listener: message(200, hello(pair, listener)),
    "type of another channel": lambda pair, listener: message(35, bytes(24)),
    "length 4 GiB": lambda pair, listener: message(HELLO, b"", length=0xFFFFFFFF),
    "truncated header": lambda pair, listener: message(HELLO, b"")[:5],
    "truncated payload": lambda pair, listener: message(HELLO, hello(pair, listener)[:20], length=200),
    "no JSON": lambda pair, listener: message(HELLO, b"hello"),
    "empty JSON": lambda pair, listener: message(HELLO, b"{}"),
    "deep JSON": lambda pair, listener: message(HELLO, b"[" * 30000),
    "JSON of wrong types": lambda pair, listener: message(HELLO, hello(pair, listener, generation=[1], host=7)),
    "another VM": lambda pair, listener: message(HELLO, hello(pair, listener, vm="other")),
    "another UUID": lambda pair, listener: message(
        HELLO, hello(pair, listener, uuid="00000000-0000-4000-8000-000000000000")),
    "another host": lambda pair, listener: message(HELLO, hello(pair, listener, host="mallory")),
    "unknown channel": lambda pair, listener: message(HELLO, hello(pair, listener, channel="disks")),
    "unknown session": lambda pair, listener: message(
        HELLO, hello(pair, listener, channel="checkpoint", session="12345")),
}


# What is answered, and what an operator reads of it.
REFUSALS = {
    "version 2": ("version", r"version"),
    "another VM": ("vm", r"VM is 'other'"),
    "another UUID": ("uuid", r"VM UUID is '00000000-0000-4000-8000-000000000000'"),
    "another host": ("host", r"host is 'mallory'"),
}


@pytest.mark.parametrize("what", BAD_MESSAGES)
def test_bad_message_from_a_peer_with_a_certificate(pair, what):
    with Undisturbed(pair):
        for listener in listeners(pair):
            with host_tls(pair, listener) as sock:
                send(sock, BAD_MESSAGES[what](pair, listener))
                answer = read_to_end(sock)
                assert answer[1:2] != b"\x02", "a WELCOME for a bad message"
            if what in REFUSALS:
                code, text = REFUSALS[what]
                assert answer[1:2] == b"\x03" and json.loads(answer[8:])["code"] == code, answer
                pair.assert_told(listener, None, rf"peer-refused.*{text}")


CONTROL_LINES = {
    "no JSON": b"hello\n",
    "binary": bytes(range(1, 256)) + b"\n",
    "no object": b"[1, 2]\n",
    "deep": b"[" * 30000 + b"\n",
    "truncated": b'{"id": 1, "command": "sta\n',
    "no command": b'{"id": 1}\n',
    "unknown command": b'{"id": 1, "command": "frobnicate"}\n',
    "wrong type of command": b'{"id": 1, "command": 7}\n',
    "wrong type of arguments": b'{"id": 1, "command": "events", "arguments": [1]}\n',
    "wrong type of argument": b'{"id": 1, "command": "events", "arguments": {"after": "x"}}\n',
    "stall step out of range": b'{"id": 1, "command": "test-stall", "arguments": {"step": 99}}\n',
    "stall in no state": b'{"id": 1, "command": "test-stall", "arguments": {"state": "nowhere"}}\n',
    "stall in a state that is no name": b'{"id": 1, "command": "test-stall", "arguments": {"state": null}}\n',
}


@pytest.mark.parametrize("what", CONTROL_LINES)
def test_bad_line_on_the_control_socket(pair, what):
    """An error that says what, and the connection stays usable."""
    with Undisturbed(pair):
        for name in ("a", "b"):
            with Control(pair.lab.host(name).socket) as control:
                control.send_bytes(CONTROL_LINES[what])
                assert control.read_message()["error"]["text"]
                assert control.call("status")["vm"] == VM


def test_truncated_and_endless_lines_on_the_control_socket(pair):
    with Undisturbed(pair):
        for name in ("a", "b"):
            path = pair.lab.host(name).socket
            with Control(path) as control:
                control.send_bytes(b'{"id": 1, "comm')
            with Control(path) as control, contextlib.suppress(ControlGone):
                for _ in range(64):
                    control.send_bytes(b"x" * 65536)
                while "error" in control.read_message():
                    pass
            assert pair.status(name)["vm"] == VM


def test_many_and_deaf_clients_on_the_control_socket(pair):
    """More clients than there is room for, and some that never read."""
    with Undisturbed(pair):
        for name in ("a", "b"):
            path = pair.lab.host(name).socket
            clients = []
            with contextlib.suppress(ControlGone):
                for _ in range(100):
                    clients.append(Control(path))
            for client in clients[:20]:
                with contextlib.suppress(ControlGone, LabError):
                    client.sock.settimeout(0.2)
                    client.send_bytes(b'{"id": 1, "command": "status"}\n' * 50)
            for client in clients:
                client.close()
            wait_until(lambda name=name: pair.status(name), 5, f"colod on {name} answers again")
