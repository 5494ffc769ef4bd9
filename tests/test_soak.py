"""Half an hour of a sensor's life in some seconds: nothing grows that should not. `benchmarks/soak.py` runs a day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.soak import ROOM, Sample, Soak

ROOT = Path(__file__).parent.parent
HOURS = 0.5
A_MINUTE_OF_SOUND = 6 * 110_000
"""Bytes; room is made once a minute."""


def test_memory_descriptors_disk_and_backlog_stay_flat() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--hours", str(HOURS), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    soak = Soak(**told | {"samples": [Sample(**one) for one in told["samples"]]})
    assert soak.made >= HOURS * 360 - 1
    assert soak.sent >= soak.made * 0.8  # the last ones wait for their turn
    warm = soak.warm()
    assert all(one.backlog <= 1 for one in soak.samples)
    assert all(one.recordings <= ROOM + A_MINUTE_OF_SOUND for one in warm)
    assert {one.threads for one in warm} == {warm[0].threads}
    assert max(one.descriptors for one in warm) <= warm[0].descriptors + 4
    assert warm[-1].memory <= warm[0].memory + (16 << 20)
