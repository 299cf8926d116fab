# SPDX-License-Identifier: LGPL-2.1-or-later
"""util.py - errors, waiting for a condition, and processes by pid and start time."""
import errno
import os
import signal
import struct
import subprocess
import sys
import time

POLL_S = 0.01


class LabError(Exception):
    """Something is not as it must be; the text says what and, where known, what to do."""


def say(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)


def wait_until(condition, seconds, what, poll=POLL_S):
    """Calls condition() until it returns something true and returns that; LabError after the deadline.

    what: text, or a function that makes it (called only on failure).
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise LabError(f"not within {seconds:g} s: {text}")
        time.sleep(poll)


def run(*argv, data=None, timeout=60):
    """Runs a program to its end and returns its stdout; LabError with its stderr if it fails."""
    try:
        done = subprocess.run(argv, input=data, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed: run deploy/install-deps --test") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)} did not end within {timeout} s") from error
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise LabError(f"{' '.join(argv)}: {reason}")
    return done.stdout


def sum16(data):
    """The one's complement sum of the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def start_ticks(pid):
    """Field 22 of /proc/PID/stat, which tells a reused pid; None if the process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    n_threads = int(fields[17])  # what the first one leaves to the others still holds files and locks
    return None if fields[0] in "ZX" and n_threads <= 1 else int(fields[19])


class Process:
    """A process that may be anybody's child: pid and start time."""

    def __init__(self, pid, ticks=None):
        self.pid = pid
        self.ticks = start_ticks(pid) if ticks is None else ticks

    def is_alive(self):
        if self.ticks is None:
            return False
        if start_ticks(self.pid) == self.ticks:
            return True
        try:  # takes the zombie away if it is our child
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass
        return False

    def stands_still(self):
        """By SIGSTOP."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as stat:
                return stat.read().rpartition(")")[2].split()[0] == "T"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def kill(self, number):
        if self.is_alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def wait_gone(self, seconds):
        wait_until(lambda: not self.is_alive(), seconds, f"process {self.pid} does not end")

    def destroy(self):
        # A stopped process takes SIGKILL, too.
        self.kill(signal.SIGKILL)
        self.wait_gone(10)


def remove(path):
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
