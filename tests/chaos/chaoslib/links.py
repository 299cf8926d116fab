# SPDX-License-Identifier: LGPL-2.1-or-later
"""links.py - what is done to the links: cut, delayed, lossy, corrupted; and that all of it ends."""
from lablib.impair import Impair
from lablib.tamper import Tamper
from lablib.util import LabError

# What tests/lab/lablib/tamper.py looks for.
FLOWS = {"control": "least", "checkpoint": "checkpoint", "frames": "frames"}


class Links:
    """One relay a link at a time: another one takes the first one's place."""

    def __init__(self, lab):
        self.lab = lab
        self.relays = {}  # peer or client -> Impair or Tamper
        self.rules = {}  # of Impair, by link: {"delay": text, "loss": text}
        self.lan_cut = set()

    def is_clean(self):
        return not self.relays and not self.lan_cut

    def check_free(self, what):
        """Whoever plugs or unplugs a host must not find its port in a relay."""
        if "peer" in self.relays:
            raise LabError(f"heal before {what}: a relay is in the peer link")

    def _end_relay(self, link):
        relay = self.relays.pop(link, None)
        if relay:
            relay.stop()

    def cut(self, channel, sender):
        if channel == "lan":
            self.lan_cut.add(sender)
            self.lab.topology.unplug("lan", sender)
        elif channel == "peer" and not sender:
            self._end_relay("peer")
            self.lab.cut()
        elif channel in ("peer", "client"):
            self._impair(channel, sender, loss="loss 100%")
        else:
            tamper = self._tamper()
            tamper.swallowed.add(tamper.pick_flow(*self._flow(channel)))

    def _flow(self, channel):
        """What to look for, and how much of it is enough. Without lock-stepping there are no frames."""
        if channel == "frames" and self.lab.settings.mode == "buffered":
            channel = "checkpoint"
        return FLOWS[channel], 30_000 if channel == "frames" else 300_000

    def delay(self, channel, ms, jitter, sender):
        self._impair(channel, sender, delay=f"delay {ms}ms {jitter}ms")

    def lose(self, channel, percent, sender):
        self._impair(channel, sender, loss=f"loss {percent}%")

    def _impair(self, channel, sender, **rule):
        rules = self.rules.setdefault(channel, {})
        rules.update(rule)
        self._end_relay(channel)
        relay = Impair(self.lab, channel, " ".join(rules.values()), sender=sender if channel == "peer" else None)
        relay.start()
        self.relays[channel] = relay

    def _tamper(self):
        relay = self.relays.get("peer")
        if not isinstance(relay, Tamper):
            self._end_relay("peer")
            relay = self.relays["peer"] = Tamper(self.lab)
            relay.start()
        return relay

    def strike(self, channel, sender, how):
        """One segment; the relay stays until heal()."""
        which, enough = self._flow(channel)
        self._tamper().strike(which, sender, how, enough)

    def heal(self):
        for link in list(self.relays):
            self._end_relay(link)
        self.rules.clear()
        for host in self.lan_cut:
            self.lab.topology.plug("lan", host)
        self.lan_cut.clear()
        self.lab.heal()
