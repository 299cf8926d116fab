# SPDX-License-Identifier: LGPL-2.1-or-later
"""topology.py - the lab's network.

    host a                     switch                     host b
    br-lan - uplink ====== lan-a [br lan] lan-b ====== uplink - br-lan        service LAN 10.77.0.0/24
                               lan-c
                                 |
                               lan0 (client, 10.77.0.1, fd77::1)
    peer0 ================ peer-a [br peer] peer-b ================ peer0     peer link 10.78.0.0/24

Every link runs through the switch, so that it can be cut there without either host seeing its carrier go: a port
that is in no bridge swallows what comes, and nobody answers with a reset. That needs no kernel module.
"""
import os

from . import netns
from .util import run

HOSTS = ("a", "b")
ROOMS = ("s", "a", "b", "c")
PEER_ADDRESS = {"a": "10.78.0.1", "b": "10.78.0.2"}
CLIENT_ADDRESS = "10.77.0.1"
CLIENT_ADDRESS6 = "fd77::1"
GUEST_ADDRESS = "10.77.0.2"
GUEST_ADDRESS6 = "fd77::2"
GUEST_MAC = "52:54:00:12:34:56"

SWITCH = """
link add lan type bridge forward_delay 0 mcast_snooping 0
link add peer type bridge forward_delay 0 mcast_snooping 0
link set lan up
link set peer up
"""

HOST = """
link set lo up
link add br-lan type bridge forward_delay 0 mcast_snooping 0
link set br-lan up
link add uplink type veth peer name lan-{host} netns {switch}
link set uplink master br-lan up
link add peer0 type veth peer name peer-{host} netns {switch}
addr add {address}/24 dev peer0
link set peer0 up
"""

CLIENT = """
link set lo up
link add lan0 type veth peer name lan-c netns {switch}
addr add 10.77.0.1/24 dev lan0
link set lan0 up
"""


class Topology:
    def __init__(self, prefix):
        self.prefix = prefix

    def name(self, room):
        return f"{self.prefix}-{room}"

    def is_there(self):
        return [self.name(room) for room in ROOMS if netns.exists(self.name(room))]

    def _batch(self, room, text):
        run("ip", "-n", self.name(room), "-batch", "-", data=text)

    def _disable_ipv6(self, room, *interfaces):
        """No router solicitations, no duplicate address detection, no link-local addresses."""
        text = "".join(f"net.ipv6.conf.{name}.disable_ipv6=1\n" for name in interfaces)
        run(*netns.enter_argv(self.name(room)), "sysctl", "-q", "-p", "-", data=text)

    def _disable_bridge_filter(self, room):
        """Bridged frames take no detour through the packet filter, where the module that does that is loaded."""
        if os.path.exists("/proc/sys/net/bridge"):
            run(*netns.enter_argv(self.name(room)), "sysctl", "-q", "-e", "net.bridge.bridge-nf-call-iptables=0",
                "net.bridge.bridge-nf-call-ip6tables=0", "net.bridge.bridge-nf-call-arptables=0")

    def create(self):
        for room in ROOMS:
            netns.add(self.name(room))
            self._disable_ipv6(room, "all", "default")
            self._disable_bridge_filter(room)
        self._batch("s", SWITCH)
        switch = self.name("s")
        for host in HOSTS:
            self._batch(host, HOST.format(host=host, switch=switch, address=PEER_ADDRESS[host]))
        self._batch("c", CLIENT.format(switch=switch))
        run(*netns.enter_argv(self.name("c")), "sysctl", "-q", "net.ipv6.conf.lan0.disable_ipv6=0")
        self._batch("c", "addr add fd77::1/64 dev lan0 nodad\n")
        ports = [("lan", "lan-c")]
        for host in HOSTS:
            ports += [("lan", f"lan-{host}"), ("peer", f"peer-{host}")]
        self._batch("s", "".join(f"link set {port} master {bridge} up\n" for bridge, port in ports))

    def plug(self, link, host):
        """link: lan or peer."""
        self._batch("s", f"link set {link}-{host} master {link}\n")

    def unplug(self, link, host):
        self._batch("s", f"link set {link}-{host} nomaster\n")

    def open_link(self, link):
        """Takes the link apart in the switch and returns the names of its two ends there, for a relay in between."""
        if link == "peer":
            for host in HOSTS:
                self.unplug("peer", host)
            return [f"peer-{host}" for host in HOSTS]
        self._batch("s", "link add relay0 type veth peer name relay1\nlink set lan-c nomaster\n"
                    "link set relay1 master lan up\nlink set relay0 up\n")
        return ["lan-c", "relay0"]

    def close_link(self, link):
        if link == "peer":
            for host in HOSTS:
                self.plug("peer", host)
        else:
            self._batch("s", "link del relay0\nlink set lan-c master lan\n")

    def processes(self, room):
        return netns.processes(self.name(room))

    def delete(self):
        for room in ROOMS:
            netns.delete(self.name(room))
