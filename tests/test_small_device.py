"""A whole sensor with 512 MB of memory and a model of 50 MB; the hour is benchmarks/small_device.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.small_device import MEMORY, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Fleet, MakeSensor

SECONDS = 30


def test_a_sensor_with_little_memory_runs_a_heavy_model_and_nothing_is_ended(
    make_sensor: MakeSensor, fleet: Fleet, tmp_path: Path
) -> None:
    sensor = make_sensor(mem=MEMORY)
    made = run(sensor, fleet, tmp_path, SECONDS)
    print(made)
    assert made.killed == 0
    assert set(made.restarts.values()) == {0}
    assert made.recordings >= 2
    assert made.pss["acoupi-worker@processing"] > 50_000_000 / (1 << 20), "the model was not loaded"
