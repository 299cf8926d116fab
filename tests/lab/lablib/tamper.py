# SPDX-License-Identifier: LGPL-2.1-or-later
"""tamper.py - a relay in the middle of the peer link that turns bits in what TCP carries.

The peer link's two ports leave the switch's bridge and this thread copies frames between them, with their
virtio-net headers: what the sender's offload left to the NIC (segmentation, checksum) is left so, so a turned
bit is covered by a right checksum and reaches TLS, as corruption in a NIC or a host's memory would.
"""
import contextlib
import select
import socket
import struct
import threading
import time

from . import netns
from .settings import PEER_PORT
from .topology import HOSTS
from .util import LabError, sum16, wait_until

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
VNET_BYTES = 10
ETHERNET_BYTES = 14
NEEDS_CSUM = 1
TCP = 6
FRAME_MAX = 1 << 17
HEARTBEATS_BYTES = 200  # of four, each a TLS record of some 50 bytes


class Segment:
    """The TCP segment of an IPv4 frame, None where there is none (Segment.of)."""

    def __init__(self, frame, ip, tcp, end):
        self.frame, self.ip, self.tcp, self.end = frame, ip, tcp, end
        self.payload = tcp + (frame[tcp + 12] >> 4) * 4
        self.ports = struct.unpack_from(">HH", frame, tcp)
        self.length = end - self.payload

    @classmethod
    def of(cls, frame):
        ip = VNET_BYTES + ETHERNET_BYTES
        if len(frame) < ip + 40 or frame[ip - 2:ip] != b"\x08\x00" or frame[ip + 9] != TCP:
            return None
        tcp = ip + (frame[ip] & 15) * 4
        end = ip + struct.unpack_from(">H", frame, ip + 2)[0]
        # Segments beyond 64 KiB have length 0 in their IP header.
        return cls(frame, ip, tcp, end if end > ip else len(frame))

    @property
    def flow(self):
        """The connecting side's port names the connection."""
        return self.ports[0] if self.ports[1] == PEER_PORT else self.ports[1]

    def fix_checksum(self):
        if self.frame[0] & NEEDS_CSUM:
            return
        self.frame[self.tcp + 16:self.tcp + 18] = b"\0\0"
        pseudo = self.frame[self.ip + 12:self.ip + 20] + struct.pack(">HH", TCP, self.end - self.tcp)
        total = sum16(bytes(pseudo)) + sum16(bytes(self.frame[self.tcp:self.end]))
        total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into(">H", self.frame, self.tcp + 16, ~total & 0xFFFF)


def open_port(interface):
    """A port of the switch, each frame with its virtio-net header."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    sock.bind((interface, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def least_of(before, now):
    """The flow with heartbeats and little else: of those on which both hosts have spoken since, for as long as some heartbeats
    take, the one with the least. None: there are not two of them yet.
    """
    none = dict.fromkeys(HOSTS, 0)
    more = {flow: [seen[host] - before.get(flow, none)[host] for host in HOSTS] for flow, seen in now.items()}
    spoken = {flow: sum(counts) for flow, counts in more.items() if min(counts) >= HEARTBEATS_BYTES}
    return min(spoken, key=spoken.get) if len(spoken) > 1 else None


class Tamper(threading.Thread):
    """start() puts it into the link, stop() takes it out."""

    def __init__(self, lab):
        super().__init__(daemon=True, name="tamper")
        self.lab = lab
        self.flows = {}  # port -> {host: payload bytes seen from it}
        self.swallowed = set()  # flows of which nothing gets through
        self.order = None  # what to do to the next segment: (flow, from host, action)
        self.done_ns = 0
        self.failure = None
        self.stopping = threading.Event()
        with netns.inside(lab.topology.name("s")):
            self.socks = {host: open_port(f"peer-{host}") for host in HOSTS}

    def start(self):
        for host in HOSTS:
            self.lab.topology.unplug("peer", host)
        super().start()

    def stop(self):
        self.stopping.set()
        self.join(10)
        for sock in self.socks.values():
            sock.close()
        for host in HOSTS:
            self.lab.topology.plug("peer", host)
        if self.failure:
            raise LabError(self.failure)

    def run(self):
        try:
            while not self.stopping.is_set():
                readable, _, _ = select.select(list(self.socks.values()), [], [], 0.05)
                for host, sock in self.socks.items():
                    if sock in readable:
                        self._relay(host, sock, self.socks["b" if host == "a" else "a"])
        except OSError as error:
            self.failure = f"tamper: {error}"

    def _relay(self, host, source, target):
        for _ in range(64):
            try:
                frame = bytearray(source.recv(FRAME_MAX))
            except BlockingIOError:
                return
            segment = Segment.of(frame)
            if segment and segment.flow in self.swallowed:
                continue
            if segment and PEER_PORT in segment.ports:  # the disks have ports of their own
                self.flows.setdefault(segment.flow, dict.fromkeys(HOSTS, 0))[host] += segment.length
                self._apply(host, segment)
            with contextlib.suppress(BlockingIOError):
                target.send(frame)

    def _apply(self, host, segment):
        if not self.order or segment.length == 0:
            return
        flow, sender, action = self.order
        if flow == segment.flow and sender == host:
            action(segment)
            self.done_ns = time.monotonic_ns()
            self.order = None

    @staticmethod
    def _turn_bit(segment):
        segment.frame[segment.payload + segment.length // 2] ^= 0x10
        segment.fix_checksum()

    @staticmethod
    def _reset(segment):
        """The connection ends in the middle of what it was carrying."""
        segment.frame[segment.tcp + 13] |= 0x04
        segment.fix_checksum()

    def pick_flow(self, which, enough=1_000_000):
        """checkpoint: the connection that carries most; control: the next one, which carries heartbeats. frames: the one
        that carries most from the secondary, while the guests of a lock-stepping pair send much. (Not the one that carries
        most: a checkpoint is as much as a second of that.)
        """
        primary = self.lab.primary()

        if which == "least":
            return self._pick_least()

        def amount(flow):
            seen = self.flows[flow]
            return sum(count for host, count in seen.items() if which != "frames" or host != primary)

        def found():
            known = sorted(list(self.flows), key=amount, reverse=True)
            return known if len(known) >= 2 and amount(known[0]) > enough else None
        flows = wait_until(found, 10, lambda: f"traffic on the peer link (seen: {self.flows})")
        return flows[1 if which == "control" else 0]

    def _pick_least(self):
        before = self._seen()
        return wait_until(lambda: least_of(before, self._seen()), 10,
                          lambda: f"heartbeats on the peer link (seen: {self.flows})")

    def _seen(self):
        return {flow: dict(seen) for flow, seen in list(self.flows.items())}

    def strike(self, which, sender, how, enough=1_000_000):
        """Does it to the next segment with data. how: flip or reset. Returns when it is done, in monotonic ns."""
        flow = self.pick_flow(which, enough)
        self.done_ns = 0
        self.order = (flow, sender, self._turn_bit if how == "flip" else self._reset)
        wait_until(lambda: self.done_ns, 5, f"no segment of {which} from {sender} came by")
        return self.done_ns
