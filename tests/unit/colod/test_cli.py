# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_cli.py - `colo` against a real control server (cli-server.c) and against hostile ones."""

import contextlib
import itertools
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import subprocess
import threading

import pytest

COLO = os.environ["COLO"]
CLI_SERVER = os.environ["CLI_SERVER"]
DEADLINE = 20  # of every wait; nothing here takes a second unless it is meant to

FULL = {
    "vm": "web1", "host": "host-a", "role": "primary", "state": "protected", "protected": True,
    "reason": "", "generation": 3,
    "peer": {"name": "host-b", "connected": True, "state": "secondary", "generation": 3,
             "software": "0.1.0"},
    "qemu": {"version": "11.1.3", "pid": 4711, "path": "/usr/bin/qemu-system-x86_64"},
    "checkpoint": {"count": 1234, "interval_ms": 50, "step": "idle",
                   "pause_us": {"last": 5100, "p50": 4900, "p99": 9300},
                   "commit_us": {"last": 9100, "p50": 8800, "p99": 12300},
                   "bytes_last": 1258291, "pages_last": 312, "by_cause": {"interval": 1200, "operator": 34},
                   "since_commit_ms": 12},
    "network": {"mode": "buffered", "egress": "held", "held_frames": 7, "held_bytes": 34500,
                "hold_us": {"p50": 30000, "p99": 55000}, "lost_frames": 0},
}

FULL_TEXT = """\
Protected
  VM           web1 on host-a, primary, generation 3, protected
  Peer         host-b, connected, secondary, generation 3, colod 0.1.0
  QEMU         11.1.3, pid 4711, /usr/bin/qemu-system-x86_64
  Checkpoints  1234, every 50.0 ms, last 12.0 ms ago, step idle
    pause      last 5.1 ms, p50 4.9 ms, p99 9.3 ms
    commit     last 9.1 ms, p50 8.8 ms, p99 12.3 ms
    last       1.2 MiB, 312 pages
    by cause   interval 1200, operator 34
  Network      buffered, output held, 7 frames held, 33.7 KiB
    held for   p50 30.0 ms, p99 55.0 ms
"""


