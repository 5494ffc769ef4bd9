"""The wheel is all that a person needs: installed alone, with the sources away, it provisions a sensor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import MakeSensor
    from tests.sensors import Rig

ROOT = Path(__file__).parents[1]
PROGRAM: dict[str, object] = {
    "program": "default",
    "program__microphone__device_name": "ultramic",
    "program__recording__duration": 2,
    "program__recording__interval": 2,
}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources and install it as a user would; return the environment's programs."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("acoupi_fleet", "acoupi_runtime", "templates"):
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, sources, cwd=folder)
    shutil.rmtree(sources)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    programs = folder / "venv/bin"
    install: list[str | Path] = [programs / "python", "-m", "pip", "install", "--quiet", "--retries", "10"]
    run(ROOT / ".ci/again.sh", "3", "20", *install, "--constraint", ROOT / ".ci/constraints.txt", wheel, cwd=folder)
    return programs


def test_the_workstations_environment_has_nothing_that_only_a_sensor_needs(installed: Path, tmp_path: Path) -> None:
    look = "import acoupi_fleet, importlib.util as u; print(acoupi_fleet.__file__)"
    assert run(installed / "python", "-c", look, cwd=tmp_path).startswith(str(installed.parent))
    look = (
        "import importlib.util as u; print([n for n in ('celery', 'numpy', 'sounddevice', 'redis') if u.find_spec(n)])"
    )
    assert run(installed / "python", "-c", look, cwd=tmp_path) == "[]"


def test_it_renders_the_example_inventory_without_a_network(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "inventory", tmp_path / "inventory")
    offline = ["unshare", "--net"] if os.geteuid() == 0 else []
    run(*offline, installed / "acoupi-fleet", "render", "inventory/sensors.ini", "--output", "out", cwd=tmp_path)
    assert (tmp_path / "out/oak1/home/app.py").is_file()
    assert (tmp_path / "out/oak1/home/config/program.json").is_file()
    assert list((tmp_path / "out/oak1/units").iterdir())


def test_it_provisions_a_sensor(
    installed: Path, rig: Rig, wheels: Path, make_sensor: MakeSensor, tmp_path: Path
) -> None:
    sensor = make_sensor()
    (tmp_path / "sensors.ini").write_text(f"{sensor.inventory_line(**PROGRAM)}\n")
    done = rig.workstation(installed / "acoupi-fleet", "provision", "sensors.ini", cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{sensor.journal()}"
    assert sensor.ssh("systemctl is-active acoupi.target") == "active"
    wait_until(lambda: sensor.ssh("sudo find /var/lib/acoupi -name '*.wav'"), 240, "the first recording")
