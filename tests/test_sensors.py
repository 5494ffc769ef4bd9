"""The rig is what it says: what the other tests observe on a sensor is worth as much as these."""

from __future__ import annotations

import array
import math
import subprocess
import sys
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.sensors import Rig, machine
from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import MakeSensor
    from tests.sensors import Sensor

pytestmark = pytest.mark.sensor
RATE = 192_000


@pytest.fixture(scope="module")
def sensor(make_sensor: MakeSensor) -> Sensor:
    return make_sensor()


@pytest.fixture(scope="module")
def bare(make_sensor: MakeSensor) -> Sensor:
    return make_sensor("bare", mem="512M")


def write_wav(path: Path, frames: array.array[int], rate: int) -> None:
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(rate)
        wav.writeframes(frames.tobytes())


def read_frames(path: Path) -> array.array[int]:
    with wave.open(str(path)) as wav:
        return array.array("h", wav.readframes(wav.getnframes()))


def record(sensor: Sensor, device: str, rate: int, seconds: int = 1) -> array.array[int]:
    sensor.ssh(f"arecord -q -D {device} -f S16_LE -r {rate} -c 1 -d {seconds} heard.wav")
    return read_frames(sensor.root / "home/pi/heard.wav")


def test_a_sensor_runs_systemd_without_a_failed_unit(sensor: Sensor) -> None:
    assert sensor.ssh("cat /proc/1/comm") == "systemd"
    assert sensor.wait_until_ready() == "running", sensor.ssh("systemctl --failed --no-legend")
    assert sensor.ssh("sudo -n id -un") == "root"
    assert sensor.ssh("python3 --version") == "Python 3.11.2"


def test_a_full_sensor_has_redis_running_and_portaudio(sensor: Sensor) -> None:
    assert sensor.ssh("redis-cli ping") == "PONG"
    assert "libportaudio.so.2" in sensor.ssh("/sbin/ldconfig -p")


def test_a_bare_sensor_installs_redis_from_its_own_repository_and_reaches_nothing_else(bare: Sensor) -> None:
    assert bare.run("command -v redis-server", check=False).returncode == 1
    assert "libportaudio" not in bare.ssh("/sbin/ldconfig -p")
    assert bare.run("python3 -m venv /tmp/x", check=False).returncode == 1
    bare.ssh("sudo apt-get update -q && sudo apt-get install -q -y redis-server libportaudio2", timeout=600)
    assert "libportaudio.so.2" in bare.ssh("/sbin/ldconfig -p")
    assert bare.ssh("ip route show default") == ""


def test_memory_is_limited_for_the_whole_sensor(bare: Sensor) -> None:
    greedy = bare.run("python3 -c 'x = b\"1\" * 900_000_000'", check=False)
    assert greedy.returncode != 0
    assert bare.ssh("echo still here") == "still here"


def test_a_user_may_linger_without_being_root_and_has_a_systemd_of_his_own(sensor: Sensor) -> None:
    sensor.ssh("loginctl enable-linger")
    assert sensor.ssh("systemctl --user is-system-running --wait") == "running"


