# SPDX-License-Identifier: LGPL-2.1-or-later
"""streams.py - clients whose bytes go the other way: uploads, and what the guest itself opens.

As in clients.py each is a thread that checks all bytes. What the guest got is checked by the guest: it answers with
the MD5 of it when all has come.
"""
import hashlib
import re
import select
import socket
import struct
import threading
import time

from .clients import CONNECT_S, MIB, SO_RCVBUFFORCE, STALL_S, Blob, Client, family_of
from .topology import CLIENT_ADDRESS
from .util import LabError, wait_until

SO_SNDBUFFORCE = 32
PIECE = 64 << 10


def allow_many_connections(lab):
    """100 connections with send buffers as large as they grow would use up what the guest's kernel gives to TCP (7 MiB
    of 128), which then resets those that the server has closed."""
    lab.guest_script("cd /proc/sys/net/ipv4 && echo 6000 8000 10000 >tcp_mem && echo 4096 16384 131072 >tcp_wmem")


def blob_md5(mib):
    total = hashlib.md5()
    for at in range(0, mib * MIB, MIB):
        total.update(Blob.piece(at, MIB))
    return total.hexdigest()


class Paced(Client):
    """A stream of a fixed length. rate: bytes a second until stop() is asked for, then as fast as it goes."""

    def __init__(self, lab, mib, rate, name, **more):
        super().__init__(lab, name, **more)
        self.total = mib * MIB
        self.rate = rate
        self.sent = 0
        self.times_ns = []
        self.start_ns = 0
        self.last_ns = 0

    def begin(self, sock):
        """Small buffers, so that what is sent or received here is close to what has got through."""
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 256 << 10)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 10)
        sock.setblocking(False)
        self.start_ns = self.last_ns = time.monotonic_ns()

    def may_send(self):
        """Seconds until the next piece is due."""
        if not self.rate or self.stopping.is_set() or self.sent == self.total:
            return 0
        ahead = self.sent / self.rate - (time.monotonic_ns() - self.start_ns) / 1e9
        if ahead < -1:  # nothing is made up for
            self.start_ns = time.monotonic_ns() - int(self.sent / self.rate * 1e9)
        return max(0, ahead)

    def send_piece(self, sock):
        self.sent += sock.send(Blob.piece(self.sent, min(PIECE, self.total - self.sent)))
        self.progress()

    def progress(self):
        self.last_ns = time.monotonic_ns()
        self.times_ns.append(self.last_ns)

    def check_alive(self):
        if time.monotonic_ns() - self.last_ns > STALL_S * 10**9:
            raise LabError(f"nothing moved for {STALL_S} s; {self.where()}")

    def where(self):
        return f"{self.sent} of {self.total} bytes sent"

    def moved(self):
        return self.sent

    def wait_more(self, count=1, seconds=20):
        goal = self.moved() + count

        def reached():
            self.check()
            return self.moved() >= goal or not self.is_alive()
        wait_until(reached, seconds, lambda: f"{self.name}: {self.where()}")


