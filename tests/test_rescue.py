"""What happens for a microphone that stays dead, and what root does on request: no more than its unit allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acoupi_runtime.audio.state import RecorderState, write_state
from acoupi_runtime.clock import SystemClock
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.home import Home
from acoupi_runtime.system import rescue
from acoupi_runtime.system.revival import REBOOT_AFTER, USB_AFTER, USB_EVERY, Revival
from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import Fleet, MakeSensor


class LaterClock(SystemClock):
    """The machine's clock, some seconds on."""

    later = 0.0

    def steady(self) -> float:
        return super().steady() + self.later


class Bench:
    """A home whose recorder says what the test wants."""

    def __init__(self, folder: Path, recovery: str) -> None:
        self.home = Home(folder)
        self.home.run_dir.mkdir()
        self.clock = LaterClock()
        self.config = BasicConfig.model_validate({"recovery": recovery})
        self.revival = Revival(self.config, self.home, self.clock)
        self.request = self.home.run_dir / rescue.REQUEST

    def look(self, state: str, later: float) -> str | None:
        """Look at a microphone in this state some seconds after the beginning; return what was asked for."""
        now = SystemClock().steady()
        fields = {"state": state, "pid": 1, "boot_id": "b", "boottime": now, "samplerate": 48000, "channels": 1}
        write_state(self.home, RecorderState.model_validate(fields))
        self.clock.later = later
        self.revival.look()
        return rescue.take(self.request)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A copy of what sysfs shows of a microphone (1-1.4) and a keyboard (1-1.2): this machine has no USB."""
    devices = tmp_path / "sys/bus/usb/devices"
    for name, kind in (("1-1.4", "01"), ("1-1.2", "03")):
        interface = devices / f"{name}:1.0"
        interface.mkdir(parents=True)
        (interface / "bInterfaceClass").write_text(f"{kind}\n")
        (devices / name).mkdir()
        (devices / name / "authorized").write_text("1\n")
    return tmp_path / "sys"


def test_a_microphone_that_stays_dead_is_helped_as_far_as_the_configuration_allows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "reboot")
    assert bench.look("no-microphone", 0) is None
    assert bench.look("no-microphone", USB_AFTER - 1) is None
    assert bench.look("no-microphone", USB_AFTER + 1) == "usb-reset"
    assert bench.look("no-microphone", USB_AFTER + 2) is None  # not again at once
    assert bench.look("no-microphone", USB_AFTER + USB_EVERY + 2) == "usb-reset"
    assert bench.look("no-microphone", REBOOT_AFTER + 1) == "reboot"


def test_a_microphone_that_was_heard_meanwhile_is_dead_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "usb-reset")
    bench.look("no-microphone", 0)
    bench.look("listening", USB_AFTER - 1)
    assert bench.look("no-microphone", USB_AFTER + 1) is None
    assert bench.look("no-microphone", 2 * USB_AFTER + 2) == "usb-reset"
    assert bench.look("no-microphone", REBOOT_AFTER * 2) == "usb-reset"  # it may not ask for more


def test_how_long_it_is_dead_is_known_over_a_restart_of_the_worker(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "usb-reset")
    bench.look("no-microphone", 0)
    bench.revival = Revival(bench.config, bench.home, bench.clock)
    assert bench.look("no-microphone", USB_AFTER + 1) == "usb-reset"


def test_no_recorder_is_no_dead_microphone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "reboot")
    bench.clock.later = 10 * REBOOT_AFTER
    bench.revival.look()
    assert rescue.take(bench.request) is None
    assert not (bench.home.run_dir / "microphone-dead-since").exists()


def test_nothing_is_asked_for_where_nothing_is_allowed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "restart")
    bench.look("no-microphone", 0)
    assert bench.look("no-microphone", 10 * REBOOT_AFTER) is None


def test_a_reset_unplugs_audio_devices_and_nothing_else(tmp_path: Path, sysfs: Path) -> None:
    assert [device.name for device in rescue.audio_devices(sysfs)] == ["1-1.4"]
    request = tmp_path / "rescue"
    request.write_text("usb-reset\n")
    keyboard = (sysfs / "bus/usb/devices/1-1.2/authorized").stat().st_mtime_ns
    assert rescue.main([str(request), "usb-reset"], sys_root=sysfs) == 0
    assert not request.exists()
    assert (sysfs / "bus/usb/devices/1-1.4/authorized").read_text() == "1"
    assert (sysfs / "bus/usb/devices/1-1.2/authorized").stat().st_mtime_ns == keyboard


@pytest.mark.parametrize("asked", ["reboot", "usb-reset; reboot", "", "../../etc/passwd", "\xff" * 200])
def test_a_verb_that_is_not_allowed_does_nothing(tmp_path: Path, sysfs: Path, asked: str) -> None:
    request = tmp_path / "rescue"
    request.write_text(asked)
    assert rescue.main([str(request), "usb-reset"], sys_root=sysfs) == 1
    assert not request.exists()
    assert (sysfs / "bus/usb/devices/1-1.4/authorized").read_text() == "1\n"


def test_a_link_in_the_place_of_a_request_is_removed_unread(tmp_path: Path, sysfs: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("usb-reset\n")
    request = tmp_path / "rescue"
    request.symlink_to(secret)
    assert rescue.main([str(request), "usb-reset"], sys_root=sysfs) == 1
    assert secret.exists()
    assert not request.is_symlink()


def test_a_device_that_has_just_booted_is_not_rebooted_again(tmp_path: Path, sysfs: Path) -> None:
    (tmp_path / "uptime").write_text("120.00 60.00\n")
    request = tmp_path / "rescue"
    request.write_text("reboot\n")
    assert rescue.main([str(request), "usb-reset", "reboot"], sys_root=sysfs, proc=tmp_path) == 1


def test_on_a_sensor_roots_unit_answers_a_request_of_the_service_user(
    make_sensor: MakeSensor, fleet: Fleet, tmp_path: Path
) -> None:
    sensor = make_sensor()
    inventory = tmp_path / "sensors.ini"
    values = {"program": "default", "program__microphone__device_name": "ultramic", "program__recovery": "usb-reset"}
    inventory.write_text(f"{sensor.inventory_line(**values)}\n")
    done = fleet("provision", inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    for verb, answer in (("usb-reset", "no audio device was found"), ("reboot", "not allowed here")):
        sensor.ssh(f"sudo -u acoupi sh -c 'echo {verb} > /run/acoupi/rescue.new; cd /run/acoupi; mv rescue.new rescue'")
        said = lambda wanted=answer: wanted in sensor.journal(unit="acoupi-rescue.service")  # noqa: E731
        wait_until(said, 60, f"the answer to {verb}")
    assert sensor.run("test -e /run/acoupi/rescue", check=False).returncode == 1
