# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each oracle finds loss, duplication, other bytes and resets in a guest that lies, and nothing in one that does not."""
import importlib.machinery
import importlib.util
import os
import socket
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

# pylint: disable=wrong-import-position,redefined-outer-name
from lablib.oracles import NAMES, Oracles, available, base, datagrams, judges, stores  # noqa: E402
from lablib.util import LabError, wait_until  # noqa: E402
from fakes import DiskFake, EchoFake, FakeLab, HttpFake, KvFake, MemoryFake, UdpFake  # noqa: E402

FAKES = {"http": HttpFake, "echo": EchoFake, "udp": UdpFake, "kv": KvFake, "records": DiskFake, "memory": MemoryFake}
FLOW_S = 20


class Bench:
    """One oracle and the fake that it asks."""

    def __init__(self, directory, name):
        self.lab = FakeLab(directory)
        self.fake = self.lab.add(FAKES[name]())
        self.name = name
        self.oracles = Oracles(self.lab, (name,), 1)
        self.oracles.start()
        self.oracles.wait_flow(FLOW_S)
        assert self.oracles.check() == []

    @property
    def line(self):
        return self.oracles.report()[self.name]

    def lie(self, name):
        self.fake.lie = name

    def wait(self, column, number=1):
        wait_until(lambda: self.line[column] >= number, FLOW_S, lambda: f"{column} {number}: {self.line}")

    def lie_until(self, name, column):
        """It is found out: counted in this column."""
        self.lie(name)
        self.wait(column)

    def only(self, *columns):
        """Nothing else is counted as a fault."""
        for column in ("lost", "duplicated", "wrong", "resets"):
            assert bool(self.line[column]) == (column in columns), (column, self.line)

    def roll_back(self):
        """What was acknowledged since then is gone. Returns its number."""
        state, before = self.fake.snapshot(), self.line["acknowledged"]
        self.oracles.wait_flow(FLOW_S)
        self.oracles.wait_flow(FLOW_S)
        self.fake.restore(state)
        return self.line["acknowledged"] - before

    def hush(self):
        """The client ends, and with it all that it would find out by going on."""
        self.oracles.abandon()
        for oracle in self.oracles.oracles:
            oracle.join(FLOW_S)

    def close(self):
        self.hush()
        self.lab.close()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "AGAIN_S", 0.01)
    monkeypatch.setattr(base, "ASK_S", 0.3)
    monkeypatch.setattr(base, "PATIENCE_S", 3)
    monkeypatch.setattr(stores.Memory, "TURN_S", 0.3)
    for kind in base.Oracle.__subclasses__():
        monkeypatch.setattr(kind, "PERIOD_S", 0.002)
    made = []

    def make(name):
        made.append(Bench(tmp_path, name))
        return made[-1]
    yield make
    for each in made:
        each.close()


# All of them

@pytest.mark.parametrize("name", NAMES)
def test_honest_guest(bench, name):
    one = bench(name)
    one.oracles.wait_flow(FLOW_S)
    assert one.oracles.after_failover() == []
    one.oracles.wait_flow(FLOW_S)
    assert one.oracles.stop() == []
    assert one.line["acknowledged"] > 1
    one.only()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "udp"])
def test_reset(bench, name):
    """It is counted, told once, and what comes after it goes on and is judged."""
    one = bench(name)
    one.lie_until("cut" if name == "http" else "close", "resets")
    told = one.oracles.check()
    assert told and all(text.startswith(f"{name}: ") for text in told)
    one.oracles.wait_flow(FLOW_S)
    assert one.oracles.check() == []
    assert one.oracles.after_failover() == []
    one.only("resets")


@pytest.mark.parametrize("name", ["kv", "records", "memory"])
def test_forgotten_by_survivor(bench, name):
    """A survivor without the newest of what was acknowledged."""
    one = bench(name)
    assert one.roll_back() > 0
    one.oracles.after_failover()
    one.wait("lost")
    one.only("lost")


@pytest.mark.parametrize("name", ["kv", "records", "memory"])
def test_survivor_is_asked(bench, name):
    """The question alone finds both, loss and more than was asked for."""
    one = bench(name)
    one.hush()
    state = one.fake.snapshot()
    key = next(key for key in state if key != "turn")
    one.fake.restore({**state, key: state[key] - 1})
    assert one.oracles.after_failover() != []
    one.only("lost")
    one.fake.restore({**state, key: state[key] + 100})
    assert one.oracles.after_failover() != []
    one.only("lost", "duplicated")


