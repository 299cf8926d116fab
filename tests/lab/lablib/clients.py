# SPDX-License-Identifier: LGPL-2.1-or-later
"""clients.py - what the lab's client does to the guest, each a thread that checks all it gets.

A fault of the stream (reset, wrong byte, end) is kept in .failure and raised by stop(). Times are
time.monotonic_ns(), the clock of colod's event times.
"""
import itertools
import select
import socket
import struct
import threading
import time

from .topology import GUEST_ADDRESS
from .util import LabError, sum16, wait_until

MIB = 1 << 20
ROTATION = 4096
STALL_S = 30  # a stream that stands still for so long has failed
CONNECT_S = 10
MASK = (1 << 64) - 1
SO_RCVBUFFORCE = 33


def _make_seed():
    words = []
    state = 0
    for _ in range(MIB // 8):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        words.append(z ^ (z >> 31))
    return struct.pack(f"<{len(words)}Q", *words)


class Blob:
    """The data the guest serves (guest-agent.c has the formula)."""

    _doubled = None

    @classmethod
    def piece(cls, at, size):
        """Bytes from there on, up to the end of its MiB."""
        if cls._doubled is None:
            cls._doubled = _make_seed() * 2
        start = (at + at // MIB * ROTATION) % MIB
        return cls._doubled[start:start + min(size, MIB - at % MIB)]

    @classmethod
    def differs(cls, at, data):
        """Offset within data of the first wrong byte, None if all are right; at: its place in the blob."""
        done = 0
        while done < len(data):
            want = cls.piece(at + done, len(data) - done)
            have = data[done:done + len(want)]
            if have != want:
                return done + next(i for i, byte in enumerate(have) if byte != want[i])
            done += len(want)
        return None


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Client(threading.Thread):
    """Base: run() calls work() until it returns or the test says stop."""

    def __init__(self, lab, name, address=GUEST_ADDRESS):
        super().__init__(daemon=True, name=name)
        self.lab = lab
        self.address = address
        self.failure = None
        self.stopping = threading.Event()

    def run(self):
        try:
            self.work()
        except (OSError, LabError, AssertionError) as error:
            self.failure = f"{self.name}: {type(error).__name__}: {error}"

    def check(self):
        if self.failure:
            raise LabError(self.failure)

    def stop(self, seconds=STALL_S + 5):
        self.stopping.set()
        self.join(seconds)
        if self.is_alive():
            raise LabError(f"{self.name}: does not end within {seconds} s")
        self.check()

    def connect(self, port):
        sock = self.lab.client_socket(family=family_of(self.address))
        sock.settimeout(CONNECT_S)
        sock.connect((self.address, port))
        sock.settimeout(STALL_S)
        return sock


def longest_gap_ms(times_ns, start_ns=0, end_ns=1 << 62):
    """The longest time between two neighbours of which the later is in start..end.

    Of a gap that begins in it and ends after it counts what lies in it. One that began before it counts whole.
    """
    gaps = [b - a if a < start_ns else min(b, end_ns) - a
            for a, b in zip(times_ns, times_ns[1:]) if start_ns <= b and a <= end_ns]
    return max(gaps, default=0) / 1e6


class Download(Client):
    """GET /blob/N, every byte checked. rate: bytes a second, None for as fast as it goes."""

    def __init__(self, lab, mib=1 << 20, rate=None, name="download", address=GUEST_ADDRESS):
        super().__init__(lab, name, address)
        self.total = mib * MIB
        self.path = f"/blob/{mib}"
        self.rate = rate
        self.received = 0
        self.times_ns = []
        self.start_ns = 0

    def work(self):
        with self.connect(80) as sock:
            if self.rate:  # so that what waits in the socket is a quarter of a second at most
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, max(64 << 10, self.rate // 8))
            sock.sendall(f"GET {self.path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(4096)
                assert data, "closed within the header"
                head += data
            head, _, body = head.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head[:40]
            self.start_ns = time.monotonic_ns()
            self._take(body)
            while self.received < self.total and not self.stopping.is_set():
                data = sock.recv(max(4096, min(256 << 10, self.rate // 8)) if self.rate else 256 << 10)
                assert data, f"closed after {self.received} of {self.total} bytes"
                self._take(data)
                self._pace()

    def _take(self, data):
        wrong = Blob.differs(self.received, data)
        assert wrong is None, f"wrong byte at {self.received + wrong}"
        self.received += len(data)
        self.times_ns.append(time.monotonic_ns())

    def _pace(self):
        if not self.rate:
            return
        ahead = self.received / self.rate - (time.monotonic_ns() - self.start_ns) / 1e9
        # After a stall nothing is made up for: start counting anew.
        if ahead < -1:
            self.start_ns = time.monotonic_ns() - int(self.received / self.rate * 1e9)
        elif ahead > 0:
            self.stopping.wait(ahead)

    def wait_more(self, count=1, seconds=20):
        """Waits until so many bytes more than now have come."""
        goal = self.received + count

        def reached():
            self.check()
            return self.received >= goal or self.received == self.total
        wait_until(reached, seconds, lambda: f"{self.name} has {self.received} bytes, wanted {goal}")

    def wait_done(self, seconds):
        self.join(seconds)
        self.check()
        if self.received != self.total:
            raise LabError(f"{self.name}: {self.received} of {self.total} bytes after {seconds} s")


RECORD = 32


class Echo(Client):
    """A TCP connection on which numbered records go out and must come back, each byte once and in order."""

    PERIOD_S = 0.005
    WINDOW = 400  # records under way

    def __init__(self, lab, name="echo", address=GUEST_ADDRESS):
        super().__init__(lab, name, address)
        self.sent = 0  # bytes
        self.received = 0
        self.times_ns = []

    @staticmethod
    def record(number):
        return b"%08d-abcdefghijklmnopqrstuv\n" % number

    def _expected(self, at, size):
        first, last = at // RECORD, (at + size - 1) // RECORD
        text = b"".join(self.record(n) for n in range(first, last + 1))
        return text[at - first * RECORD:][:size]

    def work(self):
        with self.connect(7) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            due = time.monotonic()
            pending = b""
            last = time.monotonic()
            while not (self.stopping.is_set() and self.received == self.sent):
                now = time.monotonic()
                assert now - last < STALL_S, f"nothing came for {STALL_S} s; sent {self.sent}, got {self.received}"
                if now >= due and not pending and self._may_send():
                    pending = self.record(self.sent // RECORD)
                    due = max(due + self.PERIOD_S, now)
                wait = 0.1 if pending else min(0.1, max(0, due - now))
                readable, writable, _ = select.select([sock], [sock] if pending else [], [], wait)
                if writable:
                    count = sock.send(pending)
                    self.sent += count
                    pending = pending[count:]
                if readable:
                    self._receive(sock)
                    last = time.monotonic()
                if self.sent == self.received:
                    last = now
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b"", "more came back than was sent"

    def _may_send(self):
        return not self.stopping.is_set() and self.sent - self.received < self.WINDOW * RECORD

    def _receive(self, sock):
        data = sock.recv(64 << 10)
        assert data, f"closed by the guest after {self.received} bytes"
        assert self.received + len(data) <= self.sent, "more came back than was sent"
        assert data == self._expected(self.received, len(data)), f"wrong echo at byte {self.received}"
        self.received += len(data)
        self.times_ns.append(time.monotonic_ns())

    def wait_more(self, count=1, seconds=20):
        goal = self.received + count

        def reached():
            self.check()
            return self.received >= goal
        wait_until(reached, seconds, lambda: f"{self.name}: {self.received} bytes echoed, wanted {goal}")


class Pinger(Client):
    """UDP echo each 5 ms. A lost datagram is no failure; a wrong one is.

    sizes: payload bytes of one datagram after the other; beyond the MTU they travel in fragments.
    """

    PERIOD_NS = 5_000_000
    FORMAT = struct.Struct(">QQ")

    def __init__(self, lab, name="pinger", address=GUEST_ADDRESS, sizes=(16,), period_ns=PERIOD_NS):
        super().__init__(lab, name, address)
        self.sizes = sizes
        self.period_ns = period_ns
        self.sent_ns = []  # by number
        self.answered_ns = {}  # number -> time
        self.repeated = 0  # answers that came more than once

    def work(self):
        with self._open() as sock:
            sock.setblocking(False)
            due = time.monotonic_ns()
            while not self.stopping.is_set():
                now = time.monotonic_ns()
                if now >= due:
                    self._send(sock, now)
                    due = max(due + self.period_ns, now)
                select.select([sock], [], [], max(0, due - now) / 1e9)
                self._receive(sock)

    def _open(self):
        sock = self.lab.client_socket(socket.SOCK_DGRAM, family_of(self.address))
        sock.connect((self.address, 7))
        return sock

    def _wrap(self, number, data):
        """What is sent of it through the socket."""
        return data

    def _unwrap(self, data):
        """The other way round; None if it is none of ours."""
        return data

    def _datagram(self, number, sent):
        size = self.sizes[number % len(self.sizes)]
        return self.FORMAT.pack(number, sent) + Blob.piece(number % 1000, size - self.FORMAT.size)

    def _send(self, sock, now):
        try:
            sock.send(self._wrap(len(self.sent_ns), self._datagram(len(self.sent_ns), now)))
        except OSError:  # no route, refused, full: lost
            pass
        self.sent_ns.append(now)

    def _receive(self, sock):
        while True:
            try:
                data = sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue
            data = self._unwrap(data)
            if data is None:
                continue
            assert len(data) >= self.FORMAT.size, f"a datagram of {len(data)} bytes"
            number, sent = self.FORMAT.unpack_from(data)
            assert number < len(self.sent_ns) and data == self._datagram(number, self.sent_ns[number]), \
                f"an echo of nothing we sent ({len(data)} bytes)"
            self.repeated += number in self.answered_ns
            self.answered_ns.setdefault(number, time.monotonic_ns())

    def wait_answers(self, count=20, seconds=20):
        goal = len(self.answered_ns) + count

        def reached():
            self.check()
            return len(self.answered_ns) >= goal
        wait_until(reached, seconds, f"{self.name}: no answers")

    def silence_ms(self, start_ns=0, end_ns=1 << 62):
        """The longest time in which no answer came."""
        return longest_gap_ms(sorted(self.answered_ns.values()), start_ns, end_ns)

    def lost_ms(self, start_ns=0, end_ns=1 << 62):
        """The longest time in which every datagram sent was lost."""
        worst = first = 0
        for number, sent in enumerate(self.sent_ns):
            if not start_ns <= sent <= end_ns:
                continue
            if number in self.answered_ns:
                worst = max(worst, sent - first if first else 0)
                first = 0
            elif not first:
                first = sent
        return worst / 1e6

    def trip_ms(self, percent=50, since=0):
        """Percentile of the round trips of the datagrams from that number on."""
        trips = sorted(when - self.sent_ns[number] for number, when in self.answered_ns.copy().items()
                       if number >= since)
        return trips[min(len(trips) - 1, len(trips) * percent // 100)] / 1e6


class IcmpPinger(Pinger):
    """The same by ICMP or ICMPv6 echo requests."""

    HEADER = struct.Struct(">BBHHH")  # type, code, checksum, identifier, sequence number
    identifiers = itertools.count(1)

    def __init__(self, lab, name="ping", address=GUEST_ADDRESS, sizes=(56,), period_ns=20_000_000):
        super().__init__(lab, name, address, sizes, period_ns)
        self.identifier = next(self.identifiers) & 0xFFFF
        self.request, self.reply = (128, 129) if ":" in address else (8, 0)

    def _open(self):
        proto = socket.IPPROTO_ICMPV6 if ":" in self.address else socket.IPPROTO_ICMP
        sock = self.lab.client_socket(socket.SOCK_RAW, family_of(self.address), proto)
        sock.connect((self.address, 0))
        return sock

    def _wrap(self, number, data):
        header = [self.request, 0, 0, self.identifier, number & 0xFFFF]
        if ":" not in self.address:  # of ICMPv6 the kernel makes the checksum
            header[2] = ~sum16(self.HEADER.pack(*header) + data) & 0xFFFF
        return self.HEADER.pack(*header) + data

    def _unwrap(self, data):
        if ":" not in self.address:
            data = data[(data[0] & 15) * 4:]
        kind, _, _, identifier, _ = self.HEADER.unpack_from(data)
        return data[self.HEADER.size:] if (kind, identifier) == (self.reply, self.identifier) else None
