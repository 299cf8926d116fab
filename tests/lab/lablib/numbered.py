# SPDX-License-Identifier: LGPL-2.1-or-later
"""numbered.py - numbered datagrams through checkpoints: what each of the two guests was given twice, late, or not at all.

How that is seen although the secondary's memory is overwritten at each checkpoint:

* The guest's agent (guest-agent.c, port 11) answers each datagram with its account of all that came before, and a
  digest of their numbers in their order. Both guests begin an epoch with the same account, that of the primary. So an
  answer of PVM's that was released because SVM had said the same (`released matched`) proves that SVM was given what
  PVM was given, each once, in that order, from the checkpoint on up to there. An answer that only a checkpoint released
  proves nothing; those are counted. A guest that once got something else gives other answers up to the next
  checkpoint, so what happens around the commit cannot hide behind what comes later.
* The client sees PVM's account in each answer: numbers it sent and PVM lacks, or got twice.
* Whichever guest misses one, or gets one twice or late, says so on its console at once. colod keeps each host's
  console, and nobody takes back what SVM said there. That covers the end of an epoch as well, of which SVM's last
  answers are forgotten.
* After a failover the survivor is asked for all numbers it never got: none of them may be one that was answered.
"""
import random
import re
import select
import socket
import time

from .clients import Client
from .settings import VM
from .topology import HOSTS
from .util import wait_until

PORT = 11
ACCOUNT = re.compile(r"run (\d+) next (\d+) got (\d+) missing (\d+) twice (\d+) late (\d+) digest ([0-9a-f]{16})")
SAID = re.compile(r"numbered: run (\d+) (missing before|twice|late) (\d+), expected (\d+)")
WHAT = ("missing", "twice", "late")
COMPARE_TIMEOUT_MS = 200  # the configuration's default
# A frame that waits for its timeout, the checkpoint that it makes (10 to 30 ms on a quiet machine), and what two
# emulated guests and all else on the same cores may take.
HEALED_MS = COMPARE_TIMEOUT_MS + 100 + 400
DIFFERENT_SHARE = 0.2  # of the epochs
TAP_SHARE = 0.1  # of the epochs; docs/RESULTS.md has what is measured


class Account:
    def __init__(self, text):
        found = ACCOUNT.search(text)
        assert found, f"no account: {text!r}"
        self.run, self.next, self.got, self.missing, self.twice, self.late = map(int, found.groups()[:6])
        self.digest = found.group(7)

    def __str__(self):
        return f"{self.got} of {self.next} numbers, {self.missing} missing, {self.twice} twice, {self.late} late"


