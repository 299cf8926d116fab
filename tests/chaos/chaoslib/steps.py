# SPDX-License-Identifier: LGPL-2.1-or-later
"""steps.py - the language of scenarios: one step a line. Pure: nothing here touches a lab.

A line is a verb and its arguments; VERBS has for each verb what may follow, as it is shown in errors. `within 5s` at
the end of a line is the step's deadline. What is behind a `#` that begins a word is a comment.
"""
import dataclasses
import json
import re

HOSTS = ("a", "b", "primary", "secondary", "struck", "other")
STATES = ("idle", "off", "claim-start", "starting", "adopting", "adopt-claim", "alone", "preparing", "syncing", "migrating",
          "protected", "handing-over", "judging", "claim-primary", "resuming", "incoming-start", "incoming", "standby",
          "proving", "claim-secondary", "taking-over", "stopping")
CHECKPOINT_STEPS = ("1", "2", "3", "4", "5", "6", "7")
PARTS = ("qemu", "colod", "host", "target", "mirror", "target1", "mirror1", "export")
LINKS = ("peer", "client")
CONNECTIONS = ("control", "checkpoint", "frames")
CHANNELS = (*LINKS, "lan", *CONNECTIONS)
FOLDERS = ("images", "overlays")
DISK_FAULTS = ("read", "write", "hang")
PLACES = ("at-engine", "primary-egress", "release", "mirror", "secondary-ingress", "rewriter-ingress", "rewriter-egress", "secondary-egress")
HARMS = ("state", "old-state", "claim", "metadata", "map", "commit", "image", "size", "certificate", "address", "qemu")
DOORS = ("peer", "control", "disk")
OPERATORS = ("==", "!=", ">=", "<=", ">", "<", "contains")
NUMBERS = ("disk", "disks", "interval", "overlay", "queues", "cpus", "hold", "sync")
LAB_KEYS = ("mode", "port", "arbiter", *NUMBERS, "images", "overlays", "exports", "spoils")


class ScenarioError(Exception):
    """A line that is none: file, line, what is wrong and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Step:
    verb: str
    args: dict
    within: float
    text: str
    line: int = 0

    def __str__(self):
        return self.text


class Words:
    """The arguments of one line, taken one after the other."""

    def __init__(self, words):
        self.words = words

    def take(self, what, allowed=None):
        if not self.words:
            raise ScenarioError(f"{what} is missing" + (f": {', '.join(allowed)}" if allowed else ""))
        word = self.words.pop(0)
        if allowed and word not in allowed:
            raise ScenarioError(f"unknown {what} '{word}': {', '.join(allowed)}")
        return word

    def host(self, more=()):
        return self.take("host", (*HOSTS, *more))

    def match(self, what, pattern, example):
        word = self.take(f"{what} ({example})")
        found = re.fullmatch(pattern, word)
        if not found:
            raise ScenarioError(f"{what} is like {example}, not '{word}'")
        return found

    def keyword(self, word):
        """Takes the word if it comes next."""
        if self.words[:1] == [word]:
            self.words.pop(0)
            return True
        return False

    def sender(self):
        return self.host() if self.keyword("from") else None

    def rest(self, what):
        if not self.words:
            raise ScenarioError(f"{what} is missing")
        words, self.words = self.words, []
        return " ".join(words)


def seconds(word):
    """2s, 150ms, 1m, 1h."""
    found = re.fullmatch(r"([+-]?[\d.]+)(ms|s|m|h)", word)
    if not found:
        raise ScenarioError(f"a time is like 150ms, 5s, 2m or 1h, not '{word}'")
    return float(found.group(1)) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[found.group(2)]


def parse_value(text):
    """JSON where it is some, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_condition(words):
    """What `wait HOST` and `assert HOST` can look for, as (kind, ...)."""
    word = words.take("condition", None)
    if word.startswith("status."):
        operator = words.take("comparison", OPERATORS)
        return ("status", word[len("status."):], operator, parse_value(words.rest("value")))
    if word == "state":
        states = words.take("state").split("|")
        for state in states:
            if state not in STATES:
                raise ScenarioError(f"unknown state '{state}': {', '.join(STATES)}")
        return ("state", tuple(states))
    if word == "events":
        words.take("word", ("contain", "contains"))
        return ("events", words.rest("text"))
    if word in ("gone", "stalled", "vm", "no-vm", "protected", "alone"):
        return (word,)
    raise ScenarioError(f"unknown condition '{word}': protected, alone (the pair), state STATE[|STATE], status.KEY COMPARISON VALUE, "
                        "events contain TEXT, stalled, gone, vm, no-vm")


