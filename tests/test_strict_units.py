"""The strict units on a real machine: folders anywhere, one process or several, through the home's own scripts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor

DISK = 'srv/a "quoted" disk; $HOME %h \\ back'
SETTINGS = """
[all:vars]
program=energy
program.timezone=UTC
program.microphone.device_name=ultramic
program.recording.duration=1
program.recording.interval=3
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
"""
BIN = "/var/lib/acoupi/.acoupi/bin"
STATES = "systemctl is-active acoupi.target acoupi-redis.service acoupi-beat.service 'acoupi-worker@recording.service'"


@pytest.fixture(scope="module")
def sensor(make_sensor: MakeSensor) -> Sensor:
    return make_sensor()


def provision(fleet: Fleet, sensor: Sensor, folder: Path, **variables: object) -> None:
    inventory = folder / "sensors.ini"
    inventory.write_text(f"{sensor.inventory_line(**variables)}\n{SETTINGS}")
    done = fleet("provision", inventory)
    assert done.returncode == 0, done.stdout + done.stderr


def states(sensor: Sensor) -> set[str]:
    return set(sensor.run(STATES, check=False).stdout.split())


def test_workers_record_into_folders_anywhere_and_the_scripts_speak_for_systemd(
    sensor: Sensor, fleet: Fleet, tmp_path: Path
) -> None:
    paths = {
        "program__paths__recordings": f"/{DISK}/recordings",
        "program__paths__db_metadata": "/home/pi/bats/metadata.db",
        "program__paths__tmp_audio": "/tmp/acoupi",
    }
    provision(fleet, sensor, tmp_path, **paths, celery__beat="unit")
    filed = sensor.root / DISK / "recordings"
    wait_until(lambda: list(filed.rglob("*.wav")), 240, f"recordings in {filed}")
    assert sensor.ssh("stat -c '%U %a' /home/pi/bats/metadata.db") == "acoupi 640"
    libraries = sensor.ssh("sudo cat /proc/$(systemctl show -P MainPID acoupi-worker@recording)/maps")
    assert "libportaudio" in libraries
    assert "libavcodec" not in libraries  # 20 MB, of ALSA's plugins
    # A fresh session of the login user is in the group, and may copy recordings.
    copied = sensor.ssh(f"find '/{DISK}/recordings' -name '*.wav' | head -n 1 | xargs -d '\\n' head -c 4")
    assert copied == "RIFF"

    started = sensor.ssh(f"sudo {BIN}/acoupi-workers-start.sh")
    assert started.splitlines() == ["recording: active", "processing: active", "beat: active"]
    assert sensor.run(f"sudo -u acoupi {BIN}/acoupi-beat.sh", check=False).returncode == 75
    sensor.ssh(f"sudo {BIN}/acoupi-workers-stop.sh")
    assert states(sensor) == {"inactive"}
    assert "recording: active" in sensor.ssh(f"sudo {BIN}/acoupi-workers-restart.sh")
    assert states(sensor) == {"active"}
    refused = sensor.run(f"{BIN}/acoupi-workers-stop.sh", check=False)
    assert refused.returncode != 0
    assert states(sensor) == {"active"}


def test_one_process_for_all_records_into_memory_and_sends(sensor: Sensor, fleet: Fleet, tmp_path: Path) -> None:
    variables = {
        "isolation": "shared",
        "program__paths__tmp_audio": "/run/shm",
        "program__messaging__http__base_url": "http://10.255.255.1:9",
    }
    provision(fleet, sensor, tmp_path, **variables)
    filed = sensor.root / "var/lib/acoupi/storages/recordings"
    wait_until(lambda: list(filed.rglob("*.wav")), 240, f"recordings in {filed}")
    units = sensor.ssh("systemctl list-units --plain --no-legend 'acoupi*' | cut -d' ' -f1").split()
    assert units == ["acoupi-redis.service", "acoupi-worker@recording.service", "acoupi.target"]
    assert "acoupi-" in sensor.ssh("sudo ls /dev/shm")


def test_a_home_set_up_by_hand_is_run_by_the_users_own_systemd(sensor: Sensor, fleet: Fleet, tmp_path: Path) -> None:
    provision(fleet, sensor, tmp_path)  # for its environment; its own services give way
    sensor.ssh("sudo systemctl stop acoupi.target")
    sources = Path(__file__).parents[1]
    for name in ("acoupi_runtime", "templates"):
        shutil.copytree(sources / name, sensor.root / "opt/src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    setup = (
        "cd /opt/src && export XDG_RUNTIME_DIR=/run/user/1000 && $(readlink -f /opt/acoupi/current/env)/bin/python3 -B "
        "-m acoupi_runtime setup --program default --units --microphone.device_name ultramic "
        "--recording.interval 10 --recording.schedule_start 00:00 --recording.schedule_end 00:00"
    )
    assert ": written;" in sensor.ssh(setup)
    assert ": as it was;" in sensor.ssh(setup)
    assert sensor.ssh("systemctl --user is-enabled acoupi.target") == "enabled"
    assert sensor.ssh("~/.acoupi/bin/acoupi-workers-start.sh").splitlines() == [
        "recording: active",
        "processing: active",
    ]
    filed = sensor.root / "home/pi/storages/recordings"
    wait_until(lambda: list(filed.rglob("*.wav")), 240, f"recordings in {filed}")
    sensor.ssh("~/.acoupi/bin/acoupi-workers-stop.sh")
    left = sensor.ssh("systemctl --user list-units --state=active --plain --no-legend 'acoupi*'")
    assert left == ""
    # Somebody else's unit is never replaced.
    sensor.ssh("rm ~/.config/systemd/user/acoupi.target && touch ~/.config/systemd/user/acoupi.target")
    refused = sensor.run(setup, check=False)
    assert refused.returncode == 1
    assert "a unit of this name is there already" in refused.stderr
