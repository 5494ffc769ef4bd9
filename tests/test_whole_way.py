"""The whole way, once: an inventory makes real Debian machines record, and keep recording."""

from __future__ import annotations

import json
import random
import subprocess
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import guano
import numpy as np
import pytest
import soundfile

from tests.support import new_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor

RATE = 48_000
SECONDS = 7
STORAGE = "var/lib/acoupi/storages/recordings"
SETTINGS = """\
[all:vars]
program=default
program.timezone=UTC
program.microphone.device_name=ultramic
program.recording.duration={duration}
program.recording.interval=3
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
deployment.name=meadow
deployment.latitude=51.5
deployment.longitude=-0.1
"""
CELERY = (
    "sudo -u acoupi env ACOUPI_HOME=/var/lib/acoupi/.acoupi PYTHONPATH=/opt/acoupi/current/lib HOME=/var/lib/acoupi "
    "sh -c 'cd /var/lib/acoupi/.acoupi && /opt/acoupi/current/env/bin/python -B -m celery -A app {words}'"
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in which no moment is like another, so that a recording's place in it can be found."""
    path = tmp_path_factory.mktemp("sound") / "noise.wav"
    samples = np.random.default_rng(1).integers(-8000, 8000, RATE * SECONDS, dtype=np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture(scope="module")
def sensors(make_sensor: MakeSensor, sound: Path) -> tuple[Sensor, Sensor]:
    """Two machines that hear the noise."""
    made = (make_sensor(), make_sensor())
    for sensor in made:
        sensor.play(sound)
    return made


@pytest.fixture(scope="module")
def inventory(sensors: tuple[Sensor, Sensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inventory of both."""
    path = tmp_path_factory.mktemp("fleet") / "sensors.ini"
    write(path, sensors)
    return path


@pytest.fixture(scope="module")
def provisioned(sensors: tuple[Sensor, Sensor], inventory: Path, fleet: Fleet) -> tuple[Sensor, Sensor]:
    """Both, after the one command of which this file's name speaks."""
    done = fleet("provision", inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    for sensor in sensors:
        assert f"{sensor.name} : ok=1 changed=" in " ".join(done.stdout.split()), done.stdout
    return sensors


def write(path: Path, sensors: tuple[Sensor, ...], *, duration: float = 2, extra: str = "") -> None:
    lines = "\n".join(sensor.inventory_line() for sensor in sensors)
    path.write_text(f"{lines}\n\n{SETTINGS.format(duration=duration)}{extra}")


def status(fleet: Fleet, inventory: Path, *words: str) -> dict[str, dict[str, Any]]:
    done = fleet("status", inventory, "--json", *words)
    answer = json.loads(done.stdout)
    return {each["host"]: each for each in answer}


def recordings(sensor: Sensor) -> list[Path]:
    """What is filed on the sensor's disk, oldest first."""
    return sorted(sensor.root.glob(f"{STORAGE}/[0-9]*/**/*.wav"), key=lambda path: path.name)


def more_recordings(sensor: Sensor, known: set[Path]) -> list[Path]:
    found = wait_until(lambda: [each for each in recordings(sensor) if each not in known], 120, "another recording")
    return found or []


def unit(sensor: Sensor, name: str, what: str) -> str:
    return sensor.ssh(f"systemctl show --property={what} --value {name}")


def everything(sensor: Sensor) -> str:
    """Every path that provisioning looks after, with its time, mode, owner and size or target."""
    places = "/opt/acoupi /etc/systemd/system /var/lib/acoupi/.acoupi"
    return sensor.ssh(f"sudo find {places} -printf '%p %T@ %C@ %m %u %s %l\\n' | grep -v -E '/(run|log|store)' | sort")


def test_both_sensors_record_what_their_microphones_hear_sample_by_sample(
    provisioned: tuple[Sensor, Sensor], sound: Path
) -> None:
    heard = soundfile.read(str(sound), dtype="int16")[0]
    around = np.concatenate([heard, heard])
    for sensor in provisioned:
        path = more_recordings(sensor, set())[0]
        samples, rate = soundfile.read(str(path), dtype="int16")
        assert (rate, len(samples)) == (RATE, 2 * RATE)
        start = place_of(samples, around)
        assert np.array_equal(samples, around[start : start + len(samples)])


def place_of(samples: np.ndarray[Any, Any], around: np.ndarray[Any, Any]) -> int:
    candidates = np.flatnonzero(around[: -len(samples)] == samples[0])
    matching = [at for at in candidates if np.array_equal(around[at : at + 64], samples[:64])]
    assert matching, "the recording is nowhere in what was played"
    return int(matching[0])


def test_other_programs_read_the_recordings(provisioned: tuple[Sensor, Sensor]) -> None:
    path = more_recordings(provisioned[0], set())[0]
    told = subprocess.run(["soxi", str(path)], capture_output=True, text=True, check=True).stdout
    assert "Sample Rate    : 48000" in told
    metadata = guano.GuanoFile(str(path))
    assert metadata["Samplerate"] == RATE
    assert metadata["Loc Position"] == (51.5, -0.1)
    assert metadata["Length"] == pytest.approx(2)


def test_status_is_one_line_a_sensor(provisioned: tuple[Sensor, Sensor], inventory: Path, fleet: Fleet) -> None:
    for sensor in provisioned:
        more_recordings(sensor, set())
    told = fleet("status", inventory)
    assert told.returncode == 0, told.stdout + told.stderr
    for sensor in provisioned:
        (line,) = [line for line in told.stdout.splitlines() if line.startswith(sensor.name)]
        assert "recording" in line or "listening" in line
    for each in status(fleet, inventory).values():
        assert each["last_duration"] == pytest.approx(2)
        assert -40 < each["last_level"] < -5
        assert abs(each["clock_offset"]) < 5


def test_the_second_provision_changes_nothing(
    provisioned: tuple[Sensor, Sensor], inventory: Path, fleet: Fleet
) -> None:
    def seen(sensor: Sensor) -> list[str]:
        names = ["acoupi.target", "acoupi-redis.service", "acoupi-worker@recording.service"]
        names.append("acoupi-worker@processing.service")
        starts = [unit(sensor, name, "ActiveEnterTimestampMonotonic,NRestarts,InvocationID") for name in names]
        return [everything(sensor), *starts]

    before = [seen(sensor) for sensor in provisioned]
    again = fleet("provision", inventory)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0" in again.stdout
    assert "changed=1" not in again.stdout
    assert [seen(sensor) for sensor in provisioned] == before
    check = fleet("check", inventory)
    assert check.returncode == 0, check.stdout + check.stderr


def test_one_changed_value_changes_what_it_must_and_restarts_once(
    provisioned: tuple[Sensor, Sensor], inventory: Path, fleet: Fleet
) -> None:
    first, second = provisioned
    worker = "acoupi-worker@recording.service"
    untouched = unit(second, worker, "InvocationID")
    started = unit(first, worker, "InvocationID")
    write(inventory, provisioned, duration=2.5)
    drift = fleet("check", inventory, "--limit", first.name)
    assert drift.returncode == 3, drift.stdout + drift.stderr
    assert unit(first, worker, "InvocationID") == started
    done = fleet("provision", inventory, "--limit", first.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert unit(first, worker, "InvocationID") != started
    assert unit(first, worker, "NRestarts") == "0"
    assert unit(second, worker, "InvocationID") == untouched
    told = json.loads(first.ssh("sudo cat /var/lib/acoupi/.acoupi/config/program.json"))
    assert told["recording"]["duration"] == 2.5
    known = set(recordings(first))
    last = more_recordings(first, known)[-1]
    assert soundfile.info(str(last)).duration == pytest.approx(2.5)
    write(inventory, provisioned)
    assert fleet("provision", inventory).returncode == 0


def test_redis_has_no_port_and_celery_answers_through_its_socket(provisioned: tuple[Sensor, Sensor]) -> None:
    sensor = provisioned[0]
    ask = "sudo -u acoupi redis-cli -s /var/lib/acoupi/.acoupi/run/redis.sock"
    assert sensor.ssh(f"{ask} ping") == "PONG"
    assert sensor.ssh(f"{ask} config get port").split() == ["port", "0"]
    pid = unit(sensor, "acoupi-redis.service", "MainPID")
    assert f"pid={pid}," not in sensor.ssh("sudo ss --listening --tcp --udp --processes --numeric")
    refused = sensor.run("redis-cli -s /var/lib/acoupi/.acoupi/run/redis.sock ping", check=False)
    assert "PONG" not in refused.stdout
    pong = sensor.ssh(CELERY.format(words="inspect ping --timeout 10"))
    assert "recording@" in pong
    assert "processing@" in pong
    assert pong.count("pong") == 2


@pytest.mark.parametrize("worker", ["recording", "processing"])
def test_a_killed_worker_is_back_by_itself(provisioned: tuple[Sensor, Sensor], worker: str) -> None:
    sensor = provisioned[0]
    name = f"acoupi-worker@{worker}.service"
    other = f"acoupi-worker@{'processing' if worker == 'recording' else 'recording'}.service"
    pid, undisturbed = unit(sensor, name, "MainPID"), unit(sensor, other, "MainPID")
    sensor.ssh(f"sudo kill -9 {pid}")

    def back() -> bool:
        return unit(sensor, name, "ActiveState") == "active" and unit(sensor, name, "MainPID") not in {"0", pid}

    wait_until(back, 120, f"{name} to be back")
    assert unit(sensor, other, "MainPID") == undisturbed
    more_recordings(sensor, set(recordings(sensor)))


def test_restart_is_seen_to_record_again(provisioned: tuple[Sensor, Sensor], inventory: Path, fleet: Fleet) -> None:
    before = [unit(sensor, "acoupi-worker@recording.service", "InvocationID") for sensor in provisioned]
    done = fleet("restart", inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    for sensor, invocation in zip(provisioned, before, strict=True):
        assert unit(sensor, "acoupi-worker@recording.service", "InvocationID") != invocation
        more_recordings(sensor, set(recordings(sensor)))


def test_each_mistake_is_one_line_and_leaves_the_other_hosts_alone(
    provisioned: tuple[Sensor, Sensor], inventory: Path, fleet: Fleet, tmp_path: Path
) -> None:
    good, bad = provisioned
    invocations = [unit(sensor, "acoupi-worker@recording.service", "InvocationID") for sensor in provisioned]
    new_key(tmp_path / "another", "another")
    pinned = " ".join((tmp_path / "another.pub").read_text().split()[:2])
    cases: list[tuple[str, int, Callable[[str], bool]]] = [
        (f"{bad.inventory_line(host_key=pinned)}", 5, lambda said: "host key" in said),
        (f"{bad.inventory_line()} port=2222", 4, lambda said: "2222" in said),
    ]
    for line, code, explained in cases:
        path = tmp_path / f"{code}.ini"
        path.write_text(f"{good.inventory_line()}\n{line}\n{SETTINGS.format(duration=2)}")
        done = fleet("provision", path)
        assert done.returncode == code, done.stdout + done.stderr
        told = [text for text in (done.stdout + done.stderr).splitlines() if bad.name in text and " : " not in text]
        assert len(told) == 1, done.stdout
        assert explained(told[0]), told
        assert f"{good.name} : ok=1" in " ".join(done.stdout.split()), done.stdout
    typo = tmp_path / "typo.ini"
    write(typo, provisioned, extra="program.recording.duratoin=3\n")
    done = fleet("provision", typo)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert f"typo.ini:{len(typo.read_text().splitlines())}" in line
    assert "program.recording.duration" in line
    assert [unit(sensor, "acoupi-worker@recording.service", "InvocationID") for sensor in provisioned] == invocations


def test_a_check_writes_nothing(provisioned: tuple[Sensor, Sensor], inventory: Path, fleet: Fleet) -> None:
    write(inventory, provisioned, duration=1 + random.random())
    before = [everything(sensor) for sensor in provisioned]
    done = fleet("provision", inventory, "--check", "--diff")
    write(inventory, provisioned)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "duration" in done.stdout
    assert [everything(sensor) for sensor in provisioned] == before


def test_it_records_after_a_reboot_with_nobody_logged_in(provisioned: tuple[Sensor, Sensor]) -> None:
    sensor = provisioned[1]
    known = set(recordings(sensor))
    sensor.reboot()
    # Read from its disk: no session was opened for this.
    wait_until(lambda: len(set(recordings(sensor)) - known) >= 2, 180, "recordings after the reboot")
