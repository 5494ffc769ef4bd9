"""User scope, on a real Debian with systemd: no sudo, nothing outside the login user's home, and it outlives logins."""

from __future__ import annotations

import json
import random
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor

PATIENCE = 240.0
INVENTORY = """\
{line}

[all:vars]
systemd_scope=user
program=default
program.timezone=UTC
program.microphone.device_name=ultramic
program.recording.duration=1
program.recording.interval=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
"""
UNITS = ("acoupi.target", "acoupi-redis.service", "acoupi-worker@recording.service", "acoupi-worker@processing.service")
SUDO = "etc/sudoers.d/010_pi-nopasswd"
NO_LINGER = """\
polkit.addRule(function(action, subject) {
    if (action.id == "org.freedesktop.login1.set-self-linger") return polkit.Result.NO;
});
"""


@pytest.fixture(scope="module")
def sensor(make_sensor: MakeSensor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sensor]:
    """A sensor that hears noise, and whose user may not become root."""
    made = make_sensor()
    sound = tmp_path_factory.mktemp("sound") / "noise.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(random.Random(1).randbytes(2 * 48_000 * 3))
    made.play(sound)
    allowed = (made.root / SUDO).read_text()
    (made.root / SUDO).write_text("")
    assert made.run("sudo -n true", check=False).returncode != 0
    yield made
    (made.root / SUDO).write_text(allowed)


@pytest.fixture(scope="module")
def inventory(sensor: Sensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "sensors.ini"
    path.write_text(INVENTORY.format(line=sensor.inventory_line()))
    return path


@pytest.fixture(scope="module")
def provisioned(sensor: Sensor, inventory: Path, fleet: Fleet) -> Sensor:
    done = fleet("provision", inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    return sensor


def show(sensor: Sensor, unit: str, what: str) -> str:
    return sensor.ssh(f"systemctl --user show --property={what} --value {unit}")


def recordings(sensor: Sensor) -> set[Path]:
    """What is filed on its disk, looked at from outside."""
    return set((sensor.root / "home/pi/storages/recordings").glob("[0-9]*/**/*.wav"))


def test_where_a_user_may_not_linger_one_line_says_what_to_ask_root_for(
    sensor: Sensor, inventory: Path, fleet: Fleet
) -> None:
    rule = sensor.root / "etc/polkit-1/rules.d/49-no-linger.rules"
    rule.write_text(NO_LINGER)
    rule.chmod(0o644)
    try:
        wait_until(
            lambda: sensor.run("loginctl enable-linger", check=False).returncode != 0, PATIENCE, "polkit to refuse"
        )
        done = fleet("provision", inventory)
        assert done.returncode == 2, done.stdout + done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
        assert "ask root of the sensor for: loginctl enable-linger pi" in line
        assert not recordings(sensor)
    finally:
        rule.unlink()
    wait_until(lambda: sensor.run("loginctl enable-linger", check=False).returncode == 0, PATIENCE, "polkit to allow")
    sensor.ssh("loginctl disable-linger")


def test_it_records_with_the_login_users_own_services_and_writes_nothing_outside_its_home(provisioned: Sensor) -> None:
    wait_until(lambda: recordings(provisioned), PATIENCE, "a recording")
    for unit in UNITS:
        assert show(provisioned, unit, "ActiveState") == "active", unit
        fragment = show(provisioned, unit, "FragmentPath")
        assert fragment.startswith("/home/pi/.config/systemd/user/"), unit
    pid = show(provisioned, "acoupi-worker@recording.service", "MainPID")
    assert provisioned.ssh(f"ps -o user= -p {pid}") == "pi"
    root = provisioned.root
    assert not (root / "opt/acoupi").exists()
    assert not (root / "var/lib/acoupi").exists()
    assert list((root / "etc/systemd").rglob("*acoupi*")) == []
    assert provisioned.run("id acoupi", check=False).returncode != 0
    assert (root / "home/pi/.local/share/acoupi/current").is_symlink()
    provisioned.ssh("test -f .acoupi/config/program.json")
    theirs = provisioned.ssh("find .acoupi .local .config storages ! -user pi")
    assert theirs == ""


def test_a_second_time_nothing_changes_and_status_and_restart_find_it(
    provisioned: Sensor, inventory: Path, fleet: Fleet
) -> None:
    before = [show(provisioned, unit, "InvocationID") for unit in UNITS]
    again = fleet("provision", inventory)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0" in again.stdout
    assert [show(provisioned, unit, "InvocationID") for unit in UNITS] == before
    (look,) = json.loads(fleet("status", inventory, "--json").stdout)
    assert look["state"] in {"recording", "listening"}
    restarted = fleet("restart", inventory)
    assert restarted.returncode == 0, restarted.stdout + restarted.stderr
    assert not set(before) & {show(provisioned, unit, "InvocationID") for unit in UNITS}


def test_a_killed_recorder_comes_back(provisioned: Sensor) -> None:
    unit = "acoupi-worker@recording.service"
    pid = show(provisioned, unit, "MainPID")
    provisioned.ssh(f"kill -9 {pid}")
    wait_until(lambda: show(provisioned, unit, "MainPID") not in {"0", pid}, PATIENCE, "another recorder")
    known = recordings(provisioned)
    wait_until(lambda: recordings(provisioned) - known, PATIENCE, "another recording")


def test_after_a_power_cut_it_records_again_before_anybody_has_logged_in(provisioned: Sensor) -> None:
    wait_until(lambda: recordings(provisioned), PATIENCE, "a recording")
    provisioned.crash()
    known = recordings(provisioned)
    provisioned.start()
    wait_until(lambda: recordings(provisioned) - known, PATIENCE, "a recording without a login")
    provisioned.wait_until_ready()
    assert show(provisioned, "acoupi-worker@recording.service", "NRestarts") == "0"