def test_the_microphone_hears_the_wav_frame_by_frame_in_real_time(sensor: Sensor, tmp_path: Path) -> None:
    period = array.array("h", (round(20_000 * math.sin(index / 7)) + 1 for index in range(RATE // 2)))
    write_wav(tmp_path / "sound.wav", period, RATE)
    sensor.play(tmp_path / "sound.wav")
    endless = (period * 4).tobytes()

    def heard_without_a_gap() -> bool:
        heard = record(sensor, "ultramic", RATE)
        assert len(heard) == RATE
        return endless.find(heard.tobytes()) % 2 == 0  # an odd place would be half a frame off

    wait_until(heard_without_a_gap, 120, "a second of the sound as it was played")


def test_the_device_without_a_clock_gives_the_same_wav_as_fast_as_it_is_read(sensor: Sensor, tmp_path: Path) -> None:
    sound = array.array("h", (index % 30_000 for index in range(48_000 * 40)))
    write_wav(tmp_path / "sound.wav", sound, 48_000)
    sensor.play(tmp_path / "sound.wav")
    assert record(sensor, "fastwav", 48_000, seconds=30) == sound[: 48_000 * 30]


def test_an_unplugged_microphone_is_missing_until_it_is_plugged_in(sensor: Sensor) -> None:
    record_a_moment = "arecord -q -D ultramic -f S16_LE -r 48000 -c 1 -d 1 /dev/null"
    sensor.unplug_microphone()
    assert sensor.run(record_a_moment, check=False).returncode != 0
    sensor.plug_microphone()
    sensor.ssh(record_a_moment)


def test_a_reboot_ends_with_another_system_that_kept_its_disk(sensor: Sensor) -> None:
    sensor.ssh("echo kept > kept; echo lost > /run/user/1000/lost")
    before = sensor.boot_id()
    sensor.reboot()
    assert sensor.boot_id() != before
    assert sensor.ssh("cat kept; ls /run/user/1000/lost 2>/dev/null || echo gone") == "kept\ngone"


def test_a_power_cut_ends_every_process_at_once_and_what_was_synced_is_there_at_the_next_boot(sensor: Sensor) -> None:
    sensor.ssh("echo kept > synced; sync synced; nohup sleep 1000 >/dev/null 2>&1 &")
    sensor.crash()
    assert not sensor.is_on
    assert (sensor.root / "home/pi/synced").read_text() == "kept\n"
    sensor.boot()
    assert sensor.ssh("cat synced; pgrep sleep || echo gone") == "kept\ngone"


def test_a_sensor_without_a_cable_does_not_answer_until_it_is_plugged_in(sensor: Sensor) -> None:
    sensor.offline()
    assert sensor.run("true", check=False).returncode == 255
    assert sensor.is_on
    sensor.online()
    wait_until(lambda: sensor.run("true", check=False).returncode == 0, 120, "the sensor to answer again")


def test_sensors_are_strangers_to_each_other(sensor: Sensor, bare: Sensor) -> None:
    assert sensor.host_key != bare.host_key
    assert len({each.ssh("cat /etc/machine-id") for each in (sensor, bare)}) == 2
    assert [each.ssh("hostname") for each in (sensor, bare)] == [sensor.name, bare.name]


def test_a_sensor_that_takes_the_place_of_another_is_known_by_its_own_key(rig: Rig, sensor: Sensor) -> None:
    (first,) = rig.add(1)
    rig.take_away([first])
    (second,) = rig.add(1)
    try:
        assert second.address == first.address
        assert second.ssh("hostname") == second.name
    finally:
        rig.take_away([second])


def test_the_workstation_reaches_the_sensors_and_nothing_else(rig: Rig, sensor: Sensor) -> None:
    assert rig.workstation("ip", "-o", "route").stdout.split(" dev ")[0] == "10.77.0.0/24"
    look = f"import socket; print(socket.create_connection(('{sensor.address}', 22), 60).recv(4))"
    assert rig.workstation(sys.executable, "-c", look).stdout.strip() == "b'SSH-'"


def test_what_a_killed_run_left_behind_is_removed_when_the_next_one_starts(rig: Rig) -> None:
    code = (
        "import os; from tests.sensors import Rig\nwith Rig.temporary() as rig: rig.add(1); print(rig.name); os.abort()"
    )
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-u", "-c", code], cwd=root, capture_output=True, text=True, check=False)
    left = killed.stdout.strip()
    assert left, killed.stderr
    with Rig.temporary():
        pass
    assert not (machine.STATE / "rigs" / left).exists()
    assert not machine.processes(f"{left}-1")
    assert not {name for name in machine.namespaces() if left in name}
    assert left not in Path("/proc/self/mounts").read_text()
    assert rig.folder.exists()
