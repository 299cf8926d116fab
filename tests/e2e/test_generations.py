# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts that come back with a generation older than the one clients have seen."""
import hashlib
import re
import shutil
import time

import pytest
from pair import STALL_SILENT, STALL_TOLD

from lablib.settings import VM

pytestmark = pytest.mark.long  # all of it is in power.scenario and lone-primary.scenario, too
QUIET_S = 3.0  # longer than colod's start-up grace and its retries


def power_off_both(pair):
    for name in ("a", "b"):
        pair.lab.kill(name, "host")


def save_states(pair):
    for host in pair.lab.hosts.values():
        shutil.copy(host.state_file, f"{host.dir}/old-state")


def restore_state(host):
    shutil.copy(f"{host.dir}/old-state", host.state_file)


def note_claim(pair, host, generation):
    """As if its colod had died when it had begun to claim and won, but not noted yet that it won."""
    with open(host.state_file, encoding="ascii") as file:
        text = file.read()
    text = re.sub(r"^claiming=.*$", f"claiming={generation}", text.partition("sha256=")[0], flags=re.MULTILINE)
    with open(host.state_file, "w", encoding="ascii") as file:
        file.write(f"{text}sha256={hashlib.sha256(text.encode()).hexdigest()}\n")
    with open(f"{pair.lab.dir}/arbiter/{VM}.{generation:020}", "w", encoding="ascii") as file:
        file.write(f"{host.name}\n")


def test_both_hosts_stale(pair):
    """Both disks were set back to before a failover: the arbiter knows better and nobody starts the VM."""
    pair.spoil()
    save_states(pair)
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "qemu")
    pair.takeover(pair.secondary, mark, load, STALL_TOLD)
    pair.lab.wait_protected(pair.secondary, 40)
    load.stop()
    power_off_both(pair)
    start_ns = time.monotonic_ns()
    for name, host in pair.lab.hosts.items():
        restore_state(host)
        pair.lab.start(name)
    for name in ("a", "b"):
        pair.wait(name, lambda s: s["peer"]["connected"] and s["state"] == "idle", 10, "idle and connected")
    time.sleep(QUIET_S)  # the test is that nothing happens in this time
    for name in ("a", "b"):
        assert pair.status(name)["state"] == "idle", pair.lab.describe()
        assert not pair.has_qemu(name)
        assert pair.assert_reason(name)
    assert pair.sniffer.count(None, start_ns) == 0
    # The guest's memory is gone; an operator decides that it is to start anew, and where.
    pair.lab.host(pair.secondary).call("failover", timeout=20)
    pair.lab.wait_protected(pair.secondary, 60)
    assert pair.status(pair.secondary)["generation"] > mark.generation + 1
    pair.assert_turns([pair.primary, pair.secondary])


def test_stale_primary_cannot_see_the_other_host(pair):
    """It comes back behind a cut link with the state of the primary it was: it must not start its VM."""
    load = pair.load()
    mark = pair.mark()
    pair.lab.kill(pair.primary, "host")
    pair.takeover(pair.secondary, mark, load, STALL_SILENT)
    pair.lab.cut()
    pair.lab.start(pair.primary)
    time.sleep(QUIET_S)  # the test is that nothing happens in this time
    assert not pair.has_qemu(pair.primary)
    assert pair.status(pair.primary)["role"] != "primary"
    pair.assert_reason(pair.primary)
    load.wait_flow()
    pair.lab.heal()
    pair.finish(mark, load, [pair.primary, pair.secondary])


def test_last_primary_starts_the_vm_after_a_power_cut(pair):
    """Both hosts lose their power. The guest is gone, but the two agree who starts it, once."""
    pair.spoil()
    mark = pair.mark()
    power_off_both(pair)
    start_ns = time.monotonic_ns()
    for name in ("a", "b"):
        pair.lab.start(name)
    primary = pair.lab.wait_protected(None, 60)
    assert pair.status(primary)["generation"] > mark.generation
    pair.sniffer.stop()
    assert pair.sniffer.turns(start_ns) in ([], [primary])


def test_standby_died_with_a_claim_that_it_had_not_noted(pair):
    """Nobody ever ran in that generation, and its owner knows: the two start the VM without an operator."""
    pair.spoil()
    generation = pair.status(pair.primary)["generation"]
    power_off_both(pair)
    note_claim(pair, pair.lab.host(pair.secondary), generation + 1)
    for name in ("a", "b"):
        pair.lab.start(name)
    primary = pair.lab.wait_protected(None, 60)
    assert pair.status(primary)["generation"] > generation + 1
