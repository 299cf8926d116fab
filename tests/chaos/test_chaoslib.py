# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pure parts of chaos: language, model, draw, shrinker, picture. Seconds, and no lab."""
import glob
import hashlib
import os
import re
import sys
import types
import xml.etree.ElementTree

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, f"{os.path.dirname(os.path.dirname(HERE))}/tests/lab"]

# pylint: disable=wrong-import-position
from chaoslib.actions import compare, lookup  # noqa: E402
from chaoslib.draw import END, Draw  # noqa: E402
from chaoslib.harm import Harm  # noqa: E402
from chaoslib.model import Illegal, Model, check, is_legal  # noqa: E402
from chaoslib.session import Session  # noqa: E402
from chaoslib.shrink import flatten, rounds_of, shrink  # noqa: E402
from chaoslib.steps import VERBS, ScenarioError, parse_line, parse_text  # noqa: E402
from chaoslib.timeline import timeline  # noqa: E402
from lablib.util import LabError  # noqa: E402

BY_HAND = {"lab", "await", "refused", "assert", "streams", "disk-fault", "disk-mend", "damage", "repair", "remember", "new-life", "arbiter",
           "disturb", "flood", "lose-frames", "start-refused", "sh"}
SCENARIOS = sorted(glob.glob(f"{HERE}/scenarios/*.scenario"))


def lines(*texts):
    return [parse_line(text) for text in texts]


# The language

@pytest.mark.parametrize("path", SCENARIOS, ids=os.path.basename)
def test_unit_scenarios_of_the_folder_can_be_read(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    scenario = parse_text(text, path)
    assert text.startswith("# "), "a scenario says first what it is"
    assert parse_text(scenario.text()).steps[0].args == scenario.steps[0].args


def test_unit_steps():
    step = parse_line('qmp secondary yank {"instances": [{"type": "migration"}]} within 3s  # gone')
    assert (step.verb, step.within, step.args["command"]) == ("qmp", 3, "yank")
    assert step.args["arguments"] == {"instances": [{"type": "migration"}]}
    assert parse_line("clock-jump a -25h").args == {"host": "a", "seconds": -90000}
    assert parse_line("wait b state alone|protected within 150ms").args["condition"] == ("state", ("alone", "protected"))
    assert parse_line("assert a status.peer.connected == true").args["condition"] == ("status", "peer.connected", "==", True)
    assert parse_line("assert a status.role == primary").args["condition"][3] == "primary"
    assert parse_line("stall primary at 4").args == {"host": "primary", "at": "4"}
    assert parse_line("cut peer from a").args == {"channel": "peer", "from": "a"}
    assert parse_line("   # nothing") is None
    assert parse_line("lose-frames primary at-engine 5").args == {"host": "primary", "place": "at-engine", "count": 5}
    assert parse_line("flood 60 echo").args == {"count": 60, "port": "echo"}
    assert parse_line("sh ! dd if=/dev/zero of=/dev/vdb").args == {"command": "! dd if=/dev/zero of=/dev/vdb"}
    assert parse_line("start-refused b is not signed").args == {"host": "b", "text": "is not signed"}
    assert parse_line("kill a mirror1").args["part"] == "mirror1"
    assert parse_text("lab exports=a1:qcow2,b1:failing disks=2\nmend\n").options["exports"] == "a1:qcow2,b1:failing"
    assert parse_text("lab disk=0 mode=buffered spoils\nmend\n").options == {"disk": "0", "mode": "buffered"}


BAD = {
    "explode a qemu": "unknown step 'explode': lab, qmp",
    "kill c qemu": "unknown host 'c': a, b, primary",
    "kill a disk": "unknown part 'disk': qemu, colod",
    "kill a": "part is missing: qemu",
    "kill a qemu now": "what is 'now'",
    "wait a state happy": "unknown state 'happy': idle",
    "wait a state alone within soon": "a time is like 150ms",
    "wait pair state alone": "wait pair protected",
    "wait a": "condition is missing",
    "assert a status.role = primary": "unknown comparison '=': ==",
    "cut lan": "whose? cut lan from HOST",
    "cut frames from a": "in both directions",
    "delay frames 5ms": "unknown channel 'frames': peer, client",
    "lose peer much": "loss is like 1%",
    "stall a at 8": "unknown step '8': 1, 2",
    "qmp a quit {": "no JSON",
    "qmp a quit []": "no JSON|object",
    "clock-jump a 60s": "like +60s",
    "pause long": "a time is like",
    "lab speed=9": "unknown option 'speed': mode",
    "lab images=12": "a:12,b:12",
    "lab exports=a1:broken": "a1:qcow2,b1:failing",
    "lab cpus=two": "cpus is a number",
    "disk-fault a slow": "unknown fault 'slow': read, write, hang",
    "damage a disk": "unknown harm 'disk': state, old-state",
    "disturb a window": "unknown door 'window': peer, control, disk",
    "lose-frames a nowhere 3": "unknown place 'nowhere': at-engine",
    "lose-frames a release some": "count is like 20",
    "flood 10 all": "unknown port 'all': nobody, echo",
    "arbiter gone": "unknown word 'gone': away, back",
    "start-refused a": "text of the refusal is missing",
    "assert disks odd": "equal, differ",
    "refused a failover": "text of the refusal is missing",
}


@pytest.mark.parametrize("line", BAD)
def test_err_a_bad_line_says_where_and_what_is_allowed(line):
    with pytest.raises(ScenarioError) as caught:
        parse_text(f"# something\n\n{line}\nmend\n", "some.scenario")
    text = str(caught.value)
    assert text.startswith("some.scenario:3: ")
    assert any(part in text for part in BAD[line].split("|")), text


def test_err_lab_comes_first_and_a_scenario_has_steps():
    with pytest.raises(ScenarioError, match="x:2: lab is the first step"):
        parse_text("mend\nlab disk=0\n", "x")
    with pytest.raises(ScenarioError, match="no steps"):
        parse_text("# only talk\n", "x")


def test_unit_conditions():
    status = {"disks": [{"name": "disk0"}], "peer": {"generation": 4}}
    assert lookup(status, "disks.0.name") == "disk0"
    assert lookup(status, "disks.1.name") is None and lookup(status, "peer.generation.x") is None
    assert compare(4, ">=", 4) and not compare(None, ">", 0) and compare("no peer", "contains", "peer")
    assert compare(None, "!=", 1) and not compare(None, "contains", "x")


# What is done to files

class FakeHost:
    def __init__(self, folder):
        self.dir = str(folder)
        self.state_file = f"{folder}/state/lab/state"
        self.config = f"{folder}/lab.conf"
        for path, text in ((self.state_file, "colod-state 1\ngeneration=4\nrole=secondary\nclaiming=0\nsha256=0\n"),
                           (f"{folder}/state/lab/disk0.meta", "colod-disk 1\n" + "x" * 80), (f"{folder}/state/lab/disk0.map", "m" * 80),
                           (f"{folder}/overlays/disk0.overlays/x", ""), (self.image(), "\0" * (1 << 20)), (self.config, "[vm]\nqemu=/q\nmachine=pc\n")):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="ascii") as file:
                file.write(text)

    def image(self):
        return f"{self.dir}/images/disk0.img"