@pytest.mark.parametrize("name", ["kv", "records", "memory"])
def test_answer_lost_with_the_connection(bench, name):
    """It was done, and the client cannot know: that is no fault, and it goes on from there."""
    one = bench(name)
    one.lie_until("done", "resets")
    one.oracles.wait_flow(FLOW_S)
    assert one.oracles.after_failover() != []  # the reset
    assert one.oracles.after_failover() == []
    one.only("resets")


@pytest.mark.parametrize("name", ["kv", "records"])
def test_done_twice(bench, name):
    one = bench(name)
    one.lie_until("double", "duplicated")
    one.only("duplicated")


@pytest.mark.parametrize("name", ["records", "memory"])
def test_survivor_is_spoilt(bench, name):
    one = bench(name)
    one.lie("spoilt")
    assert any("wrong" in text for text in one.oracles.after_failover())
    assert one.line["wrong"] > 0


def test_survivor_that_does_not_answer(bench):
    one = bench("kv")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        one.lab.ports[one.fake.PORT] = nobody.getsockname()[1]
    assert any("cannot be asked" in text for text in one.oracles.after_failover())


# Streams

@pytest.mark.parametrize("name, lie, column", [
    ("echo", "lose", "lost"), ("echo", "double", "duplicated"), ("echo", "corrupt", "wrong"), ("echo", "more", "wrong"),
    ("http", "old", "duplicated"), ("http", "corrupt", "wrong"), ("http", "sum", "wrong"), ("http", "missing", "wrong")])
def test_streams(bench, name, lie, column):
    one = bench(name)
    one.lie_until(lie, column)
    one.oracles.wait_flow(FLOW_S)
    one.only(column)


# Datagrams

@pytest.mark.parametrize("lie, column", [("drop", "lost"), ("again", "duplicated"), ("twice", "duplicated"),
                                         ("digest", "wrong"), ("number", "wrong"), ("rubbish", "wrong")])
def test_datagrams(bench, lie, column, monkeypatch):
    monkeypatch.setattr(datagrams, "LOST_S", 0.05)
    one = bench("udp")
    one.lie_until(lie, column)
    assert bool(one.oracles.check()) == (column == "wrong"), "datagrams may be lost and may come twice"


def test_datagrams_of_a_survivor_that_went_back(bench):
    """The datagrams after the failover are answered from a history without the last ones that were answered."""
    one = bench("udp")
    assert one.roll_back() > 0
    one.wait("wrong")
    assert any("two histories" in text for text in one.oracles.check())


def test_datagrams_that_the_survivor_never_got(bench):
    """Its counts are those of before, but it says itself that it lacks some of what was answered."""
    one = bench("udp")
    with one.fake.lock:
        answered = one.fake.state["numbers"][0]
    one.fake.command = lambda text: f"ok {answered} {answered + 1}" if text == "hole 0" else "ok none"
    assert any("never got" in text for text in one.oracles.after_failover())
    assert one.line["wrong"] == 1


# Stores

@pytest.mark.parametrize("lie", ["refuse", "rubbish"])
def test_kv_answers_something_else(bench, lie):
    one = bench("kv")
    one.lie_until(lie, "wrong")
    one.only("wrong")


def test_kv_is_logged_to_the_disk(bench):
    one = bench("kv")
    one.oracles.stop()
    assert one.fake.settings == [("dir", "/disk"), ("appendonly", "yes"), ("appendonly", "no"), ("dir", "/tmp")]


def test_records_acknowledged_and_not_kept(bench):
    one = bench("records")
    one.lie_until("forget", "lost")
    one.only("lost")


def test_records_refused(bench):
    one = bench("records")
    one.lie_until("refuse", "wrong")


@pytest.mark.parametrize("lie, text", [("frozen", "not written any more"), ("short", "pages 1023")])
def test_memory(bench, lie, text):
    one = bench("memory")
    one.lie(lie)
    assert any(text in fault for fault in one.oracles.after_failover())
    assert one.line["wrong"] > 0


