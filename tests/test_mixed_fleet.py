"""Four unlike machines in one inventory: bare, without root, with little memory, and an ordinary one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor

SETTINGS = """\

[all:vars]
program=default
program.microphone.device_name=ultramic
program.recording.duration=1
program.recording.interval=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
deployment.name=mixed
"""
SYSTEM, USER = "var/lib/acoupi/storages/recordings", "home/pi/storages/recordings"


class Machines:
    """The four, by what is special about them."""

    def __init__(self, make_sensor: MakeSensor, folder: Path) -> None:
        self.bare = make_sensor(image="bare")
        self.user = make_sensor()
        self.small = make_sensor(mem="512M")
        self.usual = make_sensor()
        self.inventory = folder / "sensors.ini"
        lines = [
            self.bare.inventory_line(),
            self.user.inventory_line(systemd_scope="user"),
            self.small.inventory_line(program__isolation="shared"),
            self.usual.inventory_line(),
        ]
        self.inventory.write_text("\n".join(lines) + "\n" + SETTINGS)

    @property
    def all(self) -> tuple[Sensor, ...]:
        return (self.bare, self.user, self.small, self.usual)

    def recordings(self, sensor: Sensor) -> set[Path]:
        return set((sensor.root / (USER if sensor is self.user else SYSTEM)).glob("[0-9]*/**/*.wav"))

    def wait_for_recordings(self, sensor: Sensor) -> None:
        known = self.recordings(sensor)
        wait_until(lambda: self.recordings(sensor) - known, 180, f"recordings of {sensor.name}")


@pytest.fixture(scope="module")
def machines(make_sensor: MakeSensor, tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return Machines(make_sensor, tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def provisioned(machines: Machines, fleet: Fleet) -> Machines:
    # A bare image has no list of packages yet, as a freshly flashed card.
    done = fleet("provision", machines.inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    return machines


def test_all_of_them_record(provisioned: Machines) -> None:
    for sensor in provisioned.all:
        provisioned.wait_for_recordings(sensor)


def test_what_was_missing_came_from_apt_and_brought_no_service_of_its_own(provisioned: Machines) -> None:
    bare = provisioned.bare
    bare.ssh("dpkg -s redis-server libportaudio2 >/dev/null")
    assert bare.run("systemctl is-active redis-server", check=False).stdout.strip() != "active"
    listening = bare.ssh("ss --listening --tcp --numeric --no-header | awk '{print $4}'").split()
    assert {place.rpartition(":")[2] for place in listening} == {"22"}
    # Where it ran before, it is left alone.
    assert provisioned.usual.ssh("systemctl is-active redis-server") == "active"


def test_a_user_scope_sensor_has_nothing_of_ours_outside_its_users_home(provisioned: Machines) -> None:
    user = provisioned.user
    assert user.run("test -e /opt/acoupi || test -e /var/lib/acoupi || id acoupi", check=False).returncode != 0
    assert user.ssh("find /etc/systemd -name 'acoupi*'") == ""
    assert user.ssh("systemctl --user is-active acoupi.target") == "active"
    assert user.ssh("loginctl show-user pi --property=Linger --value") == "yes"


def test_the_second_provision_changes_nothing_on_any_of_them(provisioned: Machines, fleet: Fleet) -> None:
    done = fleet("provision", provisioned.inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    recap = [line.split() for line in done.stdout.splitlines() if " : " in line]
    assert [line[0] for line in recap] == [sensor.name for sensor in provisioned.all]
    assert all("changed=0" in line for line in recap), done.stdout


def test_all_of_them_are_restarted_at_once(provisioned: Machines, fleet: Fleet) -> None:
    done = fleet("restart", provisioned.inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    for sensor in provisioned.all:
        provisioned.wait_for_recordings(sensor)


def test_a_user_scope_sensor_records_after_a_reboot_without_a_login(provisioned: Machines) -> None:
    user = provisioned.user
    known = provisioned.recordings(user)
    user.reboot()
    wait_until(lambda: len(provisioned.recordings(user) - known) >= 2, 180, "recordings after the reboot")


def test_the_small_one_stays_within_its_memory(provisioned: Machines) -> None:
    small = provisioned.small
    assert small.ssh("systemctl show --property=NRestarts --value acoupi-worker@recording.service") == "0"
    assert "oom" not in small.journal(lines=2000).lower()
