# SPDX-License-Identifier: LGPL-2.1-or-later
"""fakes.py - a guest for the tests of the oracles: it answers as the lab's does, and lies when it is told to.

A fake has `lie`, the name of what it does wrong, from the moment at which a test sets it; snapshot() and restore() make
it a survivor that has forgotten something.
"""
import copy
import re
import socket
import threading
import types

from lablib.util import LabError

MASK = (1 << 64) - 1


class MappedSocket(socket.socket):
    """Connects to the fake behind the guest's port."""

    ports = None

    def connect(self, address):
        super().connect(("127.0.0.1", self.ports[address[1]]))


class FakeLab:
    """What an oracle asks of a lab."""

    def __init__(self, directory, **settings):
        self.ports = {}
        self.fakes = []
        self.settings = types.SimpleNamespace(**{"kv": True, "disk_mib": 64, **settings})
        self.hosts = {name: types.SimpleNamespace(dir=f"{directory}/{name}") for name in "ab"}

    def add(self, fake):
        self.fakes.append(fake)
        self.ports[fake.PORT] = fake.port
        return fake

    def client_socket(self, kind=socket.SOCK_STREAM):
        sock = MappedSocket(socket.AF_INET, kind)
        sock.ports = self.ports
        return sock

    def guest_command(self, text):
        for fake in self.fakes:
            if hasattr(fake, "command"):
                return fake.command(text)
        raise LabError("no fake has commands")

    def close(self):
        for fake in self.fakes:
            fake.close()


class Fake:
    """A server on TCP; serve(file) answers one connection until it returns."""

    def __init__(self):
        self.lie = None
        self.state = {}
        self.lock = threading.Lock()
        self.conns = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            self.conns.append(conn)
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn):
        try:
            with conn, conn.makefile("rwb") as file:
                self.serve(file)
        except OSError:
            pass

    def serve(self, file):
        raise NotImplementedError

    def lies(self, name):
        """Once."""
        with self.lock:
            if self.lie != name:
                return False
            self.lie = None
            return True

    def snapshot(self):
        with self.lock:
            return copy.deepcopy(self.state)

    def restore(self, state):
        with self.lock:
            self.state = copy.deepcopy(state)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # its thread leaves accept()
        self.listener.close()
        for conn in self.conns:
            conn.close()


class EchoFake(Fake):
    PORT = 7

    def serve(self, file):
        while len(data := file.read(32)) == 32:
            if self.lies("lose"):
                continue
            if self.lies("close"):
                return
            if self.lies("corrupt"):
                data = data[:20] + b"!" + data[21:]
            elif self.lies("double"):
                data *= 2
            elif self.lies("more"):
                data += b"99999999" + data[8:]
            file.write(data)
            file.flush()


class HttpFake(Fake):
    PORT = 81

    @staticmethod
    def body(number, size):
        """As guest-oracle.c has it."""
        word = (number + 0x9E3779B97F4A7C15) & MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        word ^= word >> 31
        data = bytearray()
        while len(data) < size:
            data += word.to_bytes(8, "little")
            word = (word + 0xD1B54A32D192ED03) & MASK
        head = f"body {number} {size}\n".encode()
        data[:len(head)] = head
        return bytes(data[:size])

    @staticmethod
    def sum(body):
        total = 0xcbf29ce484222325
        for at in range(0, len(body), 8):
            total = ((total ^ int.from_bytes(body[at:at + 8], "little")) * 0x100000001b3) & MASK
        return total

    def serve(self, file):
        while found := re.match(rb"GET /body/(\d+)/(\d+) ", file.readline()):
            while file.readline() != b"\r\n":
                pass
            number, size = map(int, found.groups())
            if self.lies("old"):
                number -= 1
            body = self.body(number, size)
            told = self.sum(body)
            if self.lies("sum"):
                told ^= 1
            status = b"404 Not Found" if self.lies("missing") else b"200 OK"
            file.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nX-Sum: %016x\r\n\r\n" % (status, len(body), told))
            if self.lies("cut"):
                file.write(body[:-1])
                return
            if self.lies("corrupt"):
                body = body[:-1] + bytes([body[-1] ^ 1])
            file.write(body)
            file.flush()


class LineFake(Fake):
    """One command a line, one answer a line."""

    def serve(self, file):
        while line := file.readline():
            if self.lies("close"):
                return
            with self.lock:
                answer = self.answer(line.decode().split())
            if self.lies("done"):  # and the answer got lost
                return
            file.write(answer.encode() + b"\n")
            file.flush()

    def answer(self, words):
        raise NotImplementedError


