# SPDX-License-Identifier: LGPL-2.1-or-later
"""judges.py - what the guest's answers prove: pure functions and counts, without a socket or a clock.

What each word means in a report:

* acknowledged: an operation whose answer came and was right.
* lost: an acknowledged operation that the guest does not know any more, or, of a stream, a record that was skipped. Of
  datagrams: those that were never answered; they may be.
* duplicated: what was done, or answered, more often than it was asked for.
* wrong: an answer that nothing of the kind explains: other bytes, another number, a history that is not the one that
  the client was told before.
"""
import re
import struct
import threading

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Account:
    """The counts of one oracle, and a text for each fault."""

    COUNTS = ("acknowledged", "lost", "duplicated", "wrong", "resets")

    def __init__(self, name):
        self.name = name
        self.acknowledged = self.lost = self.duplicated = self.wrong = self.resets = 0
        self.faults = []
        self.lock = threading.Lock()

    def fault(self, count, text, number=1):
        with self.lock:  # the oracle's thread and the one that asks
            setattr(self, count, getattr(self, count) + number)
            self.faults.append(f"{self.name}: {text}")

    def repeated(self):
        """Duplicated where that may be."""
        self.duplicated += 1

    def counts(self):
        return {name: getattr(self, name) for name in self.COUNTS}


class Stalls:
    """Times between two acknowledgements that are longer than the oracle's period explains."""

    MARGIN_MS = 250

    def __init__(self, period_s, clock):
        self.limit_ms = period_s * 1000 + self.MARGIN_MS
        self.clock = clock
        self.last = clock()
        self.found = []

    def restart(self):
        self.last = self.clock()

    def _add(self, now, found):
        passed_ms = (now - self.last) * 1000
        if passed_ms > self.limit_ms:
            found.append({"at": self.last, "ms": round(passed_ms)})

    def moved(self):
        now = self.clock()
        self._add(now, self.found)
        self.last = now

    def report(self, running):
        """With the one that lasts."""
        found = list(self.found)
        if running:
            self._add(self.clock(), found)
        return found


# Numbered records of a stream

RECORD = 32
RECORD_TEXT = re.compile(rb"(\d{8})-abcdefghijklmnopqrstuv\n")


def record(number):
    return b"%08d-abcdefghijklmnopqrstuv\n" % number


class BrokenStream(Exception):
    """Nothing that follows on this connection can be judged."""


class RecordJudge:
    """Of one connection: the records from FIRST on come back, each once, in their order."""

    def __init__(self, account, first=0):
        self.account = account
        self.sent = first  # behind the last one that was sent
        self.next = first
        self.pending = b""

    def feed(self, data):
        """Returns how many records were acknowledged."""
        self.pending += data
        before = self.account.acknowledged
        while len(self.pending) >= RECORD:
            found, self.pending = self.pending[:RECORD], self.pending[RECORD:]
            self._judge(found)
        return self.account.acknowledged - before

    def _judge(self, found):
        if found == record(self.next) and self.next < self.sent:
            self.next += 1
            self.account.acknowledged += 1
            return
        text = RECORD_TEXT.fullmatch(found)
        number = int(text.group(1)) if text else self.sent
        if number >= self.sent:
            self.account.fault("wrong", f"{found!r} came back, expected record {self.next} of {self.sent}")
            raise BrokenStream("other bytes came back")
        if number < self.next:
            self.account.fault("duplicated", f"record {number} came back again, expected {self.next}")
            return
        self.account.fault("lost", f"record {number} came back, expected {self.next}", number - self.next)
        self.account.acknowledged += 1
        self.next = number + 1


# Counted operations: what the guest has counted of those that were asked for

class CountJudge:
    """One counter: acked of its operations were acknowledged, issued were asked for."""

    def __init__(self, account, name):
        self.account = account
        self.name = name
        self.acked = self.issued = 0

    def reply(self, value):
        """The answer to the next operation in flight: the counter afterwards."""
        expected = self.acked + 1
        self.acked = value
        if value == expected:
            self.account.acknowledged += 1
        elif value < expected:
            self.account.fault("lost", f"{self.name}: the guest is at {value}, expected {expected}", expected - value)
        else:
            self.account.fault("duplicated", f"{self.name}: the guest is at {value}, expected {expected}",
                               value - expected)
        self.issued = max(self.issued, value)

    def survey(self, value, acked, issued):
        """The counter, read some time after `acked` were acknowledged and before more than `issued` were asked for."""
        if value < acked:
            self.account.fault("lost", f"{self.name}: {acked} were acknowledged, the guest has {value}", acked - value)
        elif value > issued:
            self.account.fault("duplicated", f"{self.name}: {issued} were asked for, the guest has {value}",
                               value - issued)

    def refused(self, value):
        """The guest did not do the next one, because it is not where it must be: nothing else was under way."""
        self.survey(value, self.acked, self.acked)
        self.acked = self.issued = value

    def resume(self, value):
        """After a connection ended: whether what was in flight was done, only the counter knows."""
        self.survey(value, self.acked, self.issued)
        self.acked = self.issued = value