def parse_lab(words):
    options = {}
    while words.words:
        key, _, value = words.take("option").partition("=")
        if key not in LAB_KEYS:
            raise ScenarioError(f"unknown option '{key}': {', '.join(LAB_KEYS)}")
        if key in NUMBERS and not value.isdigit():
            raise ScenarioError(f"{key} is a number, not '{value}'")
        if key in FOLDERS and not re.fullmatch(r"[ab]:\d+(,[ab]:\d+)*", value):
            raise ScenarioError(f"{key} is like a:12,b:12 (MiB), not '{value}'")
        if key == "exports" and not re.fullmatch(r"[ab]\d:(qcow2|failing)(,[ab]\d:(qcow2|failing))*", value):
            raise ScenarioError(f"exports are like a1:qcow2,b1:failing, not '{value}'")
        options[key] = value
    return {"options": options}


def parse_qmp(words):
    host, command = words.host(), words.take("command")
    text = words.rest("arguments") if words.words else "{}"
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise ScenarioError(f"no JSON: {text} ({error})") from error
    if not isinstance(arguments, dict):
        raise ScenarioError(f"arguments are an object, like {{\"id\": 1}}, not {text}")
    return {"host": host, "command": command, "arguments": arguments}


def parse_cut(words):
    channel = words.take("channel", CHANNELS)
    sender = words.sender()
    if channel == "lan" and not sender:
        raise ScenarioError("whose? cut lan from HOST")
    if channel in CONNECTIONS and sender:
        raise ScenarioError(f"{channel} is cut in both directions: without from")
    return {"channel": channel, "from": sender}


def parse_delay(words):
    found = {"channel": words.take("channel", LINKS), "ms": int(words.match("delay", r"(\d+)ms", "20ms").group(1)), "jitter": 0}
    if words.words and words.words[0].endswith("ms"):
        found["jitter"] = int(words.match("jitter", r"(\d+)ms", "5ms").group(1))
    return {**found, "from": words.sender()}


def parse_lose(words):
    channel = words.take("channel", LINKS)
    return {"channel": channel, "percent": float(words.match("loss", r"([\d.]+)%", "1%").group(1)), "from": words.sender()}


def parse_wait(words):
    host = words.host(("pair",))
    condition = parse_condition(words)
    if (host == "pair") != (condition[0] in ("protected", "alone")):
        raise ScenarioError("wait pair protected, wait pair alone, or a host with another condition")
    return {"host": host, "condition": condition}


def parse_assert(words):
    if words.keyword("streams"):
        return {"host": None, "condition": ("streams", words.take("word", ("exact",)))}
    if words.keyword("disks"):
        return {"host": None, "condition": ("disks", words.take("word", ("equal", "differ")))}
    return {"host": words.host(), "condition": parse_condition(words)}


def parse_stall(words):
    host = words.host()
    words.take("word", ("at",))
    return {"host": host, "at": words.take("step", (*CHECKPOINT_STEPS, *STATES))}


def parse_refused(words):
    host, command = words.host(), words.take("command")
    return {"host": host, "command": command, "text": words.rest("text of the refusal")}