class DiskFake(LineFake):
    PORT = 10

    def __init__(self):
        super().__init__()
        self.state = {"count": 0}

    def answer(self, words):
        count = self.state["count"]
        if words[0] == "check":
            return f"error {words[1]}: record 1 is wrong (says 7)" if self.lie == "spoilt" else f"ok {count}"
        if int(words[2]) != count + 1:
            return f"error {words[1]} holds {count} records"
        if self.lie == "refuse":
            return f"error {words[1]}: No space left on device"
        if self.lie == "forget":  # acknowledged and not kept
            self.lie = None
            return f"ok {count + 1}"
        self.state["count"] += 2 if self.lie == "double" else 1
        return f"ok {count + 1}"


class MemoryFake(LineFake):
    PORT = 12

    def __init__(self):
        super().__init__()
        self.state = {"mark": 0, "turn": 1}

    def answer(self, words):
        if words[0] == "start":
            return "error not so much memory is free" if self.lie == "full" else "ok"
        if words[0] in ("mark", "check") and self.lie == "spoilt":
            return "error 1 of 1024 pages are wrong"
        if words[0] == "mark" and int(words[1]) != self.state["mark"] + 1:
            return f"error the mark is {self.state['mark']}"
        if words[0] == "mark":
            self.state["mark"] += 1
            return f"ok {words[1]}"
        if words[0] == "check":
            return f"ok mark {self.state['mark']} pages {1023 if self.lie == 'short' else 1024}"
        if words[0] == "turn":
            self.state["turn"] += self.lie != "frozen"
            return f"ok {self.state['turn']} 0"
        return "ok"


class KvFake(Fake):
    PORT = 6379

    def __init__(self):
        super().__init__()
        self.settings = []

    def serve(self, file):
        while count := file.readline():
            words = []
            for _ in range(int(count[1:])):
                size = int(file.readline()[1:])
                words.append(file.read(size + 2)[:-2].decode())
            if self.lies("close"):
                return
            with self.lock:
                answer = self.answer(words)
            if self.lies("done"):  # and the answer got lost
                return
            file.write(answer)
            file.flush()

    def answer(self, words):
        if words[0] == "CONFIG":
            self.settings.append(tuple(words[2:]))
            return b"+OK\r\n"
        if words[0] == "MGET":
            values = [str(self.state[key]).encode() if key in self.state else None for key in words[1:]]
            return b"*%d\r\n" % len(values) + b"".join(
                b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value) for value in values)
        if self.lie == "refuse":
            return b"-OOM command not allowed\r\n"
        if self.lie == "rubbish":
            return b"?\r\n"
        self.state[words[1]] = self.state.get(words[1], 0) + (2 if self.lie == "double" else 1)
        return b":%d\r\n" % self.state[words[1]]


class UdpFake:
    PORT = 11

    def __init__(self):
        self.lie = None
        self.state = {"run": 0, "numbers": [], "digest": 0}
        self.lock = threading.Lock()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    snapshot = Fake.snapshot
    restore = Fake.restore

    @staticmethod
    def mix(index):
        z = ((index + 1) * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def account(self):
        numbers = self.state["numbers"]
        got, following = len(set(numbers)), max(numbers, default=-1) + 1
        late = sum(number < max(numbers[:at], default=-1) for at, number in enumerate(numbers))
        return (f"run {self.state['run']} next {following} got {got} missing {following - got} "
                f"twice {len(numbers) - got} late {late} digest {self.state['digest']:016x}")

    def _take(self, number):
        self.state["numbers"].append(number)
        self.state["digest"] = self.mix(self.state["digest"] ^ number)
        return f"number {number} {self.account()}\n".encode()

    def _serve(self):
        while True:
            try:
                data, peer = self.sock.recvfrom(4096)
            except OSError:
                return
            run, number = map(int, data.split())
            with self.lock:
                if run != self.state["run"]:
                    self.state = {"run": run, "numbers": [], "digest": 0}
                if self.lie == "drop" and number % 5 == 3:
                    continue
                answers = [self._take(number)]
                if self.lie == "again":
                    answers *= 2
                elif self.lie == "twice":
                    answers.append(self._take(number))
                elif self.lie == "digest":
                    answers = [answers[0].replace(b"digest ", b"digest f")[:-2] + b"\n"]
                elif self.lie == "number":
                    answers = [answers[0].replace(b"number ", b"number 1000000")]
                elif self.lie == "rubbish":
                    answers = [b"hello"]
            for answer in answers:
                self.sock.sendto(answer, peer)

    def command(self, text):
        with self.lock:
            numbers, at = self.state["numbers"], int(text.split()[1])
            missing = [number for number in range(at, max(numbers, default=-1) + 1) if number not in numbers]
        return f"ok {missing[0]} {missing[0] + 1}" if missing else "ok none"

    def close(self):
        self.sock.close()
