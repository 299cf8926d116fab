# SPDX-License-Identifier: LGPL-2.1-or-later
"""base.py - an oracle: a client that goes on whatever happens to its connection, and keeps account of it."""
import random
import socket
import threading
import time

from ..topology import GUEST_ADDRESS
from ..util import LabError
from .judges import Account, BrokenStream, Stalls

CONNECT_S = 10
PATIENCE_S = 120  # after which a connection on which nothing comes is given up
AGAIN_S = 0.2
ASK_S = 30  # to get an answer from a survivor


class Gone(Exception):
    """The connection ended, and not by us."""


class StandsStill(Exception):
    """Nothing came for PATIENCE_S."""


class Oracle(threading.Thread):
    """run() makes a connection and talk()s on it, again and again, until stop().

    Subclasses have NAME, PERIOD_S (between two operations) and PORT, and talk(sock), which returns when .stopping is
    set. Only the oracle's own thread writes to .account, except in ask(), which the user's thread calls.
    """

    NAME = "?"
    PORT = 0
    PERIOD_S = 0.02
    KIND = socket.SOCK_STREAM

    def __init__(self, lab, seed=0):
        super().__init__(daemon=True, name=f"oracle {self.NAME}")
        self.lab = lab
        self.random = random.Random(f"{self.NAME} {seed}")
        self.account = Account(self.NAME)
        self.stalls = Stalls(self.PERIOD_S, time.monotonic)
        self.stopping = threading.Event()
        self.told = 0  # of the faults
        self.run_id = time.monotonic_ns() // 1000

    # For subclasses

    def prepare(self):
        """Before the first connection; LabError says what the lab lacks."""

    def talk(self, sock):
        raise NotImplementedError

    def ask(self):
        """Asks the guest for all that was acknowledged, and judges. Raises OSError or LabError if it cannot be asked."""

    def extra(self):
        """More for the report."""
        return {}

    def moved(self):
        self.stalls.moved()

    def connect(self, port=None):
        sock = self.lab.client_socket(self.KIND)
        try:
            sock.settimeout(CONNECT_S)
            sock.connect((GUEST_ADDRESS, port or self.PORT))
            if self.KIND == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(PATIENCE_S)
        except OSError:
            sock.close()
            raise
        return sock

    # The course of things

    def run(self):
        self.stalls.restart()
        while not self.stopping.is_set():
            try:
                sock = self.connect()
            except OSError as error:
                if isinstance(error, ConnectionError):
                    self.account.fault("resets", f"no connection: {error}")
                self.stopping.wait(AGAIN_S)
                continue
            with sock:
                self._talk_on(sock)
            self.stopping.wait(AGAIN_S)

    def _talk_on(self, sock):
        try:
            self.talk(sock)
        except (ConnectionError, Gone) as error:
            self.account.fault("resets", f"{type(error).__name__}: {error}")
        except (TimeoutError, StandsStill):
            self.account.fault("resets", f"nothing came for {PATIENCE_S} s: the connection is given up")
        except BrokenStream:
            pass  # it is in the account
        except (OSError, LabError) as error:
            self.account.fault("resets", f"{type(error).__name__}: {error}")

    def new_faults(self):
        """Each is told once."""
        faults, self.told = self.account.faults[self.told:], len(self.account.faults)
        return faults

    def ask_now(self):
        """ask() with patience; a text if nobody answers."""
        deadline = time.monotonic() + ASK_S
        while True:
            try:
                self.ask()
                return []
            except (OSError, LabError) as error:
                if time.monotonic() > deadline:
                    return [f"{self.NAME}: the guest cannot be asked: {type(error).__name__}: {error}"]
                time.sleep(AGAIN_S)

    def report(self):
        stalls = self.stalls.report(self.is_alive())
        return {**self.account.counts(), "stalls_ms": [stall["ms"] for stall in stalls], "stalls": stalls,
                **self.extra()}


class Lines:
    """A line out, a line in."""

    def __init__(self, sock):
        self.sock = sock
        self.file = sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.sock.close()

    def read(self):
        line = self.file.readline(4096)
        if not line.endswith(b"\n"):
            raise Gone("the guest closed the connection")
        return line.rstrip(b"\r\n").decode(errors="replace")

    def call(self, text):
        self.sock.sendall(text.encode() + b"\n")
        return self.read()