class FakeLab:
    def __init__(self, folder):
        self.dir = str(folder)
        self.one = FakeHost(folder / "a")
        self.settings = types.SimpleNamespace(disk_mib=1)
        os.makedirs(f"{folder}/arbiter")
        for number in (3, 4):
            with open(f"{folder}/arbiter/lab.{number:020}", "w", encoding="ascii") as file:
                file.write("b\n")

    def host(self, name):
        assert name == "a"
        return self.one


def contents(folder):
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            with open(f"{where}/{name}", "rb") as file:
                found[f"{where}/{name}"] = file.read()
    return found, sorted(where for where, _, _ in os.walk(folder))


@pytest.mark.parametrize("what", ["state", "metadata", "map", "image", "size", "commit", "qemu"])
def test_unit_what_is_damaged_is_repaired(tmp_path, what):
    harm = Harm(FakeLab(tmp_path))
    before = contents(tmp_path)
    harm.damage("a", what)
    assert contents(tmp_path) != before
    harm.repair("a", what)
    assert contents(tmp_path) == before
    with pytest.raises(LabError, match="as it was"):
        harm.repair("a", what)
    harm.damage("a", what)
    harm.arbiter("away")
    harm.repair_all()
    harm.repair_all()
    assert contents(tmp_path) == before


def test_unit_a_claim_that_was_not_noted_and_an_old_state(tmp_path):
    lab = FakeLab(tmp_path)
    harm = Harm(lab)
    harm.remember("a")
    harm.damage("a", "claim")
    with open(lab.one.state_file, "rb") as file:
        body, _, rest = file.read().partition(b"sha256=")
    assert b"claiming=5\n" in body and rest.strip().decode() == hashlib.sha256(body).hexdigest()
    with open(f"{tmp_path}/arbiter/lab.{5:020}", encoding="ascii") as file:
        assert file.read() == "a\n"
    harm.damage("a", "old-state")
    with open(lab.one.state_file, encoding="ascii") as file:
        assert "claiming=0" in file.read()
    harm.repair_all()


# docs/FAILURE-MODES.md

