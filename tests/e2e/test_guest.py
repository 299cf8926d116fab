# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest reboots and powers off under protection."""
import time

import pytest
from lablib.util import LabError, wait_until

pytestmark = pytest.mark.long  # also power.scenario


def test_reboot(pair):
    pair.spoil()
    mark = pair.mark()
    qemu = pair.lab.host(pair.primary).qemu()
    start_ns = time.monotonic_ns()
    pair.lab.guest_command("reboot")

    def rebooted():
        """The guest has been up for less time than has passed."""
        try:
            up_ns = int(pair.lab.guest_command("now", 1).split()[1])
        except (OSError, LabError, IndexError):
            return False
        return up_ns < time.monotonic_ns() - start_ns
    wait_until(rebooted, 60, lambda: f"the guest answers after its reboot; {pair.lab.describe()}")
    assert qemu.is_alive(), "the reboot ended QEMU"
    assert pair.status(pair.primary)["generation"] == mark.generation, "the reboot was taken for a failure"
    pair.finish(mark, None, [pair.primary])


def test_poweroff(pair):
    """The VM is off on both hosts and stays off, until it is started again by an operator."""
    pair.spoil()
    mark = pair.mark()
    pair.lab.guest_command("poweroff")
    for name in ("a", "b"):
        pair.wait(name, lambda s: s["state"] in ("off", "idle"), 15, "the VM is off")
        assert pair.assert_reason(name)
        assert not pair.has_qemu(name)
    pair.wait_state(pair.primary, "off", 5)
    pair.assert_told(pair.primary, mark, r"shut ?down|powered off")
    quiet_ns = pair.mark_ns()
    pair.lab.host(pair.primary).call("failover", timeout=20)
    pair.lab.wait_protected(pair.primary, 40)
    wait_until(lambda: pair.sniffer.count(pair.primary, quiet_ns) > 0, 60, "frames of the guest that boots again")
    pair.sniffer.stop()
    assert pair.sniffer.count(pair.secondary) == 0, "the secondary took over from a guest that was shut down"
