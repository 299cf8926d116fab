# SPDX-License-Identifier: LGPL-2.1-or-later
"""plain.py - two guests that nobody protects: what is there without colod.

The client's is on host a, on its bridge by an ordinary tap. The other one, on host b, has a LAN of its own with that host
as its client: under the same load it keeps the cores as busy as a secondary would.
"""
from . import topology
from .qemu_chain import QemuChain
from .util import LabError, run, wait_until


class PlainGuests(QemuChain):
    def up(self):
        self._remove_rooms()
        self.topology.create()
        self.topology.unplug("lan", "b")
        run("ip", "-n", self.topology.name("b"), "addr", "add", f"{topology.CLIENT_ADDRESS}/24", "dev", "br-lan")
        for host in topology.HOSTS:
            room = self.topology.name(host)
            run("ip", "-n", room, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
            run("ip", "-n", room, "link", "set", "tap0", "up")
            self._plug(host)
            self._qemu(host)
        wait_until(self.guest_answers, 90, lambda: f"the guest answers; {self.log('a')}")
        wait_until(self._other_answers, 90, lambda: f"the other guest answers; {self.log('b')}")

    def _other_answers(self):
        try:
            run("nsenter", f"--net=/run/netns/{self.topology.name('b')}", "--", "curl", "-sf", "-m", "1", "-o",
                "/dev/null", f"http://{topology.GUEST_ADDRESS}/index.html")
            return True
        except LabError:
            return False
