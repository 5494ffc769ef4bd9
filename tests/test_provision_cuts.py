"""A cable or the power is cut in the middle of a change: the sensor ends in the old or the new release, and records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor

UNIT = "systemd/acoupi-worker@recording.service.j2"
SETTINGS = """\

[all:vars]
program=default
program.microphone.device_name=ultramic
program.recording.duration=1
program.recording.interval=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
"""


@pytest.fixture(scope="module")
def inventory(make_sensor: MakeSensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sensor, Path]:
    sensor = make_sensor()
    path = tmp_path_factory.mktemp("fleet") / "sensors.ini"
    path.write_text(sensor.inventory_line() + SETTINGS)
    return sensor, path


@pytest.fixture
def sensor(inventory: tuple[Sensor, Path], fleet: Fleet) -> Sensor:
    """A sensor that records, with the release that our own templates make."""
    done = fleet("provision", inventory[1])
    assert done.returncode == 0, done.stdout + done.stderr
    return inventory[0]


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A user's own template, with which the recorder takes a while to start: so long is a change in its middle."""
    ours = Path(__file__).parents[1] / "templates" / UNIT
    path = tmp_path / "templates" / UNIT
    path.parent.mkdir(parents=True)
    path.write_text(ours.read_text().replace("\nExecStart=", "\nExecStartPre=/bin/sleep 10\nExecStart=", 1))
    return tmp_path / "templates"


def release(sensor: Sensor) -> str:
    """Which release is in force, as its disk says."""
    return (sensor.root / "opt/acoupi/current").readlink().name


def cut_in_the_middle(
    sensor: Sensor, provision: Callable[[], subprocess.CompletedProcess[str]], cut: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """Begin a change, cut when the new release has been switched to and does not run yet."""
    before = release(sensor)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(provision)

        def is_in_the_middle() -> bool:
            return running.done() or (release(sensor) != before and state(sensor) == "activating")

        wait_until(is_in_the_middle, 300, "the new release to be started")
        assert not running.done(), running.result().stdout
        cut()
        return running.result()


def state(sensor: Sensor) -> str:
    return sensor.run("systemctl is-active acoupi-worker@recording.service", check=False).stdout.strip()


def leftovers(sensor: Sensor) -> list[str]:
    """What a change has while it is not seen through."""
    places = (sensor.root / "opt/acoupi", sensor.root / "etc/systemd/system", sensor.root / "opt/acoupi/releases")
    names = ("due.json", "undo.sh", "acoupi-undo.service")
    return [path.name for place in places for path in place.iterdir() if path.name in names or path.suffix == ".tmp"]


def test_a_link_that_is_lost_is_given_up_and_the_sensor_finishes_by_itself(
    sensor: Sensor, inventory: tuple[Sensor, Path], slow: Path, fleet: Fleet
) -> None:
    before = release(sensor)
    try:
        done = cut_in_the_middle(sensor, lambda: fleet("provision", inventory[1], "--templates", slow), sensor.offline)
    finally:
        sensor.online()
    assert done.returncode == 2
    assert "the link was lost in the middle" in done.stdout
    assert "outcome unknown; run again" in done.stdout
    wait_until(lambda: not leftovers(sensor), 240, "the sensor to see its change through")
    assert release(sensor) != before
    done = fleet("provision", inventory[1], "--templates", slow)
    assert (done.returncode, "changed=0" in done.stdout) == (0, True), done.stdout


def test_a_power_cut_before_the_new_release_was_seen_to_work_goes_back_at_the_next_boot(
    sensor: Sensor, inventory: tuple[Sensor, Path], slow: Path, fleet: Fleet
) -> None:
    before = release(sensor)
    done = cut_in_the_middle(sensor, lambda: fleet("provision", inventory[1], "--templates", slow), sensor.crash)
    assert done.returncode == 2
    assert release(sensor) != before
    assert "acoupi-undo.service" in leftovers(sensor)
    sensor.boot()
    assert release(sensor) == before
    wait_until(lambda: state(sensor) == "active", 240, "the recorder of the old release to run")
    assert leftovers(sensor) == []
    assert "ExecStartPre" not in sensor.ssh("systemctl cat acoupi-worker@recording.service")
    assert sensor.ssh("systemctl show --property=NeedDaemonReload --value acoupi-worker@recording.service") == "no"
    done = fleet("provision", inventory[1])
    assert (done.returncode, "changed=0" in done.stdout) == (0, True), done.stdout