def failure_rows():
    """[(title of the table, first cell, last cell)] of each table of faults; a table without the column has None."""
    found, title, columns = [], "", []
    with open(f"{os.path.dirname(os.path.dirname(HERE))}/docs/FAILURE-MODES.md", encoding="utf-8") as file:
        for line in file.read().splitlines():
            cells = [cell.strip() for cell in line[1:-1].split("|")] if line.startswith("|") else []
            if line.startswith("#"):
                title = line.lstrip("# ")
            elif cells[:1] == ["fault"]:
                columns = cells
            elif cells and not cells[0].startswith("---"):
                assert len(cells) == len(columns), f"a cell is missing: {line}"
                found.append((title, cells[0], cells[-1] if columns[-1] == "scenario" else None))
    return found


def test_unit_each_failure_mode_names_its_scenario_or_says_why_there_is_none():
    rows = failure_rows()
    assert {title for title, _, _ in rows} == {"Failure modes", "Disks", "Disks of a secondary, alone"} and len(rows) > 120
    there = {os.path.basename(path) for path in SCENARIOS}
    named = set()
    for title, fault, cell in rows:
        assert cell, f"{title}: {fault}: no scenario, and no reason"
        names = re.findall(r"`([\w-]+\.scenario)`", cell)
        named.update(names)
        assert names or re.fullmatch(r"none: .{10,}", cell), f"{title}: {fault}: {cell}"
        assert set(names) <= there, f"{title}: {fault}: {set(names) - there} is not in scenarios/"
    assert there == named, f"no row names {there - named}"


def test_unit_who_only_looks_leaves_the_pair_as_it_is():
    for texts, settled in ((END, True), ((*END, "assert streams exact", "assert a vm"), True), ((*END, "pause 1s"), False),
                           ((*END, "guest now", "assert streams exact"), False), (("assert streams exact",), False)):
        assert Session._ends_settled(lines(*texts)) == settled, texts  # pylint: disable=protected-access


# The model

def test_unit_one_host_may_be_hit_and_not_the_other():
    model = Model()
    model.apply(parse_line("kill primary qemu"))
    for line in ("kill secondary qemu", "kill other qemu", "kill primary colod", "freeze secondary host", "cut peer", "stop other"):
        assert not model.allows(parse_line(line)), line
    assert model.allows(parse_line("kill struck host"))


LEGAL = (
    ("kill primary qemu", *END),
    ("stall primary at 4", "kill struck host", *END),
    ("cut peer", "wait pair alone", "kill struck host", "heal", "start struck", "wait pair protected"),
    ("kill primary host", "cut peer", "mend", "wait pair protected"),
    ("kill primary qemu", "wait other state alone", "freeze other qemu", "thaw other qemu", *END),
    ("colo secondary failover", "kill struck qemu", *END),
    ("stall secondary at taking-over", "kill primary qemu", "thaw other colod", *END),
    ("delay peer 5ms", "kill primary colod", "heal", "start struck", "wait pair protected"),
    ("fill-disk secondary images", "kill struck colod", "free-disk struck images", "start struck", "wait pair protected"),
    ("kill primary host", "mend", "decide", "wait pair protected"),
)
ILLEGAL = (
    ("cut peer", "kill primary qemu", *END),  # the secondary may have been refused
    ("kill primary qemu", "cut peer", *END),  # the old one may be armed again, and win
    ("stall primary at 4", *END),
    ("stall primary at 4", "freeze struck colod", *END),  # it goes on, and the gate does not
    ("stall primary at 4", "pause 1s", "colo secondary failover", *END),
    ("kill primary host", "wait pair protected"),  # nobody starts it
    ("cut peer", "wait pair protected"),
    ("lose peer 5%", "kill primary host", *END),
    ("kill primary qemu", "freeze other qemu", "thaw other qemu", *END),  # it may not have taken over yet
    ("kill primary qemu", "wait pair protected", "kill struck qemu"),  # who that was is of no meaning any more
    ("delay peer 5ms", "kill primary host", *END),  # its port is in a relay
    ("kill primary mirror", "wait struck state incoming", *END),  # it stays primary
    ("colo primary unprotect", "pause 1s", "wait pair protected"),
    ("stall secondary at alone", "kill primary qemu", "wait pair protected"),
    ("reset frames", "kill struck qemu", *END),
    ("kill primary mirror", "kill struck host", *END),  # it goes on alone
    ("freeze primary colod", "thaw struck colod", "kill struck qemu", *END),  # it may have been early enough
    ("qmp primary x-colo-lost-heartbeat", "kill struck qemu", *END),
    ("freeze primary host", "kill struck qemu", "wait struck state standby", *END),  # its colod stands still, too
    ("streams stop", "mend"),
    ("fill-disk primary images", *END),  # nobody else has room
    ("fill-disk secondary overlays", "kill other qemu", *END),
    ("fill-disk secondary images", "wait pair protected"),
    ("kill primary host", "decide", *END),  # healed first
)


