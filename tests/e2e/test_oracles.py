# SPDX-License-Identifier: LGPL-2.1-or-later
"""The oracles of the chaos runs on a real guest: right through a failover, and not blind."""
import pytest
from lablib.oracles import NAMES, Oracles, base, stores
from lablib.util import wait_until
from pair import REPROTECT_S

FLOW_S = 60


@pytest.fixture
def oracles(pair):
    made = Oracles(pair.lab, NAMES, 1)
    made.start()
    made.wait_flow(FLOW_S)
    yield made
    made.abandon()


def by_name(oracles, name):
    return next(oracle for oracle in oracles.oracles if oracle.NAME == name)


@pytest.mark.long  # what each scenario does
@pytest.mark.lab(disk_mib=64, kv=True)
def test_nothing_lost(pair, oracles):
    generation = pair.status(pair.primary)["generation"]
    pair.lab.kill(pair.primary, "qemu")
    oracles.wait_flow(FLOW_S)
    assert oracles.after_failover() == []
    assert pair.lab.wait_protected_after(generation, REPROTECT_S) == pair.secondary
    oracles.wait_flow(FLOW_S)
    assert oracles.after_failover() == []
    assert oracles.stop() == []
    report = oracles.report()
    print(report)
    for name in NAMES:
        faults = ("wrong", "resets") if name == "udp" else ("lost", "duplicated", "wrong", "resets")
        assert report[name]["acknowledged"] > 0 and not any(report[name][fault] for fault in faults), report[name]
    # The store is off the disk again, and its log was there.
    assert "appendonly" in pair.lab.guest_script("ls /disk; umount /disk && mount -t ext4 /dev/vda /disk")


@pytest.mark.lab(disk_mib=64, kv=True)
def test_loss_is_found(pair, oracles):
    """One bit of the pattern, five increments of a key, and all but one of the records are gone from the guest."""
    del pair
    kv, records, memory = (by_name(oracles, name) for name in ("kv", "records", "memory"))
    wait_until(lambda: oracles.report()["records"]["acknowledged"] >= 3, FLOW_S, lambda: f"three records: {oracles.report()}")
    with base.Lines(memory.connect()) as guest:
        assert guest.call("break 7") == "ok"
    with stores.Resp(kv.connect()) as store:
        assert isinstance(store.call("DECRBY", kv.keys[3], "5"), int)
    kv.lab.guest_script(f"truncate -s 256 /disk/{records.file}")
    told = oracles.after_failover()
    for name, text in (("memory", "page"), ("kv", kv.keys[3]), ("records", "is wrong")):
        assert any(fault.startswith(f"{name}: ") and text in fault for fault in told), (name, told)
    report = oracles.report()
    assert report["kv"]["lost"] >= 4 and report["memory"]["wrong"] and report["records"]["wrong"], report