# HTTP bodies (guest-oracle.c has the formula)

STEP = 0xD1B54A32D192ED03


def make_body(number, size):
    words = (size + 7) // 8
    base = splitmix((number + GOLDEN) & MASK)
    body = struct.pack(f"<{words}Q", *[(base + i * STEP) & MASK for i in range(words)])
    head = b"body %d %d\n" % (number, size)
    return (head + body[len(head):])[:size]


def body_sum(body):
    total = 0xcbf29ce484222325
    padded = body + bytes(-len(body) % 8)
    for word in struct.unpack(f"<{len(padded) // 8}Q", padded):
        total = ((total ^ word) * 0x100000001b3) & MASK
    return total


def judge_body(account, number, size, told_sum, body):
    """True if it is the one that was asked for. told_sum: what the header says, None if there is no such header."""
    if body == make_body(number, size) and told_sum == body_sum(body):
        account.acknowledged += 1
        return True
    found = re.match(rb"body (\d+) (\d+)\n", body)
    other = (int(found.group(1)), int(found.group(2))) if found else (number, size)
    if other[0] < number and body == make_body(*other):
        account.fault("duplicated", f"the body of request {other[0]} came again, expected {number}")
    else:
        account.fault("wrong", f"request {number} of {size} bytes: {describe_body(number, size, told_sum, body)}")
    return False


def describe_body(number, size, told_sum, body):
    wanted = make_body(number, size)
    if len(body) != size:
        return f"{len(body)} bytes came"
    wrong = next((at for at in range(size) if body[at] != wanted[at]), None)
    if wrong is not None:
        return f"wrong byte at {wrong}"
    return f"the guest says the sum is {told_sum}, it is {body_sum(body)}"


# Numbered datagrams (port 11 of guest-agent.c)

ACCOUNT_TEXT = re.compile(rb"number (\d+) run (\d+) next (\d+) got (\d+) missing (\d+) twice (\d+) late (\d+) "
                          rb"digest ([0-9a-f]{16})\n?")


def chain(digest, number):
    """The guest's digest of all numbers that came, after one more."""
    return splitmix((((digest ^ number) + 1) * GOLDEN) & MASK)


class DatagramJudge:
    """Datagrams of one run. One may be lost, and so may be an answer; neither may be changed, and all answers tell of
    one history.

    Each answer has the guest's account: how many came until then, and a digest of their numbers in their order. Two
    answers after the same count are one answer, sent twice, or come from two guests of which one had forgotten what the
    client knew: then their digests differ. And of two counts that follow each other the second digest is that of the
    first with one number more. So a survivor that goes back behind an answer shows at once, without being asked.
    """

    def __init__(self, account, run):
        self.account = account
        self.run = run
        self.sent_at = []  # by number
        self.answered = {}  # number -> how many the guest had got then
        self.histories = {0: (None, 0)}  # how many the guest got -> (number, digest)

    def sent(self, when):
        self.sent_at.append(when)

    def answer(self, data):
        """True if it acknowledges a datagram for the first time."""
        found = ACCOUNT_TEXT.fullmatch(data)
        if not found:
            self.account.fault("wrong", f"an answer that is none: {data[:80]!r}")
            return False
        number, run, following, got, missing, twice, late = map(int, found.groups()[:7])
        digest = int(found.group(8), 16)
        if (run != self.run or number >= len(self.sent_at) or following > len(self.sent_at) or number >= following
                or got + missing != following or late > got):
            self.account.fault("wrong", f"an answer to nothing that was sent: {data[:160]!r}")
            return False
        if not self._fits(got + twice, number, digest):
            return False
        if number in self.answered:  # the answer was sent twice, or the datagram came to the guest twice
            self.account.repeated()
            return False
        self.answered[number] = got + twice
        self.account.acknowledged += 1
        return True

    def _fits(self, count, number, digest):
        known = self.histories.setdefault(count, (number, digest))
        if known != (number, digest):
            self.account.fault("wrong", f"two histories: the guest's datagram {count} was number {known[0]} and is now "
                               f"{number}")
            return False
        for earlier, later in ((count - 1, count), (count, count + 1)):
            before, after = self.histories.get(earlier), self.histories.get(later)
            if before and after and chain(before[1], after[0]) != after[1]:
                self.account.fault("wrong", f"two histories: datagram {later}, number {after[0]}, does not follow the "
                                   f"one before it")
                return False
        return True

    def count_lost(self, before):
        """Of those sent before that time: how many were not answered."""
        return sum(when < before and number not in self.answered for number, when in enumerate(list(self.sent_at)))

    def holes(self, missing, answered):
        """missing: the numbers that the survivor says it never got; answered: those answered before it was asked."""
        forgotten = sorted(set(missing) & answered)
        if forgotten:
            self.account.fault("wrong", f"the survivor never got {len(forgotten)} datagrams that were answered, the "
                               f"first of them {forgotten[0]}", len(forgotten))
