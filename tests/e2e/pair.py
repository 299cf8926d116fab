# SPDX-License-Identifier: LGPL-2.1-or-later
"""pair.py - what the end-to-end tests say about a protected pair, in their words."""
import contextlib
import re
import time

from lablib.clients import Download, Echo, Pinger, longest_gap_ms
from lablib.control import ControlGone
from lablib.sniffer import Sniffer
from lablib.util import LabError, wait_until

# Bounds in milliseconds, from the configuration's defaults. A stream's stall has the guest's retransmission
# timer in it, which doubles from 200 ms on while nothing comes through.
HEARTBEAT_LIMIT_MS = 500
MESSAGE_TIMEOUT_MS = 2000
TCP_MS = 1500
STALL_TOLD = HEARTBEAT_LIMIT_MS + TCP_MS  # the failure shows at once (reset, exit, end of file)
STALL_SILENT = 2 * HEARTBEAT_LIMIT_MS + TCP_MS  # it takes missed heartbeats
STALL_STUCK = MESSAGE_TIMEOUT_MS * 2 + TCP_MS  # it takes a missed deadline
REPROTECT_S = 40
PRIMARY_STATES = ("alone", "preparing", "migrating", "protected")


class Mark:
    """The moment before a fault."""

    def __init__(self, pair, primary):
        self.generation = pair.status(primary)["generation"]
        self.seq = {}
        for name, host in pair.lab.hosts.items():
            events = host.events() if host.colod() else []
            self.seq[name] = events[-1]["seq"] if events else 0
        self.ns = time.monotonic_ns()


class Load:
    """What the client does all the while: a TCP echo, a download, UDP probes; or other streams and UDP probes."""

    def __init__(self, lab, rate=1 << 20, streams=None, pinger=None):
        self.streams = streams or [Echo(lab), Download(lab, rate=rate)]
        self.pinger = pinger or Pinger(lab)
        for client in (*self.streams, self.pinger):
            client.start()
        self.wait_flow()

    def wait_flow(self, seconds=20):
        for stream in self.streams:
            stream.wait_more(32, seconds)
        self.pinger.wait_answers(5, seconds)

    def stall_ms(self, mark):
        return max(longest_gap_ms(stream.times_ns, mark.ns) for stream in self.streams)

    def stop(self):
        for client in (*self.streams, self.pinger):
            client.stop()

    def abandon(self):
        for client in (*self.streams, self.pinger):
            client.stopping.set()


class Pair:
    """A protected pair at the start of a test; primary and secondary are what the hosts were then."""

    def __init__(self, lab):
        self.lab = lab
        self.primary = lab.primary()
        self.secondary = "b" if self.primary == "a" else "a"
        self.sniffer = Sniffer(lab)
        self.sniffer.start()
        self.loads = []
        self.spoilt = False  # the next test needs a lab of its own

    def spoil(self):
        """The guest boots under protection: under emulation its secondary is then not to be trusted (lab.py)."""
        self.spoilt = True

    def close(self):
        for load in self.loads:
            load.abandon()
        with contextlib.suppress(LabError):
            self.sniffer.stop()

    @staticmethod
    def mark_ns():
        return time.monotonic_ns()

    # Looking

    def status(self, name):
        """Whenever anybody looks, a host is protected or says in one reason why not."""
        status = self.lab.host(name).status()
        if status:
            assert bool(status["reason"]) != status["protected"], \
                f"{name} is {'' if status['protected'] else 'not '}protected and says '{status['reason']}'"
        return status

    def wait(self, name, condition, seconds, what):
        """condition(status); a host without colod never fulfils it."""
        def check():
            status = self.status(name)
            return status if status and condition(status) else None
        return wait_until(check, seconds, lambda: f"{name}: {what}; {self.lab.describe()}")

    def wait_state(self, name, states, seconds):
        wanted = (states,) if isinstance(states, str) else states
        return self.wait(name, lambda s: s["state"] in wanted, seconds, f"state {' or '.join(wanted)}")

    def wait_epochs(self, count, seconds=10):
        """So many more checkpoints."""
        goal = self.status(self.primary)["checkpoint"]["count"] + count
        self.wait(self.primary, lambda s: s["checkpoint"]["count"] >= goal, seconds, f"{count} more checkpoints")

    def has_qemu(self, name):
        return bool(self.lab.host(name).qemus())

    # The usual course of a test

    def load(self, **options):
        load = Load(self.lab, **options)
        self.loads.append(load)
        return load

    def mark(self, primary=None):
        return Mark(self, primary or self.primary)

    def takeover(self, name, mark, load, stall_ms, seconds=15):
        """The host goes on in the next generation; the streams flow again and stalled no longer than this."""
        status = self.wait(name, lambda s: s["state"] in PRIMARY_STATES and s["generation"] > mark.generation, seconds,
                           "goes on in the next generation")
        assert status["generation"] == mark.generation + 1, f"generation {status['generation']} after one failure"
        self.assert_told(name, mark, r"claim: generation \d+|claim-granted|peer's word")
        self.assert_flow(mark, load, stall_ms)

    def assert_flow(self, mark, load, stall_ms):
        load.wait_flow()
        stall = load.stall_ms(mark)
        print(f"longest stall of a stream {stall:.0f} ms, UDP silence {load.pinger.silence_ms(mark.ns):.0f} ms, "
              f"UDP lost for {load.pinger.lost_ms(mark.ns):.0f} ms")
        assert stall <= stall_ms, f"a stream stalled for {stall:.0f} ms, allowed are {stall_ms}"

    def finish(self, mark, load, turns):
        """Streams exact to the last byte; only these hosts sent, in this order, each once; protected again."""
        primary = self.lab.wait_protected(None, REPROTECT_S)
        assert primary == turns[-1], f"{primary} is primary of the new pair, it should be {turns[-1]}"
        if load:
            load.wait_flow()
            load.stop()
        self.assert_turns(turns)
        generation = self.status(primary)["generation"]
        assert generation > mark.generation or len(turns) == 1, "a takeover without a new generation"

    def assert_turns(self, turns):
        self.sniffer.stop()
        seen = self.sniffer.turns()
        assert seen == turns, f"frames of the guest came from {seen}, expected {turns}"

    def events(self, name, mark):
        try:
            return self.lab.host(name).events(after=mark.seq[name] if mark else 0)
        except ControlGone:
            return []

    def assert_told(self, name, mark, pattern):
        """The host's events since then (all that it still knows if mark is None) say why."""
        texts = [f"{event['event']}: {event['text']}" for event in self.events(name, mark)]
        assert any(re.search(pattern, text, re.IGNORECASE) for text in texts), \
            f"no event of {name} matches '{pattern}':\n" + "\n".join(texts)

    def assert_reason(self, name):
        """Not protected, with exactly one reason."""
        status = self.status(name)
        assert not status["protected"], f"{name} says it is protected"
        assert status["reason"], f"{name} is not protected and says no reason"
        return status["reason"]