def test_memory_that_goes_back_in_its_turns(bench):
    one = bench("memory")
    one.hush()
    one.fake.restore({**one.fake.snapshot(), "turn": 100})
    assert one.oracles.after_failover() == []
    one.fake.restore({**one.fake.snapshot(), "turn": 50})
    assert one.oracles.after_failover() != []
    one.only("lost")


def test_memory_of_which_a_console_tells(bench):
    one = bench("memory")
    path = f"{one.lab.hosts['b'].dir}/run/lab/console.log"
    os.makedirs(os.path.dirname(path))
    with open(path, "w", encoding="ascii") as file:
        file.write("tick 1\noracle: page 5 of turn 2 is wrong\noracle: page 6 of")
    told = one.oracles.check()
    assert len(told) == 1 and "page 5" in told[0] and "(b)" in told[0]
    assert one.oracles.check() == []


# What a lab must have

def test_missing_parts(tmp_path):
    lab = FakeLab(tmp_path, kv=False, disk_mib=0)
    assert available(lab.settings) == ("http", "echo", "udp", "memory")
    for name, hint in (("kv", "--kv"), ("records", "--disk")):
        with pytest.raises(LabError, match=hint):
            Oracles(lab, (name,)).start()
    with pytest.raises(LabError, match="unknown oracle ftp"):
        Oracles(lab, ("ftp",))


def test_standing_still_is_told(bench):
    one = bench("records")
    with one.fake.lock, pytest.raises(LabError, match="records"):
        one.oracles.wait_flow(0.1)
        one.oracles.wait_flow(0.1)


# The command

