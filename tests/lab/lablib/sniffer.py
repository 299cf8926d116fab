# SPDX-License-Identifier: LGPL-2.1-or-later
"""sniffer.py - which host's uplink lets out frames of the guest, and when; seen from the switch."""
import contextlib
import ctypes
import socket
import struct
import threading
import time

from . import netns
from .topology import GUEST_MAC, HOSTS
from .util import LabError

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_IGNORE_OUTGOING = 23
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
SNAP = 96  # Ethernet, IPv6 and TCP without options


def _source_filter(mac):
    """Classic BPF: source MAC is mac."""
    high, low = struct.unpack(">IH", bytes.fromhex(mac.replace(":", "")))
    code = [(0x20, 0, 0, 6), (0x15, 0, 3, high), (0x28, 0, 0, 10), (0x15, 0, 1, low), (0x06, 0, 0, SNAP),
            (0x06, 0, 0, 0)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def tcp_numbers(frame):
    """(flow, number of its first byte, of that behind its last, ack) of a TCP segment of the guest's, None for anything
    else."""
    if frame[12:14] == b"\x08\x00" and len(frame) >= 54 and frame[23] == 6:
        tcp = 14 + (frame[14] & 15) * 4
        length = struct.unpack_from(">H", frame, 16)[0] + 14 - tcp
    elif frame[12:14] == b"\x86\xdd" and len(frame) >= 74 and frame[20] == 6:
        tcp, length = 54, struct.unpack_from(">H", frame, 18)[0]
    else:
        return None
    if len(frame) < tcp + 14:
        return None
    ports, seq, ack, header, flags = struct.unpack_from(">4sIIBB", frame, tcp)
    if not flags & 0x10 or flags & 0x04:
        return None
    return (frame[12:14] + ports, seq, (seq + length - (header >> 4) * 4) & 0xFFFFFFFF, ack)


def behind(new, old):
    """How many sequence numbers new is behind old; 0 if it is not."""
    gap = (old - new) & 0xFFFFFFFF
    return gap if gap < 1 << 31 else 0


class Witness:
    """What each host has told the client on each connection: the highest number it sent, the highest it
    acknowledged. A survivor must have got as far in the end, or it lacks what the client was told."""

    def __init__(self):
        self.flows = {}  # flow -> {host: (highest end, highest ack)}

    def note(self, host, frame):
        found = tcp_numbers(frame)
        if not found:
            return
        flow, start, end, ack = found
        told = self.flows.setdefault(flow, {})
        # A probe of a closed window has the number before the next one, and no data (RFC 9293, 3.8.6.1; RFC 1122).
        if start == end and any(behind(end, known) == 1 for known, _ in told.values()):
            end = (end + 1) & 0xFFFFFFFF
        if host in told:
            end, ack = (known if behind(new, known) else new for new, known in zip((end, ack), told[host]))
        told[host] = (end, ack)

    def lost(self, old, new):
        """Bytes that the client was sent or that were acknowledged to it by old, and that new has not got to. Only
        connections on which both spoke: others have ended."""
        both = [told for told in list(self.flows.values()) if old in told and new in told]
        return sum(behind(told[new][0], told[old][0]) + behind(told[new][1], told[old][1]) for told in both)


class Sniffer(threading.Thread):
    """One socket for both uplinks: the kernel's own order, nothing merged afterwards."""

    def __init__(self, lab, witness=None):
        super().__init__(daemon=True, name="sniffer")
        self.witness = witness
        self.frames = []  # (monotonic ns, host)
        self.stop_ns = 0
        self.stopping = threading.Event()
        with netns.inside(lab.topology.name("s")):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            code = ctypes.create_string_buffer(_source_filter(GUEST_MAC))
            program = struct.pack("HL", len(code) // 8, ctypes.addressof(code))
            self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
            self.sock.setblocking(False)
            self._forget_unfiltered()
            self.sock.settimeout(0.05)

    def _forget_unfiltered(self):
        """What came, or was lost, before the filter and the buffer were there."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sock.recv(SNAP)
        self.sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)  # reading it resets it

    def run(self):
        uplinks = {f"lan-{host}": host for host in HOSTS}
        offset = time.time_ns() - time.monotonic_ns()
        while True:
            try:
                frame, control, _, address = self.sock.recvmsg(SNAP, 64)
            except TimeoutError:
                if self.stopping.is_set():
                    return
                continue
            host = uplinks.get(address[0])
            seconds, nanos = struct.unpack("qq", control[0][2])
            when = seconds * 10**9 + nanos - offset
            if self.stopping.is_set() and when > self.stop_ns:
                return
            if host:
                self.frames.append((when, host))
                if self.witness:
                    self.witness.note(host, frame)

    def stop(self):
        """All that was received until now is in .frames afterwards. A second call does nothing."""
        if self.stopping.is_set():
            return
        self.stop_ns = time.monotonic_ns()
        self.stopping.set()
        self.join(10)
        _, dropped = struct.unpack("II", self.sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.sock.close()
        if dropped:
            raise LabError(f"the sniffer lost {dropped} frames: its verdict would be worth nothing")

    def turns(self, start_ns=0):
        """The hosts that sent, in order, neighbours merged: ["a", "b"] after one failover."""
        found = []
        for when, host in self.frames:
            if when >= start_ns and found[-1:] != [host]:
                found.append(host)
        return found

    def times_ns(self, host, start_ns, end_ns):
        """When this host's frames of that time were seen."""
        return [when for when, who in self.frames if start_ns <= when <= end_ns and who == host]

    def count(self, host=None, start_ns=0, end_ns=1 << 62):
        return sum(1 for when, who in self.frames if start_ns <= when <= end_ns and host in (None, who))