class Server:
    def __init__(self, folder, name="web1"):
        self.run_dir = folder
        self.vm_dir = folder / name
        self.vm_dir.mkdir()
        self.socket = self.vm_dir / "control.sock"
        self.status_file = folder / (name + ".json")
        self.process = None
        self.set_status(FULL)

    def set_status(self, status):
        new = self.status_file.with_suffix(".new")
        new.write_text(json.dumps(status))
        new.rename(self.status_file)

    def start(self):
        self.process = subprocess.Popen([CLI_SERVER, self.socket, self.status_file],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert read_line(self.process) == "ready\n"

    def stop(self):
        if self.process:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait(DEADLINE)
            self.process = None


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


def environment(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("COLO_")}
    env.update(more)
    return env


def colo(*args, **env):
    done = subprocess.run([COLO, *map(str, args)], capture_output=True, text=True,
                          timeout=DEADLINE, stdin=subprocess.DEVNULL, env=environment(**env),
                          check=False)
    return done.returncode, done.stdout, done.stderr


def assert_failed(result, part, code=1):
    assert result[0] == code, result
    assert result[1] == "", result
    assert result[2].startswith("colo: ") and result[2].count("\n") == 1, result
    assert part in result[2], result


def readable(fd):
    assert select.select([fd], [], [], DEADLINE)[0], "nothing came in time"


def read_line(process):
    """The next line of a process that goes on; unbuffered, so that select() sees what is left."""
    line = b""
    while not line.endswith(b"\n"):
        readable(process.stdout)
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, "its output ended"
        line += byte
    return line.decode()


@contextlib.contextmanager
def running(*args, **kwargs):
    process = subprocess.Popen([COLO, *map(str, args)], env=environment(), **kwargs)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
        if process.stdout:
            process.stdout.close()


@contextlib.contextmanager
def fake_server(tmp_path, answer):
    """A server that answers the first request with these bytes, then closes."""
    path = tmp_path / "fake.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve():
        client, _ = listening.accept()
        with client:
            client.recv(65536)
            with contextlib.suppress(OSError):
                client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path
    finally:
        thread.join(DEADLINE)
        listening.close()


# --- status ---

def test_unit_status_text(server):
    assert colo("--socket", server.socket, "status") == (0, FULL_TEXT, "")


def test_unit_status_json(server):
    code, out, err = colo("--socket", server.socket, "status", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == FULL


def test_unit_status_not_protected(server):
    server.set_status({**FULL, "protected": False, "reason": "need secondary",
                       "network": {**FULL["network"], "lost_frames": 9}})
    code, out, _ = colo("--socket", server.socket, "status")
    assert code == 0
    assert out.startswith("Not protected: need secondary\n")
    assert "9 frames lost" in out


@pytest.mark.parametrize("status", [
    {}, {"protected": "yes"}, {"peer": 5, "qemu": [], "checkpoint": None, "network": "x"},
    {"checkpoint": {"pause_us": 5, "by_cause": [1], "bytes_last": "x", "since_commit_ms": 1 << 62}},
    {"checkpoint": {"by_cause": {"a": "b", "c": {}, "d": None}, "count": -1, "interval_ms": -5}},
    {"vm": {}, "host": None, "role": 1.5, "reason": [], "generation": "many"},
])
def test_err_status_keys_missing_or_of_another_type(server, status):
    server.set_status(status)
    code, out, err = colo("--socket", server.socket, "status")
    assert (code, err) == (0, "")
    assert out.startswith("Not protected: no reason given\n")


def test_sec_status_strings_cannot_drive_the_terminal(server):
    server.set_status({**FULL, "protected": False, "reason": "a\x1b[2Jb\nProtected\x9b1m",
                       "checkpoint": {"by_cause": {"\x1b[0m": 1}}})
    _, out, _ = colo("--socket", server.socket, "status")
    assert "\x1b" not in out and "\x9b" not in out and "\nProtected" not in out


def test_unit_status_watch_prints_on_change(server):
    with running("--socket", server.socket, "status", "--watch", stdout=subprocess.PIPE) as process:
        first = read_line(process)
        assert first.endswith("Z Protected (web1, host-a, primary, generation 3, protected)\n")
        server.set_status({**FULL, "protected": False, "reason": "need secondary"})
        assert " Not protected: need secondary (web1, " in read_line(process)
        server.stop()
        assert " Not known: " in read_line(process)


def test_life_status_watch_reconnects(server):
    with running("--socket", server.socket, "status", "--watch", "--json",
                 stdout=subprocess.PIPE) as process:
        assert json.loads(read_line(process)) == FULL
        server.stop()
        server.set_status({"vm": "again"})
        server.start()
        assert json.loads(read_line(process)) == {"vm": "again"}


def read_until(fd, part):
    got = b""
    while part not in got:
        readable(fd)
        got += os.read(fd, 65536)
    return got


def test_unit_status_watch_redraws_on_a_terminal(server):
    main, terminal = pty.openpty()
    with running("--socket", server.socket, "status", "--watch", stdout=terminal):
        assert read_until(main, b"held for").startswith(b"\x1b[H\x1b[JProtected\r\n")
        server.set_status({**FULL, "protected": False, "reason": "x"})
        assert b"\x1b[H\x1b[J" in read_until(main, b"Not protected: x")
    os.close(main)
    os.close(terminal)


# --- events ---

def test_unit_events(server):
    code, out, _ = colo("--socket", server.socket, "events")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2
    assert lines[0].startswith("1 20") and lines[0].endswith("Z info first: text of the first")
    assert lines[1].endswith(" error second: text of the second")


def test_unit_events_json_after(server):
    code, out, _ = colo("--socket", server.socket, "events", "--json", "--after", 1)
    assert code == 0
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["second"]


def test_unit_events_follow(server):
    with running("--socket", server.socket, "events", "--follow", "--json",
                 stdout=subprocess.PIPE) as process:
        seen = []
        while len(seen) < 2:
            seen.append(json.loads(read_line(process))["event"])
        assert seen == ["first", "second"]
        assert colo("--socket", server.socket, "protect")[0] == 0
        assert json.loads(read_line(process))["event"] == "protect"


def test_life_events_follow_ends_with_colod(server):
    with running("--socket", server.socket, "events", "--follow", "--after", "1",
                 stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        read_line(process)
        server.stop()
        assert process.wait(DEADLINE) == 1
        assert b"closed the connection" in process.stderr.read()
        process.stderr.close()


# --- Orders ---

def test_unit_checkpoint_tells_colod_how_long(server):
    assert colo("--socket", server.socket, "checkpoint") == (0, "checkpoint 29500 committed\n", "")
    assert colo("--socket", server.socket, "--timeout", "2", "checkpoint")[1] == \
        "checkpoint 1800 committed\n"


@pytest.mark.parametrize("command", ["protect", "test-corrupt"])
def test_unit_orders(server, command):
    code, out, err = colo("--socket", server.socket, command)
    assert (code, err) == (0, "") and out.count("\n") == 1


EXPLANATION = """\
  Network      lockstep, short epochs: the guests differ often
  Checkpoints  divergence 12, interval 3
    counted    in the last 60 s

Where the guests differed, of the last that are kept:
  tcp port 443 payload, 12 times, last 1 s ago, such as a > b tcp
    what to change: end TLS elsewhere
"""


def test_unit_explain(server):
    assert colo("--socket", server.socket, "explain") == (0, EXPLANATION, "")
    code, out, _ = colo("--socket", server.socket, "explain", "--json")
    assert code == 0 and json.loads(out)["causes"]["divergence"] == 12


def test_unit_explain_save_gives_an_absolute_folder(server):
    """colod writes the files, from another working directory."""
    code, out, err = colo("--socket", server.socket, "explain", "--save", "some/folder")
    assert (code, err) == (0, "")
    assert out == EXPLANATION + f"\n{os.getcwd()}/some/folder captures written\n"


def test_err_refused_is_one_line_on_stderr(server):
    result = colo("--socket", server.socket, "failover", "--yes")
    assert_failed(result, "failover: refused: the peer runs the VM;")
    assert "\x1b" not in result[2]
    assert_failed(colo("--socket", server.socket, "test-stall", 3), 'refused: stall { "step": 3 }')
    assert_failed(colo("--socket", server.socket, "test-stall", "alone"), 'refused: stall { "state": "alone" }')


def test_err_failover_without_a_terminal_needs_yes(server):
    assert_failed(colo("--socket", server.socket, "failover"), "add --yes")


@pytest.mark.parametrize("typed,part", [(b"yes\n", b"refused: the peer"), (b"y\n", b"not confirmed"),
                                        (b"\x04", b"not confirmed")])
def test_unit_failover_asks_at_the_terminal(server, typed, part):
    main, terminal = pty.openpty()
    with running("--socket", server.socket, "failover", stdin=terminal, stdout=terminal,
                 stderr=terminal) as process:
        read_until(main, b"Type yes: ")
        os.write(main, typed)
        read_until(main, part)
        assert process.wait(DEADLINE) == 1
    os.close(main)
    os.close(terminal)


def test_err_no_answer_in_time(server):
    assert_failed(colo("--socket", server.socket, "--timeout", "0.05", "unprotect"),
                  "did not answer in time")


def test_err_colod_dies_before_the_answer(server):
    assert_failed(colo("--socket", server.socket, "stop-vm"), "closed the connection")
    server.stop()
    assert_failed(colo("--socket", server.socket, "status"), "is colod running for this VM?")


# --- Which socket ---

def test_unit_the_only_vm_is_the_default(server, tmp_path):
    (tmp_path / "empty").mkdir()
    assert colo("status", COLO_RUN_DIR=str(tmp_path))[0] == 0
    other = Server(tmp_path, "db1")
    other.start()
    result = colo("status", COLO_RUN_DIR=str(tmp_path))
    assert_failed(result, "choose one with -n:")
    assert " db1" in result[2] and " web1" in result[2]
    assert colo("-n", "web1", "status", COLO_RUN_DIR=str(tmp_path))[0] == 0
    assert colo("status", "-n", "db1", COLO_RUN_DIR=str(tmp_path))[0] == 0
    other.stop()


def test_unit_environment_names_the_socket(server, tmp_path):
    assert colo("status", COLO_SOCKET=str(server.socket))[0] == 0
    # -n is more particular than the environment.
    assert_failed(colo("-n", "none", "status", COLO_SOCKET=str(server.socket),
                       COLO_RUN_DIR=str(tmp_path)), "is colod running")


def test_err_nobody_there(tmp_path):
    assert_failed(colo("status", COLO_RUN_DIR=str(tmp_path)), "no VM has a control socket")
    assert_failed(colo("status", COLO_RUN_DIR=str(tmp_path / "missing")), "no VM has")
    assert_failed(colo("--socket", tmp_path / "x", "status"), "is colod running for this VM?")
    assert_failed(colo("--socket", "/" + "x" * 200, "status"), "cannot connect")


@pytest.mark.parametrize("args", [
    [], ["nonsense"], ["status", "more"], ["status", "--follow"], ["checkpoint", "--json"],
    ["test-stall"], ["test-stall", "8"], ["test-stall", "-1"], ["--timeout", "x", "status"],
    ["--timeout", "-1", "status"], ["--timeout", "nan", "status"], ["-n", "a/b", "status"],
    ["-n", "", "status"], ["events", "--after", "-1"], ["--nonsense"], ["-n"],
    ["selftest", "--accel", "xen"],
])
def test_err_usage(args):
    assert_failed(colo(*args), "", code=2)


@pytest.mark.parametrize("args", [["status"], ["status", "--json"], ["status", "--watch"], ["events"], ["explain"],
                                  ["checkpoint"], ["--help"], ["--version"]], ids=" ".join)
def test_err_output_that_cannot_be_written(server, args):
    with open("/dev/full", "w", encoding="utf-8") as full:
        result = subprocess.run([COLO, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE,
                                check=False, env=environment(COLO_SOCKET=server.socket))
    assert result.returncode == 1 and "standard output" in result.stderr


def test_unit_help_and_version():
    assert colo("--help")[1].startswith("usage: colo ")
    assert colo("--version")[1].startswith("colo ")


def test_unit_man_page_has_every_command_and_option():
    with open(os.environ["MAN_PAGE"], encoding="utf-8") as file:
        page = file.read().replace("\\-", "-")
    usage = colo("--help")[1]
    commands = re.findall(r"^  ([a-z-]+)", usage, re.M)
    options = re.findall(r"--[a-z]+", usage)
    assert len(commands) >= 10 and len(options) >= 8
    for word in commands + options:
        assert re.search(r"^\.(B|BR|BI) (.* )?\"? ?" + word + r"\b", page, re.M), word
    section = re.search(r"^\.SH COMMANDS$(.*?)^\.SH ", page, re.M | re.S).group(1)
    assert sorted(re.findall(r"^\.TP\n\.B[RI]? ([a-z-]+)", section, re.M)) == sorted(commands)


def test_unit_man_page_has_every_event():
    with open(os.environ["MAN_PAGE"], encoding="utf-8") as file:
        page = file.read().replace("\\-", "-")
    section = re.search(r"^\.SH EVENTS$(.*?)^\.SH ", page, re.M | re.S).group(1)
    told = {name for line in re.findall(r"^\.TP\n\.BR? (.*)$", section, re.M) for name in re.findall(r"[a-z-]+", line)}
    known = set()
    for path in (pathlib.Path(os.environ["MAN_PAGE"]).parents[2] / "colod").glob("*.c"):
        known |= set(re.findall(r'event_log_add\([^;"]*"([a-z-]+)"', path.read_text(encoding="utf-8")))
    assert len(known) > 20 and told == known


# --- Servers that are none ---

@pytest.mark.parametrize("answer,part", [
    (b"garbage\n", "no JSON object"),
    (b"[]\n", "no JSON object"),
    (b"\n", "no JSON object"),
    (b"[" * 1000 + b"\n", "no JSON object"),
    (b'{"id":1,"return":"\xff"}\n', "no JSON object"),
    (b"", "closed the connection"),
    (b'{"id":1,"return":{}', "closed the connection"),
    (b'{"id":2,"return":{}}\n', "closed the connection"),
    (b'{"id":1}\n', "gave no reason"),
    (b'{"id":1,"return":null}\n', "gave no reason"),
    (b'{"id":1,"error":5}\n', "gave no reason"),
    (b'{"id":1,"error":{"class":[],"text":{}}}\n', "status: "),
    (b'{"id":null,"error":{"class":"refused","text":"32 clients"}}\n', "refused: 32 clients"),
    (b"x" * (17 * 1024 * 1024), "over 16 MiB"),
], ids=itertools.count())
def test_sec_answers_that_are_none(tmp_path, answer, part):
    with fake_server(tmp_path, answer) as path:
        assert_failed(colo("--socket", path, "status"), part)


@pytest.mark.parametrize("value", [b"5", b'"x"', b"[]"])
def test_sec_results_of_another_type(tmp_path, value):
    for command in ("status", "events", "checkpoint"):
        (tmp_path / command).mkdir()
        with fake_server(tmp_path / command, b'{"id":1,"return":' + value + b"}\n") as path:
            code, _, err = colo("--socket", path, command)
            assert (code, err) == (0, "")