class Upload(Paced):
    """POST of the blob's first N MiB; the guest answers with the MD5 of what it got."""

    def __init__(self, lab, mib=16, rate=None, name="upload"):
        super().__init__(lab, mib, rate, name)

    def work(self):
        with self.connect(8080) as sock:
            sock.sendall(f"POST /cgi-bin/sum HTTP/1.0\r\nContent-Length: {self.total}\r\n\r\n".encode())
            self.begin(sock)
            while self.sent < self.total:
                wait = self.may_send()
                if wait:
                    self.last_ns = time.monotonic_ns()
                    self.stopping.wait(min(wait, 0.1))
                    continue
                _, writable, _ = select.select([], [sock], [], 0.1)
                if writable:
                    self.send_piece(sock)
                self.check_alive()
            self._read_answer(sock)

    def _read_answer(self, sock):
        sock.settimeout(STALL_S)
        answer = b""
        while data := sock.recv(4096):
            answer += data
        found = re.search(rb"\b[0-9a-f]{32}\b", answer)
        assert found, f"no checksum in the answer {answer[-200:]!r}"
        assert found.group().decode() == blob_md5(self.total // MIB), "the guest got other bytes"

    def wait_done(self, seconds):
        self.join(seconds)
        self.check()
        if self.is_alive():
            raise LabError(f"{self.name}: not done within {seconds} s: {self.where()}")


class Outbound(Paced):
    """The guest connects to the client's side; both send each other the blob's first N MiB."""

    def __init__(self, lab, mib=16, rate=None, name="outbound", port=8100):
        super().__init__(lab, mib, rate, name)
        self.port = port
        self.received = 0
        self.output = None

    def moved(self):
        return min(self.sent, self.received)

    def where(self):
        return f"{self.sent} sent and {self.received} received of {self.total} bytes"

    def _in_guest(self):
        mib = self.total // MIB
        try:
            self.output = self.lab.guest_script(
                f"guest-agent blob {mib} | nc {CLIENT_ADDRESS} {self.port} | md5sum", 120 + STALL_S)
        except LabError as error:
            self.output = str(error)

    def work(self):
        with self.lab.client_socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((CLIENT_ADDRESS, self.port))
            listener.listen()
            listener.settimeout(CONNECT_S)
            guest = threading.Thread(target=self._in_guest, daemon=True)
            guest.start()
            sock, _ = listener.accept()
        with sock:
            self.begin(sock)
            self._exchange(sock)
        guest.join(STALL_S)
        assert self.output and blob_md5(self.total // MIB) in self.output, f"the guest got other bytes: {self.output}"

    def _exchange(self, sock):
        """Our end is closed when its has been: busybox nc ends with the first end that it sees from the network. And it
        writes to the network without reading from it meanwhile: if we cannot send, we must read, or both wait for ever."""
        ended = blocked = False
        while self.sent < self.total or not ended:
            wait = self.may_send()
            # Its side is paced too: what is not read here does not leave the guest.
            wants = [sock] if not ended and (blocked or self.received <= self.sent or self.sent == self.total) else []
            gives = [sock] if self.sent < self.total and not wait else []
            readable, writable, _ = select.select(wants, gives, [], min(0.1, wait) if wait else 0.1)
            blocked = bool(gives) and not writable
            if readable:
                ended = not self._receive(sock)
            if writable:
                self.send_piece(sock)
            self.check_alive()
        assert self.received == self.total, f"the guest's side ended early: {self.where()}"

    def _receive(self, sock):
        data = sock.recv(PIECE)
        wrong = Blob.differs(self.received, data)
        assert wrong is None, f"wrong byte at {self.received + wrong}"
        self.received += len(data)
        self.progress()
        return bool(data)


class WebServer(Client):
    """HTTP in the client's namespace: GET gives the blob's first N MiB (/N), POST takes as many and says "right".

    rate: bytes a second of a GET, None for as fast as it goes.
    """

    def __init__(self, lab, address=CLIENT_ADDRESS, port=8000, rate=None):
        super().__init__(lab, "web-server", address)
        self.port = port
        self.rate = rate
        self.served = 0  # bytes
        self.times_ns = []
        self.listener = lab.client_socket(family=family_of(address))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.listen()
        self.listener.settimeout(0.1)

    @property
    def url(self):
        return f"http://{f'[{self.address}]' if ':' in self.address else self.address}:{self.port}"

    def work(self):
        with self.listener:
            while not self.stopping.is_set():
                try:
                    sock, _ = self.listener.accept()
                except TimeoutError:
                    continue
                with sock:
                    sock.settimeout(STALL_S)
                    self._serve(sock)

    def _progress(self, count):
        self.served += count
        self.times_ns.append(time.monotonic_ns())

    def _serve(self, sock):
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(4096)
            if not data:
                return
            head += data
        head, _, body = head.partition(b"\r\n\r\n")
        method, path = head.split(b" ")[:2]
        answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n"
        if method == b"GET":
            size = int(path[1:]) * MIB
            sock.sendall(answer % size)
            self._give(sock, size)
            return
        size = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE).group(1))
        while len(body) < size:
            data = sock.recv(PIECE)
            if not data:
                return
            body += data
            self._progress(len(data))
        text = b"right" if Blob.differs(0, body) is None else b"wrong"
        sock.sendall(answer % len(text) + text)

    def _give(self, sock, size):
        if self.rate:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 128 << 10)
        for at in range(0, size, PIECE):
            sock.sendall(Blob.piece(at, min(PIECE, size - at)))
            self._progress(PIECE)
            if self.rate and not self.stopping.wait(0):
                time.sleep(PIECE / self.rate)


