# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk's bench runs, and says all that it is to say; how fast anything is is not looked at."""
import json
import os
import subprocess

import pytest
from conftest import BUILD, SOURCE


@pytest.mark.long
def test_bench_disk():
    done = subprocess.run([f"{SOURCE}/tests/bench/disk", "--short", "--ways", "ours", "--loads", "randwrite,randread", "--delays", "0",
                           "--parts", "loads,checkpoints", "--build", BUILD], env={**os.environ, "COLOD_LAB_ID": os.environ.get("COLOD_LAB_ID", "e2e")},
                          capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for load in ("randwrite", "randread"):
        ours = report["loads"]["0 ms"][load]["ours"]
        assert ours["iops"] > 0
        assert {"a QEMU", "a QEMU vCPU", "b QEMU vCPU", "b target"} <= set(ours["cpu_us"])
        assert load != "randwrite" or ours["cpu_us"]["a mirror"] > 0
    assert set(report["checkpoint"]) == {"0 MiB", "10 MiB"}
    assert all(found["ours_us"]["p50"] > 0 for found in report["checkpoint"].values())
    assert [check["what"] for check in report["checks"]] == ["checkpoint at 10 MiB, us"]
