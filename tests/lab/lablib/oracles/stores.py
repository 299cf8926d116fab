# SPDX-License-Identifier: LGPL-2.1-or-later
"""stores.py - the oracles of what the guest keeps: a key-value store, records on its disk, a pattern in its memory."""
import re
import time

from ..settings import VM
from ..util import LabError
from .base import Gone, Lines, Oracle
from .judges import BrokenStream, CountJudge


class Resp:
    """The protocol of redis, as far as it is needed: commands are arrays of strings, answers numbers, strings, arrays."""

    def __init__(self, sock):
        self.lines = Lines(sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.__exit__()

    def send(self, *commands):
        out = b""
        for words in commands:
            encoded = [word.encode() for word in words]
            out += b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        self.lines.sock.sendall(out)

    def read(self):
        line = self.lines.read()
        kind, rest = line[:1], line[1:]
        if kind == "*" and re.fullmatch(r"\d+", rest):
            return [self.read() for _ in range(int(rest))]
        if kind == "$" and rest == "-1":
            return None
        if kind == "$" and re.fullmatch(r"\d+", rest):
            data = self.lines.file.read(int(rest) + 2)
            if len(data) < int(rest) + 2:
                raise Gone("the guest closed the connection")
            return data[:-2].decode(errors="replace")
        if kind == ":" and re.fullmatch(r"-?\d+", rest):
            return int(rest)
        if kind in "+-" and kind:
            return line
        return f"no answer of the store's: {line!r}"

    def call(self, *words):
        self.send(words)
        return self.read()


class Kv(Oracle):
    """Increments of some keys, all of them under way at once; nobody else writes to them.

    With a disk the store appends each to its log there, and flushes it, before it answers.
    """

    NAME = "kv"
    PORT = 6379
    PERIOD_S = 0.05
    KEYS = 8

    def __init__(self, lab, seed=0):
        super().__init__(lab, seed)
        self.keys = [f"oracle:{self.run_id}:{number}" for number in range(self.KEYS)]
        self.counters = [CountJudge(self.account, key) for key in self.keys]
        self.connected = False

    def prepare(self):
        if not self.lab.settings.kv:
            raise LabError("the guest has no key-value store: lab up --kv, or Settings(kv=True)")
        if self.lab.settings.disk_mib:
            self._configure(("dir", "/disk"), ("appendonly", "yes"))

    def _configure(self, *settings):
        with Resp(self.connect()) as store:
            for setting in settings:
                answer = store.call("CONFIG", "SET", *setting)
                if answer != "+OK":
                    raise LabError(f"the store answers {answer!r} to {setting}")

    def finish(self):
        """Nothing of the store stays open on the disk."""
        if self.lab.settings.disk_mib:
            self._configure(("appendonly", "no"), ("dir", "/tmp"))

    def talk(self, sock):
        with Resp(sock) as store:
            if self.connected:
                self._resume(store)
            self.connected = True
            while not self.stopping.is_set():
                for counter in self.counters:
                    counter.issued += 1
                store.send(*[("INCR", key) for key in self.keys])
                for counter in self.counters:
                    self._judge(counter, store.read())
                self.moved()
                self.stopping.wait(self.PERIOD_S)

    def _judge(self, counter, value):
        if isinstance(value, int):
            counter.reply(value)
            return
        self.account.fault("wrong", f"{counter.name}: the store answers {value!r} to an increment")
        raise BrokenStream(counter.name)

    def _read_values(self, store):
        """None of a key that is not there is nothing counted."""
        values = store.call("MGET", *self.keys)
        if not isinstance(values, list) or len(values) != self.KEYS or not all(
                re.fullmatch(r"\d+", value or "0") for value in values):
            self.account.fault("wrong", f"the store answers {values!r} to a question for all keys")
            raise BrokenStream("values")
        return [int(value or 0) for value in values]

    def _resume(self, store):
        for counter, value in zip(self.counters, self._read_values(store)):
            counter.resume(value)

    def ask(self):
        acked = [counter.acked for counter in self.counters]
        with Resp(self.connect()) as store:
            try:
                values = self._read_values(store)
            except BrokenStream:
                return
        issued = [counter.issued for counter in self.counters]
        for counter, value, low, high in zip(self.counters, values, acked, issued):
            counter.survey(value, low, high)


class Records(Oracle):
    """Records appended to a file, each acknowledged when it is on the guest's disk (guest-disk.c)."""

    NAME = "records"
    PORT = 10

    def __init__(self, lab, seed=0):
        super().__init__(lab, seed)
        self.file = f"oracle{self.run_id}"
        self.counter = CountJudge(self.account, self.file)
        self.connected = False

    def prepare(self):
        if not self.lab.settings.disk_mib:
            raise LabError("the guest has no disk: lab up --disk MB, or Settings(disk_mib=MB)")

    def talk(self, sock):
        with Lines(sock) as guest:
            if self.connected:
                self.counter.resume(self._count(guest))
            self.connected = True
            while not self.stopping.is_set():
                self.counter.issued = self.counter.acked + 1
                self._judge(guest.call(f"put {self.file} {self.counter.issued}"))
                self.moved()
                self.stopping.wait(self.PERIOD_S)

    def _judge(self, answer):
        found = re.fullmatch(r"ok (\d+)", answer) or re.search(r" holds (\d+) records$", answer)
        if not found:
            self.account.fault("wrong", f"the guest answers '{answer}'")
            raise BrokenStream(answer)
        if answer.startswith("ok"):
            self.counter.reply(int(found.group(1)))
        else:
            self.counter.refused(int(found.group(1)))

    def _count(self, guest):
        """How many there are; all are read and found right."""
        answer = guest.call(f"check {self.file}")
        found = re.fullmatch(r"ok (\d+)", answer)
        if found:
            return int(found.group(1))
        if self.counter.acked == 0 and "No such file" in answer:
            return 0
        self.account.fault("wrong", f"the guest answers '{answer}' to a check")
        raise BrokenStream(answer)

    def ask(self):
        acked = self.counter.acked
        with Lines(self.connect()) as guest:
            try:
                count = self._count(guest)
            except BrokenStream:
                return
        self.counter.survey(count, acked, self.counter.issued)


class Memory(Oracle):
    """Has the guest read its pattern again and again, and set a mark each time it is right (guest-oracle.c).

    The mark is in the same memory: a survivor must have the last one that was acknowledged, or the next. Both guests'
    consoles are read as well: what a guest finds wrong it says there, also one that is secondary.
    """

    NAME = "memory"
    PORT = 12
    PERIOD_S = 0.25
    MIB = 4
    RATE = 200  # pages written in a second
    TURN_S = 10
    # Of the oracles in the guest, of the guest's kernel (a secondary whose target is killed may tell I/O errors).
    BAD_NEWS = r"^oracle:|segfault|general protection|trap |Out of memory"

    def __init__(self, lab, seed=0):
        super().__init__(lab, seed)
        self.counter = CountJudge(self.account, "mark")
        self.connected = False
        self.consoles = {}  # path -> how far it was read
        self.turn = (0, 0)

    def prepare(self):
        with Lines(self.connect()) as guest:
            answer = guest.call(f"start {self.MIB} {self.RATE}")
        if answer != "ok":
            raise LabError(f"the guest makes no pattern: '{answer}'")
        for host in self.lab.hosts.values():
            path = f"{host.dir}/run/{VM}/console.log"
            self.consoles[path] = 0
            self._read_console(path)

    def finish(self):
        with Lines(self.connect()) as guest:
            guest.call("stop")

    def talk(self, sock):
        with Lines(sock) as guest:
            if self.connected:
                mark = self._mark(guest)
                if mark is not None:
                    self.counter.resume(mark)
            self.connected = True
            while not self.stopping.is_set():
                self.counter.issued = self.counter.acked + 1
                answer = guest.call(f"mark {self.counter.issued}")
                self._judge(answer)
                self.moved()
                self.stopping.wait(self.PERIOD_S)

    def _judge(self, answer):
        found = re.fullmatch(r"(ok|error the mark is) (\d+)", answer)
        if not found:
            self.account.fault("wrong", f"the guest answers '{answer}' to mark {self.counter.issued}")
            raise BrokenStream(answer)
        if found.group(1) == "ok":
            self.counter.reply(int(found.group(2)))
        else:
            self.counter.refused(int(found.group(2)))

    def _mark(self, guest):
        answer = guest.call("check")
        found = re.fullmatch(r"ok mark (\d+) pages (\d+)", answer)
        if found and int(found.group(2)) == self.MIB << 8:
            return int(found.group(1))
        self.account.fault("wrong", f"the guest answers '{answer}' to a check")
        return None

    def ask(self):
        acked = self.counter.acked
        with Lines(self.connect()) as guest:
            mark = self._mark(guest)
            self._follow_turns(guest)
        if mark is not None:
            self.counter.survey(mark, acked, self.counter.issued)

    def _follow_turns(self, guest):
        """Until one more page has been written. Two guests answer differently, so an answer that came was released by a
        checkpoint: no survivor may be behind it."""
        deadline = time.monotonic() + self.TURN_S
        first = None
        while time.monotonic() < deadline:
            answer = guest.call("turn")
            found = re.fullmatch(r"ok (\d+) (\d+)", answer)
            if not found:
                self.account.fault("wrong", f"the guest answers '{answer}' to turn")
                return
            turn = tuple(map(int, found.groups()))
            if turn < self.turn:
                self.account.fault("lost", f"the pattern was at turn {self.turn}, the guest is at {turn}")
            self.turn = turn
            if first not in (None, turn):
                return
            first = turn
            time.sleep(0.05)
        self.account.fault("wrong", f"the pattern is not written any more: turn {first}")

    def read_consoles(self):
        for path in self.consoles:
            for line in self._read_console(path):
                self.account.fault("wrong", f"a guest says '{line}' ({path.split('/')[-4]})")

    def _read_console(self, path):
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                at = self.consoles[path] if self.consoles[path] <= size else 0  # it began anew
                file.seek(at)
                data = file.read()
        except OSError:
            self.consoles[path] = 0
            return []
        whole = data.rfind(b"\n") + 1
        self.consoles[path] = at + whole
        return [line for line in data[:whole].decode(errors="replace").splitlines() if re.search(self.BAD_NEWS, line)]