class Fetches(Client):
    """wget in the guest: GET of N MiB and POST of one, again and again, each byte checked on both sides."""

    ROUNDS = 3

    def __init__(self, lab, mib, rate=None, name="wget", port=8000):
        super().__init__(lab, name)
        self.mib = mib
        self.server = WebServer(lab, port=port, rate=rate)
        self.server.start()

    @property
    def times_ns(self):
        return self.server.times_ns

    def moved(self):
        return self.server.served

    def work(self):
        url = self.server.url
        try:
            output = self.lab.guest_script(f"""guest-agent blob 1 >/tmp/one
                i=0
                while [ $i -lt {self.ROUNDS} ]; do
                    wget -q -O - {url}/{self.mib} | md5sum
                    wget -q -O - --post-file /tmp/one {url}/
                    i=$((i + 1))
                done
                rm /tmp/one""", 150)
        finally:
            self.server.stop()
        right = output.count(blob_md5(self.mib)), output.count("right")
        assert right == (self.ROUNDS, self.ROUNDS), f"the guest got or gave other bytes, or none: {output}"


class Resolver(Client):
    """A name server in the client's namespace: hostN.lab has the address 10.9.N/256.N%256, and no other."""

    def __init__(self, lab):
        super().__init__(lab, "resolver", CLIENT_ADDRESS)
        self.times_ns = []
        self.sock = lab.client_socket(socket.SOCK_DGRAM)
        self.sock.bind((CLIENT_ADDRESS, 53))
        self.sock.settimeout(0.1)

    @staticmethod
    def answer_of(number):
        return f"10.9.{number // 256}.{number % 256}"

    def work(self):
        with self.sock:
            while not self.stopping.is_set():
                try:
                    query, source = self.sock.recvfrom(2048)
                except TimeoutError:
                    continue
                self.sock.sendto(self._reply(query), source)
                self.times_ns.append(time.monotonic_ns())

    def _reply(self, query):
        end = query.index(b"\0", 12) + 5
        kind, _ = struct.unpack_from(">HH", query, end - 4)
        found = re.fullmatch(rb".host(\d+)\x03lab", query[12:end - 5])
        address = b""
        if found and kind == 1:
            address = (b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) +
                       socket.inet_aton(self.answer_of(int(found.group(1)))))
        return (query[:2] + struct.pack(">HHHHH", 0x8580 if found else 0x8583, 1, 1 if address else 0, 0, 0) +
                query[12:end] + address)


class Lookups(Client):
    """The guest resolves host0.lab, host1.lab, ... one after the other; each answer is checked."""

    SCRIPT = """i=0
while [ $i -lt {count} ]; do
    nslookup -type=a host$i.lab {server} | grep -A 1 'Name:' | grep Address:
    i=$((i + 1))
done"""

    def __init__(self, lab, count, name="lookups"):
        super().__init__(lab, name)
        self.count = count
        self.resolver = Resolver(lab)
        self.resolver.start()

    @property
    def times_ns(self):
        return self.resolver.times_ns

    def moved(self):
        return len(self.times_ns)

    def work(self):
        try:
            output = self.lab.guest_script(self.SCRIPT.format(count=self.count, server=CLIENT_ADDRESS), 120)
        finally:
            self.resolver.stop()
        found = re.findall(r"Address: (\S+)", output)
        wanted = [Resolver.answer_of(n) for n in range(self.count)]
        assert found == wanted, f"{len(found)} of {self.count} names; {output[-500:]}"

    def stop(self, seconds=120):
        super().stop(seconds)

    def wait_more(self, count=1, seconds=20):
        """So many more queries answered (count of bytes means one), or all."""
        goal = len(self.times_ns) + 1

        def reached():
            self.check()
            return len(self.times_ns) >= goal or not self.is_alive()
        wait_until(reached, seconds, lambda: f"{self.name}: {len(self.times_ns)} queries, {count} wanted")
