"""The wheel alone, without these sources, makes a real machine record."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import MakeSensor
    from tests.sensors import Rig, Sensor

ROOT = Path(__file__).parents[1]
INVENTORY = """\
{line}

[all:vars]
program=default
program.microphone.device_name=ultramic
program.recording.duration=1
program.recording.interval=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The Python of a new environment that has our wheel, and of this one only what others wrote."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "dist", "tests", "docs"))
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(source)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    (wheel,) = tmp_path.glob("*.whl")
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    # A folder that a .pth file names is searched last, and .pth files in it (such as ours) mean nothing.
    (site,) = environment.glob("lib/python3*/site-packages")
    others = [place for place in sys.path if Path(place).name == "site-packages"]
    (site / "others.pth").write_text("\n".join(others))
    return python


@pytest.fixture
def sensor(make_sensor: MakeSensor) -> Sensor:
    """A machine that nobody has touched."""
    return make_sensor()


def test_an_installed_wheel_provisions_a_sensor(
    installed: Path, rig: Rig, wheels: Path, sensor: Sensor, tmp_path: Path
) -> None:
    assert wheels.is_dir()  # the sensors' network has no package index
    where = "import acoupi_fleet, acoupi_runtime; print(acoupi_fleet.__file__, acoupi_runtime.__file__)"
    told = subprocess.run([installed, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert all(place.startswith(str(tmp_path)) for place in told.split()), told
    inventory = tmp_path / "sensors.ini"
    inventory.write_text(INVENTORY.format(line=sensor.inventory_line()))
    done = rig.workstation(installed.with_name("acoupi-fleet"), "provision", inventory, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    filed = sensor.root / "var/lib/acoupi/storages/recordings"
    wait_until(lambda: list(filed.glob("[0-9]*/**/*.wav")), 120, "a recording")