def parse_lose_frames(words):
    return {"host": words.host(), "place": words.take("place", PLACES), "count": int(words.match("count", r"\d+", "20").group(0))}


def host_and(name, what, allowed):
    return lambda words: {"host": words.host(), name: words.take(what, allowed)}


def parse_slow(words):
    return {"host": words.host(), "percent": int(words.match("share", r"(\d{1,2})%", "80%").group(1))}


def parse_jump(words):
    return {"host": words.host(), "seconds": seconds(words.match("jump", r"[+-].+", "+60s").group(0))}


# Verb: what follows it, how that is parsed, its deadline in seconds.
VERBS = {
    "lab": ("KEY=VALUE... (first line; keys: " + ", ".join(LAB_KEYS) + ")", parse_lab, 0),
    "qmp": ("HOST COMMAND [{JSON}]", parse_qmp, 10),
    "await": ("HOST EVENT [within TIME]", lambda words: {"host": words.host(), "event": words.take("event")}, 10),
    "kill": ("HOST " + "|".join(PARTS), host_and("part", "part", PARTS), 10),
    "freeze": ("HOST " + "|".join(PARTS), host_and("part", "part", PARTS), 10),
    "thaw": ("HOST " + "|".join(PARTS), host_and("part", "part", PARTS), 10),
    "start": ("HOST", lambda words: {"host": words.host()}, 30),
    "stop": ("HOST", lambda words: {"host": words.host()}, 30),
    "cut": ("CHANNEL [from HOST] (" + "|".join(CHANNELS) + ")", parse_cut, 10),
    "heal": ("", lambda words: {}, 10),
    "delay": ("peer|client TIME [JITTER] [from HOST]", parse_delay, 10),
    "lose": ("peer|client PERCENT [from HOST]", parse_lose, 10),
    "corrupt": ("CONNECTION [from HOST] (" + "|".join(CONNECTIONS) + ")",
                lambda words: {"channel": words.take("connection", CONNECTIONS), "from": words.sender()}, 15),
    "reset": ("CONNECTION [from HOST] (" + "|".join(CONNECTIONS) + ")",
              lambda words: {"channel": words.take("connection", CONNECTIONS), "from": words.sender()}, 15),
    "fill-disk": ("HOST images|overlays", host_and("folder", "folder", FOLDERS), 20),
    "free-disk": ("HOST images|overlays", host_and("folder", "folder", FOLDERS), 20),
    "disk-fault": ("HOST " + "|".join(DISK_FAULTS) + " (of a disk that is a failing export)", host_and("what", "fault", DISK_FAULTS), 10),
    "disk-mend": ("HOST", lambda words: {"host": words.host()}, 10),
    "damage": ("HOST " + "|".join(HARMS), host_and("what", "harm", HARMS), 20),
    "repair": ("HOST " + "|".join(HARMS), host_and("what", "harm", HARMS), 20),
    "remember": ("HOST (its state file, for damage HOST old-state)", lambda words: {"host": words.host()}, 10),
    "new-life": ("HOST (its kernel has another boot id at its next start)", lambda words: {"host": words.host()}, 10),
    "arbiter": ("away|back", lambda words: {"where": words.take("word", ("away", "back"))}, 10),
    "disturb": ("HOST " + "|".join(DOORS), host_and("door", "door", DOORS), 20),
    "flood": ("COUNT nobody|echo (small datagrams to a port of the guest where nobody listens, or large ones to its echo)",
              lambda words: {"count": int(words.match("count", r"\d+", "3000").group(0)),
                             "port": words.take("port", ("nobody", "echo"))}, 10),
    "lose-frames": ("HOST PLACE COUNT (places: " + ", ".join(PLACES) + ")", parse_lose_frames, 10),
    "slow-peer": ("HOST PERCENT (so much of the time its QEMU stands still, until heal)", parse_slow, 10),
    "clock-jump": ("HOST +TIME|-TIME", parse_jump, 10),
    "colo": ("HOST COMMAND", lambda words: {"host": words.host(), "command": words.rest("command")}, 20),
    "refused": ("HOST COMMAND TEXT (the command is refused, and the text is in the reason)", parse_refused, 20),
    "start-refused": ("HOST TEXT (colod ends at once, and the text is in its log)",
                      lambda words: {"host": words.host(), "text": words.rest("text of the refusal")}, 30),
    "decide": ("(an operator lets the host go on that waits for one)", lambda words: {}, 10),
    "stall": ("HOST at 1..7|STATE", parse_stall, 10),
    "wait": ("HOST CONDITION [within TIME]", parse_wait, 20),
    "assert": ("HOST CONDITION, streams exact, disks equal|differ", parse_assert, 30),
    "streams": ("stop|start", lambda words: {"what": words.take("word", ("stop", "start"))}, 60),
    "guest": ("COMMAND (a line to the guest's port 9)", lambda words: {"command": words.rest("command")}, 20),
    "sh": ("COMMAND (a shell's, in the guest; it must succeed)", lambda words: {"command": words.rest("command")}, 30),
    "mend": ("(heals, thaws and starts whatever needs it)", lambda words: {}, 60),
    "pause": ("TIME (how long a fault lasts)", lambda words: {"seconds": seconds(words.take("time"))}, 600),
}