class Numbered(Client):
    """Sends bursts of numbered datagrams, each number once, and keeps what the answers say."""

    def __init__(self, lab, period_ns=4_000_000, burst=2):
        super().__init__(lab, "numbered")
        self.period_ns = period_ns
        self.burst = burst
        self.run_id = time.monotonic_ns()
        self.sent_ns = []  # by number
        self.answered_ns = {}
        self.repeated = 0  # answers that came more than once
        self.unsent = 0  # the client's own kernel took them not
        self.last = None  # the account in the newest answer

    def work(self):
        with self.lab.client_socket(socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.connect((self.address, PORT))
            sock.setblocking(False)
            due = time.monotonic_ns()
            while not self.stopping.is_set():
                now = time.monotonic_ns()
                if now >= due:
                    for _ in range(self.burst):
                        self._send(sock, now)
                    due = max(due + self.period_ns, now)
                select.select([sock], [], [], max(0, due - now) / 1e9)
                self._receive(sock)
            newest = len(self.sent_ns) - 1
            wait_until(lambda: self._receive(sock) or newest in self.answered_ns, 5, "numbered: the newest's answer")

    def _send(self, sock, now):
        try:
            sock.send(b"%d %d\n" % (self.run_id, len(self.sent_ns)))
        except OSError:
            self.unsent += 1
            return
        self.sent_ns.append(now)

    def _receive(self, sock):
        while True:
            try:
                data = sock.recv(4096)
            except OSError:  # nothing there, or refused while nobody is primary
                return False
            found = re.match(rb"number (\d+) ", data)
            assert found, f"an answer to nothing we sent: {data!r}"
            number = int(found.group(1))
            account = Account(data.decode())
            assert number < len(self.sent_ns) and account.run == self.run_id, f"an answer to nothing we sent: {data!r}"
            self.repeated += number in self.answered_ns
            self.answered_ns.setdefault(number, time.monotonic_ns())
            if not self.last or account.next >= self.last.next:
                self.last = account

    def lacks(self, end=None):
        """How many of the first so many, or of all, were not answered."""
        return sum(number not in self.answered_ns for number in range(len(self.sent_ns) if end is None else end))

    def first_open(self):
        """The lowest number that is not answered yet: it and all later ones may still be on their way to either guest."""
        sent = len(self.sent_ns)
        return next((number for number in range(sent) if number not in self.answered_ns), sent)

    def wait_answers(self, count=20, seconds=20):
        goal = len(self.answered_ns) + count

        def reached():
            self.check()
            return len(self.answered_ns) >= goal
        wait_until(reached, seconds, "numbered: no answers")

    def wait_answered(self, number, seconds=5):
        """The first of these, and so those before it."""
        if number < len(self.sent_ns):
            wait_until(lambda: number in self.answered_ns, seconds, f"numbered: {number} is not answered")

    def worst_trip_ms(self, since=0):
        return max((when - self.sent_ns[number] for number, when in self.answered_ns.copy().items()
                    if number >= since), default=0) / 1e6

    def guest_account(self):
        """Of the guest that is primary now."""
        return Account(self.lab.guest_command("numbered"))

    def guest_holes(self):
        """All numbers that it was never given."""
        found, at = set(), 0
        while (answer := self.lab.guest_command(f"hole {at}")) != "ok none":
            first, at = map(int, answer.split()[1:])
            found.update(range(first, at))
        return found


class Consoles:
    """What the guest of each host has said on its console of numbered datagrams, from now on."""

    def __init__(self, lab):
        self.paths = {name: f"{lab.host(name).dir}/run/{VM}/console.log" for name in HOSTS}
        self.at = {name: self._read(name, 0)[1] for name in HOSTS}

    def _read(self, name, at):
        try:
            with open(self.paths[name], "rb") as file:
                file.seek(at)
                data = file.read()
        except FileNotFoundError:
            return b"", 0
        whole = data.rfind(b"\n") + 1
        return data[:whole], at + whole

    def said(self, name):
        """[(what, number)] since the last time: missing, twice or late; torn, None where a checkpoint cut the line."""
        data, self.at[name] = self._read(name, self.at[name])
        found = []
        for line in data.decode(errors="replace").splitlines():
            parts = SAID.findall(line)
            found += [(what.split()[0], int(expected) if what.startswith("missing") else int(number))
                      for _, what, number, expected in parts]
            if not parts and "numbered" in line:
                found.append(("torn", None))
        return found


class Epochs:
    """Checkpoints, one after the other, while the datagrams come; and the account of each epoch."""

    # Longer than an answer may wait for the other guest's: so what a checkpoint may have done wrong shows before the
    # next one undoes it.
    PAUSE_MS = (COMPARE_TIMEOUT_MS + 20, COMPARE_TIMEOUT_MS + 140)

    def __init__(self, lab, numbered, seed):
        self.lab = lab
        self.numbered = numbered
        self.random = random.Random(seed)
        self.primary = lab.primary()
        self.secondary = "b" if self.primary == "a" else "a"
        self.epochs = []
        # Connections from before the arming have their checkpoint first.
        lab.host(self.primary).call("checkpoint", timeout=10)
        self._pause()
        self.consoles = Consoles(lab)
        self.counts = self._counts()

    def _counts(self):
        status = self.lab.host(self.primary).status()
        compare = status["network"]["compare"]
        return {"checkpoints": status["checkpoint"]["count"], "matched": compare["released"]["matched"],
                "committed": compare["released"]["committed"],
                "differences": sum(compare["differences"].values())}

    def _pause(self):
        """Until the last commit is so long ago; a difference makes a checkpoint of its own, and it begins anew."""
        pause = self.random.uniform(*self.PAUSE_MS)
        wait_until(lambda: self.lab.host(self.primary).status()["checkpoint"]["since_commit_ms"] > pause, 30,
                   lambda: f"{pause:.0f} ms without a checkpoint; {self.lab.describe()}")

    def one(self):
        first, before = len(self.numbered.sent_ns), self.counts
        self._pause()
        self.lab.host(self.primary).call("checkpoint", timeout=10)
        self.numbered.check()
        self.numbered.wait_answered(first)
        self.counts = self._counts()
        epoch = {name: self.counts[name] - before[name] for name in before}
        epoch["trip_ms"] = self.numbered.worst_trip_ms(first)
        epoch["primary"] = self.consoles.said(self.primary)
        epoch["secondary"] = self.consoles.said(self.secondary)
        self.epochs.append(epoch)
        return epoch

    def report(self):
        """What happened in all of them, as numbers."""
        different = [epoch for epoch in self.epochs if epoch["differences"]]
        same = [epoch for epoch in self.epochs if not epoch["differences"]]
        healed = [epoch for epoch in different if epoch["secondary"]]
        sent = len(self.numbered.sent_ns)
        self.numbered.wait_answered(sent - 1)
        found = {"epochs": len(self.epochs), "sent": sent, "unanswered": self.numbered.lacks(sent),
                 "answered_twice": self.numbered.repeated,
                 "compared": sum(epoch["matched"] for epoch in self.epochs),
                 "not_compared": sum(epoch["committed"] for epoch in self.epochs),
                 "not_compared_without_a_difference": sum(epoch["committed"] for epoch in same),
                 "epochs_with_differences": len(different),
                 "of_these_of_a_late_guest": len(different) - len(healed),
                 "worst_trip_ms": round(max(epoch["trip_ms"] for epoch in self.epochs)),
                 "worst_trip_healed_ms": round(max((epoch["trip_ms"] for epoch in healed), default=0))}
        for role in ("primary", "secondary"):
            said = [what for epoch in self.epochs for what, _ in epoch[role]]
            found[role] = {what: said.count(what) for what in (*WHAT, "torn")}
        return found


def survive(lab, numbered):
    """The primary dies while datagrams come; what the survivor was given, when the pair is protected again."""
    primary = lab.primary()
    survivor = "b" if primary == "a" else "a"
    numbered.wait_answers(100)
    lab.kill(primary, "qemu")
    numbered.wait_answers(100)
    lab.wait_protected(survivor)
    numbered.wait_answers(100)
    # First the answers, then the account: what is answered later is in neither.
    answered = set(numbered.answered_ns.copy())
    holes = numbered.guest_holes()
    account = numbered.guest_account()
    return {"survivor": survivor, "answered": len(answered), "answered_but_not_given": len(answered & holes),
            "never_given": len(holes), "twice": account.twice, "late": account.late}


def judge(report):
    """[what must not be]. With taps the secondary may be given one twice or not at all, if it is rare and healed."""
    wrong = []

    def must(condition, text):
        if not condition:
            wrong.append(text)
    must(report["answered_twice"] == 0, "an answer came twice")
    must(not any(report["primary"].values()), f"the primary's guest said {report['primary']}")
    # On a busy host one guest may be so late that it counts as a difference; nor is every answer compared in the end.
    must(report["epochs_with_differences"] <= report["epochs"] * DIFFERENT_SHARE,
         f"differences in {report['epochs_with_differences']} of {report['epochs']} epochs: proves little")
    must(report["compared"] > 20 * report["not_compared_without_a_difference"],
         f"{report['not_compared_without_a_difference']} answers left uncompared, {report['compared']} were: proves little")
    must(report["worst_trip_healed_ms"] <= HEALED_MS,
         f"what the secondary got wrong was healed after {report['worst_trip_healed_ms']} ms")
    if report["port"] == "stream":
        must(not any(report["secondary"].values()), f"the secondary's guest said {report['secondary']}")
        must(report["unanswered"] == 0, f"{report['unanswered']} were not answered")
    else:
        said = sum(report["secondary"].values())
        must(said <= max(2, report["epochs"] * TAP_SHARE), f"the secondary's guest said {report['secondary']}")
    for after in report["after_failovers"]:
        must(after["answered_but_not_given"] == 0, f"the survivor lacks what a client was answered: {after}")
        must(report["port"] != "stream" or after["twice"] == 0, f"the survivor was given some twice: {after}")
    return wrong