@pytest.mark.parametrize("texts", LEGAL, ids=" ".join)
def test_unit_what_leaves_a_copy_is_legal(texts):
    check(lines(*texts))


@pytest.mark.parametrize("texts", ILLEGAL, ids=" ".join)
def test_err_what_may_take_the_last_copy_is_not(texts):
    with pytest.raises(Illegal):
        check(lines(*texts))


def test_unit_drawn_rounds_are_legal_and_those_of_a_seed():
    draw = Draw(7)
    rounds = [draw.round() for _ in range(2000)]
    assert all(is_legal(one) for one in rounds)
    assert is_legal(flatten(rounds[:50]))
    again = Draw(7)
    assert [str(step) for step in again.round()] == [str(step) for step in rounds[0]]
    drawn = {step.verb for one in rounds for step in one}
    # What needs a lab of its own, or a host that is down meanwhile, or is no fault, is not drawn.
    assert drawn >= set(VERBS) - BY_HAND - {"fill-disk", "free-disk", "decide"}
    assert not drawn & BY_HAND


def test_unit_drawn_rounds_of_other_labs():
    """An operator decides where the arbiter does not, and nobody waits for what only he brings about; disks get full where they can."""
    manual = [Draw(3, {"arbiter": "manual"}).round() for _ in range(500)] + [Draw(4, {"arbiter": "manual"}).round()]
    for steps in manual:
        assert is_legal(steps)
        assert [step.verb for step in steps[-3:]] == ["mend", "decide", "wait"]
        assert sum(step.verb == "wait" for step in steps) == 1
    draw = Draw(5, {"images": "a:64,b:64", "overlays": "a:64,b:64"})
    full = [draw.round() for _ in range(500)]
    assert all(is_legal(one) for one in full)
    found = [step for one in full for step in one if step.verb in ("fill-disk", "free-disk")]
    assert {step.verb for step in found} == {"fill-disk", "free-disk"} and {step.args["folder"] for step in found} == {"images", "overlays"}


# The shrinker

def shrunk(steps, guilty):
    """guilty(texts): whether such a run fails."""
    tried = []

    def fails(candidate):
        tried.append(candidate)
        return guilty([str(step) for step in candidate])
    return [str(step) for step in shrink(steps, lines(*END), fails, lambda: True)], tried


def test_unit_shrinks_to_the_steps_that_matter():
    steps = flatten([lines("guest dirty 0 16", f"pause {number}ms", "kill primary qemu", *END) for number in range(6)])
    steps += lines("pause 7ms", "clock-jump primary +60s", "kill primary host", "pause 30ms", "start struck")
    best, tried = shrunk(steps, lambda texts: "clock-jump primary +60s" in texts and texts[-1] == "start struck")
    assert best == ["clock-jump primary +60s", "kill primary host", "start struck"]
    assert len(tried) < 60


def test_unit_a_fault_of_two_rounds_keeps_both():
    steps = flatten([lines("kill primary qemu", *END), lines("kill primary colod", *END), lines("kill primary host", *END)])
    best, _ = shrunk(steps, lambda texts: "kill primary colod" in texts and "kill primary host" in texts)
    assert best == ["kill primary colod", *END, "kill primary host"]


def test_unit_candidates_are_legal_and_time_ends():
    steps = flatten([lines("stall primary at 3", "kill struck qemu", *END)] * 4)
    _, tried = shrunk(steps, lambda texts: True)
    assert tried and all(is_legal([*one, *lines(*END)]) for one in tried)
    assert shrink(steps, lines(*END), lambda _: True, lambda: False) == steps
    assert len(rounds_of(steps)) == 4


# The picture

def test_unit_timeline_is_svg_with_all_that_happened():
    hosts = {"a": ([(0.0, "protected", 3, None), (4.0, None, None, None)], [(1.0, "interval"), (2.0, "divergence"), (3.0, "other")]),
             "b": ([(0.0, "standby", 3, "no <peer>"), (4.2, "alone", 4, "x")], [])}
    text = timeline("seed 1 & more", 0.0, 10.0, hosts, [(4.0, "kill a qemu", "a")] * 9, {"http": [(4.0, 350)], "udp": []})
    root = xml.etree.ElementTree.fromstring(text)
    assert root.get("width") == "1200"
    words = "".join(root.itertext())
    for part in ("host a", "host b", "kill a qemu", "http", "udp", "divergence", "seed 1 & more", "350 ms", "standby"):
        assert part in words, part
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert box.get("width") == "100%" or float(box.get("x")) + float(box.get("width")) <= 1200


def test_unit_timeline_of_nothing():
    xml.etree.ElementTree.fromstring(timeline("nothing", 5.0, 5.0, {"a": ([], [])}, [], {}))