def split(line):
    """Words of a line; JSON is one of them."""
    line = re.sub(r"(^|\s)#.*$", "", line).strip()
    if "{" in line:
        head, brace, tail = line.partition("{")
        found = re.fullmatch(r"(.*\})\s+within\s+(\S+)", brace + tail)
        return [*head.split(), *((found.group(1), "within", found.group(2)) if found else (brace + tail,))]
    return line.split()


def parse_line(text, line=0):
    """None for a line without a step."""
    words = split(text)
    if not words:
        return None
    verb = words.pop(0)
    if verb not in VERBS:
        raise ScenarioError(f"unknown step '{verb}': {', '.join(VERBS)}")
    usage, parse, within = VERBS[verb]
    if len(words) >= 2 and words[-2] == "within":
        within = seconds(words[-1])
        words = words[:-2]
    try:
        rest = Words(words)
        args = parse(rest)
        if rest.words:
            raise ScenarioError(f"what is '{' '.join(rest.words)}'?")
    except ScenarioError as error:
        raise ScenarioError(f"{error}\n    {verb} {usage}") from error
    return Step(verb, args, within, re.sub(r"(^|\s)#.*$", "", text).strip(), line)


@dataclasses.dataclass
class Scenario:
    name: str
    steps: list
    options: dict = dataclasses.field(default_factory=dict)
    drawn: bool = False  # each step that names the primary or the secondary wants a protected pair
    spoils: bool = False  # the pair is of no use to others afterwards

    def text(self):
        words = [f"{key}={value}" for key, value in self.options.items()] + (["spoils"] if self.spoils else [])
        return "".join(f"{line}\n" for line in ([f"lab {' '.join(words)}"] if words else []) + [str(step) for step in self.steps])


def parse_text(text, name="scenario"):
    """All steps of a file; ScenarioError names the first bad line."""
    steps, options = [], {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            step = parse_line(line, number)
            if step and step.verb == "lab" and (steps or options):
                raise ScenarioError("lab is the first step, or none")
        except ScenarioError as error:
            raise ScenarioError(f"{name}:{number}: {error}") from error
        if step and step.verb == "lab":
            options = dict(step.args["options"])
        elif step:
            steps.append(step)
    if not steps:
        raise ScenarioError(f"{name}: no steps")
    spoils = "spoils" in options
    options.pop("spoils", None)
    return Scenario(name, steps, options, spoils=spoils)


def parse_file(path):
    try:
        with open(path, encoding="utf-8") as file:
            return parse_text(file.read(), str(path))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: no text: {error}") from error