@pytest.fixture(scope="module")
def command():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../chaos/oracles")
    loader = importlib.machinery.SourceFileLoader("oracles_command", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("name, column, wrong", [("kv", None, False), ("kv", "lost", True), ("echo", "duplicated", True),
                                                 ("http", "wrong", True), ("records", "resets", True),
                                                 ("udp", "lost", False), ("udp", "duplicated", False),
                                                 ("udp", "wrong", True)])
def test_exit_status(command, name, column, wrong, capsys):
    line = {**judges.Account(name).counts(), "acknowledged": 9, "stalls_ms": [300, 700], "stalls": [{}, {}]}
    if column:
        line[column] = 1
    report = {"oracles": {name: line}, "failures": []}
    assert command.is_wrong(report) == wrong
    command.print_table(report["oracles"])
    assert capsys.readouterr().out.splitlines()[1].split() == [
        name, "9", *[str(line[count]) for count in command.COLUMNS[1:]], "2", "700"]


def test_exit_status_of_nothing(command):
    line = judges.Account("kv").counts()
    assert command.is_wrong({"oracles": {"kv": line}, "failures": []}), "nothing was acknowledged"
    assert command.is_wrong({"oracles": {"kv": {**line, "acknowledged": 1}}, "failures": ["kv: something"]})


# Judgement without a guest

def test_stalls():
    now = [100.0]
    stalls = judges.Stalls(0.1, lambda: now[0])
    for step in (0.1, 0.34, 2.0, 0.1):
        now[0] += step
        stalls.moved()
    assert stalls.report(False) == [{"at": pytest.approx(100.44), "ms": 2000}]
    now[0] += 1
    assert [stall["ms"] for stall in stalls.report(True)] == [2000, 1000], "one that lasts is told as well"


@pytest.mark.parametrize("value, lost, duplicated", [(6, 0, 0), (5, 1, 0), (3, 3, 0), (8, 0, 2)])
def test_reply(value, lost, duplicated):
    account = judges.Account("kv")
    counter = judges.CountJudge(account, "key")
    counter.acked = counter.issued = 5
    counter.issued += 1
    counter.reply(value)
    assert (account.acknowledged, account.lost, account.duplicated) == (value == 6, lost, duplicated)


def test_record_that_was_not_sent_yet():
    account = judges.Account("echo")
    judge = judges.RecordJudge(account)
    judge.sent = 1
    assert judge.feed(judges.record(0)) == 1
    with pytest.raises(judges.BrokenStream):
        judge.feed(judges.record(1))
    assert account.wrong == 1


@pytest.mark.parametrize("value, lost, duplicated", [(10, 0, 0), (12, 0, 0), (9, 1, 0), (0, 10, 0), (13, 0, 1)])
def test_survey(value, lost, duplicated):
    account = judges.Account("kv")
    judges.CountJudge(account, "key").survey(value, 10, 12)
    assert (account.lost, account.duplicated) == (lost, duplicated)
    assert len(account.faults) == bool(lost or duplicated)


@pytest.mark.parametrize("at, lost, duplicated", [(4, 0, 0), (5, 0, 0), (3, 1, 0), (6, 0, 1)])
def test_in_flight_when_the_connection_ended(at, lost, duplicated):
    """One may have been done or not; neither is a fault, and the next is counted from there."""
    account = judges.Account("kv")
    counter = judges.CountJudge(account, "key")
    for value in range(1, 5):
        counter.issued += 1
        counter.reply(value)
    counter.issued += 1
    counter.resume(at)
    assert (account.lost, account.duplicated) == (lost, duplicated)
    counter.issued += 1
    counter.reply(at + 1)
    assert (account.acknowledged, account.lost, account.duplicated) == (5, lost, duplicated)


def test_body_of_every_length():
    for number, size in ((0, 1), (7, 3), (7, 12), (123456789, 8), (2**63, 4097), (5, 65536)):
        body = HttpFake.body(number, size)
        account = judges.Account("http")
        assert judges.judge_body(account, number, size, HttpFake.sum(body), body)
        assert not judges.judge_body(account, number, size, None, body), "without a checksum"
        assert not judges.judge_body(account, number, size, HttpFake.sum(body[:-1]), body[:-1]), "short"
        assert (account.acknowledged, account.wrong) == (1, 2)


def datagram(number, count, digest, following=None):
    following = number + 1 if following is None else following
    return (f"number {number} run 1 next {following} got {count} missing {following - count} twice 0 late 0 "
            f"digest {digest:016x}").encode()


def test_history_with_answers_missing():
    """Lost answers leave gaps, and late ones fill them."""
    account = judges.Account("udp")
    judge = judges.DatagramJudge(account, 1)
    digests, digest = [], 0
    for number in range(6):
        judge.sent(0.0)
        digest = UdpFake.mix(digest ^ number)
        digests.append(digest)
    for number in (0, 1, 4, 3, 2, 5, 5):
        judge.answer(datagram(number, number + 1, digests[number], max(number + 1, 1)))
    assert (account.acknowledged, account.duplicated, account.wrong) == (6, 1, 0)
    assert judge.count_lost(1.0) == 0


def test_history_that_ends_at_the_same_count():
    """No neighbours to compare with, but two answers after as many datagrams."""
    account = judges.Account("udp")
    judge = judges.DatagramJudge(account, 1)
    for _ in range(4):
        judge.sent(0.0)
    judge.answer(datagram(2, 3, 1))
    judge.answer(datagram(3, 3, 2, 4))
    assert (account.acknowledged, account.wrong) == (1, 1) and "two histories" in account.faults[0]


@pytest.mark.parametrize("text", [b"number 4 run 1 next 5 got 5 missing 0", b"number 3 run 1 next 3 got 3 missing 0",
                                  b"number 3 run 2 next 4 got 4 missing 0", b"number 3 run 1 next 4 got 4 missing 1"])
def test_accounts_that_cannot_be(text):
    account = judges.Account("udp")
    judge = judges.DatagramJudge(account, 1)
    for _ in range(4):
        judge.sent(0.0)
    judge.answer(text + b" twice 0 late 0 digest 0000000000000001")
    assert (account.acknowledged, account.wrong) == (0, 1)
    judge.answer(datagram(3, 4, 1))
    assert (account.acknowledged, account.wrong) == (1, 1)


def test_history_forked_in_a_gap():
    """A late answer must fit to both of its neighbours."""
    account = judges.Account("udp")
    judge = judges.DatagramJudge(account, 1)
    for _ in range(4):
        judge.sent(0.0)
    first = UdpFake.mix(0)
    judge.answer(datagram(0, 1, first))
    judge.answer(datagram(2, 3, UdpFake.mix(UdpFake.mix(first ^ 1) ^ 2)))
    assert account.wrong == 0
    judge.answer(datagram(3, 2, UdpFake.mix(first ^ 3)))  # the second that came was number 1, not 3
    assert account.wrong == 1 and "two histories" in account.faults[0]
