"""small_device: a whole sensor with 512 MB of memory and a model of 50 MB: is anything ended for want of it?

    python -m benchmarks.small_device [--seconds 3600]

The model is a program of one's own that travels with `program_package`. Needs root, as the sensors do.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.continuity import fill_wheels
from tests.sensors import Rig, Sensor, machine, why_not
from tests.support import wait_until

MEMORY = "512M"
MODEL = 50_000_000
"""Bytes."""
PATIENCE = 240
UNITS = ("acoupi-redis", "acoupi-worker@recording", "acoupi-worker@processing")
STORE = "var/lib/acoupi/storages/metadata.db"
PROGRAM = f'''\
"""A program whose model is as large as those of birds and bats."""


from acoupi_runtime.programs.energy import Program as Energy


class Heavy:
    """A model of 50 MB, all of which is looked at for each recording."""

    name, version = "heavy", "1"

    def __init__(self, heard):
        import numpy

        self._heard = heard
        self._weights = numpy.random.default_rng(1).random({MODEL} // 4, dtype="float32")

    def run(self, recording):
        assert self._weights.nbytes >= {MODEL} - 4 and self._weights.sum() > 0
        return self._heard.run(recording).model_copy(update={{"name_model": self.name}})


class Program(Energy):
    """The energy program, with weights."""

    def model(self, config):
        return Heavy(super().model(config))
'''
SETTINGS = """\
{line}
[all:vars]
program=heavy:Program
program_package=./heavy_program
program.timezone=UTC
program.microphone.device_name=ultramic
program.recording.duration=3
program.recording.interval=5
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
deployment.name=small
"""


@dataclass(frozen=True)
class Run:
    """What came of it.

    Attributes:
        recordings: That the heavy model has listened to.
        killed: By the kernel, for want of memory.
        restarts: Of each unit.
        pss: MiB of each process of ours, at the end.
        peak: MiB of memory that the whole sensor took at most, its files' cache included.
    """

    recordings: int
    killed: int
    restarts: dict[str, int]
    pss: dict[str, float]
    peak: float


def run(sensor: Sensor, fleet: Callable[..., Any], folder: Path, seconds: float) -> Run:
    """Let a sensor with a heavy program run for some seconds after it is heard from.

    Args:
        sensor: One with little memory; is provisioned.
        fleet: The workstation's command line, as in the tests.
        folder: For the inventory, the program and the sound.
        seconds: For how long.
    """
    with wave.open(str(folder / "noise.wav"), "wb") as wav:
        wav.setparams((1, 2, 48_000, 0, "NONE", ""))
        wav.writeframes(np.random.default_rng(1).normal(0, 1000, 48_000 * 7).astype("<i2").tobytes())
    sensor.play(folder / "noise.wav")
    (folder / "heavy_program").mkdir(exist_ok=True)
    (folder / "heavy_program/heavy.py").write_text(PROGRAM)
    inventory = folder / "small.ini"
    inventory.write_text(SETTINGS.format(line=sensor.inventory_line()))
    done = fleet("provision", inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: _heard(sensor), PATIENCE, "the heavy model's first word")
    began = {unit: _restarts(sensor, unit) for unit in UNITS}
    time.sleep(seconds)
    last = _heard(sensor)
    wait_until(lambda: _heard(sensor) > last, PATIENCE, "one more recording at the end")
    return Run(
        recordings=_heard(sensor),
        killed=_killed(sensor),
        restarts={unit: _restarts(sensor, unit) - began[unit] for unit in UNITS},
        pss={unit: _pss(sensor, unit) for unit in UNITS},
        peak=_peak(sensor),
    )


def _heard(sensor: Sensor) -> int:
    path = sensor.root / STORE
    if not path.exists():
        return 0
    asked = contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60))
    with asked as store, contextlib.suppress(sqlite3.OperationalError):  # it may still be in the making
        return int(store.execute("SELECT count(*) FROM model_output WHERE name_model = 'heavy'").fetchone()[0])
    return 0


def _restarts(sensor: Sensor, unit: str) -> int:
    return int(sensor.ssh(f"systemctl show --property=NRestarts --value {unit}"))


def _pss(sensor: Sensor, unit: str) -> float:
    pid = sensor.ssh(f"systemctl show --property=MainPID --value {unit}")
    told = sensor.ssh(f"sudo grep -m 1 ^Pss: /proc/{pid}/smaps_rollup")
    return round(int(told.split()[1]) / 1024, 1)


def _killed(sensor: Sensor) -> int:
    """Processes that the kernel has ended for want of memory."""
    folder = _memory(sensor)
    counts = next(path for name in ("memory.events", "memory.oom_control") if (path := folder / name).exists())
    (number,) = (line.split()[1] for line in counts.read_text().splitlines() if line.startswith("oom_kill "))
    return int(number)


def _peak(sensor: Sensor) -> float:
    folder = _memory(sensor)
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if (folder / name).exists():
            return int((folder / name).read_text()) / (1 << 20)
    return float("nan")  # cgroup v2 of an older kernel does not say


def _memory(sensor: Sensor) -> Path:
    """The cgroup that limits the sensor's memory: of v1 the last one, of v2 the only one."""
    return machine.hierarchies()[-1] / "acoupi-sensors" / f"{sensor.network.rig}-{sensor.number}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    asked = parser.parse_args()
    if (reason := why_not()) is not None:
        raise SystemExit(f"small_device: {reason}")
    fill_wheels()
    with Rig.temporary() as rig, tempfile.TemporaryDirectory() as folder:
        (sensor,) = rig.add(1, memory=MEMORY)
        made = run(sensor, rig.fleet, Path(folder), asked.seconds)
    print("| seconds | recordings | killed | restarts | PSS, MiB | whole sensor at most, MiB |")
    print("|---|---|---|---|---|---|")
    each = ", ".join(f"{unit.removeprefix('acoupi-')} {size:g}" for unit, size in made.pss.items())
    print(
        f"| {asked.seconds:g} | {made.recordings} | {made.killed} | {sum(made.restarts.values())} |"
        f" {sum(made.pss.values()):.1f} ({each}) | {made.peak:.0f} |"
    )
    if made.killed or any(made.restarts.values()):
        raise SystemExit("small_device: something was ended")


if __name__ == "__main__":
    main()
