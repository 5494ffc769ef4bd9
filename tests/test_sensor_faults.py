"""Faults of a sensor's processes under a real systemd: they hang, are killed over and over, and take all memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor

RECORDER, WORKER = "acoupi-worker@recording.service", "acoupi-worker@processing.service"
SETTINGS = """
[all:vars]
program=default
program.timezone=UTC
program.microphone.device_name=ultramic
program.recording.duration=1
program.recording.interval=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
"""
MORE_THAN_SYSTEMD_ALLOWS = 8
"""By default a unit that was started five times within ten seconds is given up (DefaultStartLimitBurst=)."""


@pytest.fixture(scope="module")
def sensor(make_sensor: MakeSensor, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Sensor:
    """One that records, with as much memory as a small Pi."""
    made = make_sensor(mem="512M")
    inventory = tmp_path_factory.mktemp("fleet") / "sensors.ini"
    inventory.write_text(f"{made.inventory_line()}\n{SETTINGS}")
    done = fleet("provision", inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def shown(sensor: Sensor, unit: str, what: str) -> str:
    return sensor.ssh(f"systemctl show --property={what} --value {unit}")


def hurry(sensor: Sensor, unit: str, *lines: str) -> None:
    """Let systemd's own times pass quicker; what they do is left as our unit says."""
    text = "\\n".join(["[Service]", *lines, ""])
    folder = f"/run/systemd/system/{unit}.d"
    sensor.ssh(
        f"sudo mkdir -p {folder} && printf '{text}' | sudo tee {folder}/hurry.conf && sudo systemctl daemon-reload"
    )


def recorded(sensor: Sensor) -> set[Path]:
    return set(sensor.root.glob("var/lib/acoupi/storages/recordings/[0-9]*/**/*.wav"))


def records_again(sensor: Sensor) -> None:
    before = recorded(sensor)
    wait_until(lambda: len(recorded(sensor) - before) >= 2, 180, "more recordings")


def another_process(sensor: Sensor, unit: str, pid: str) -> str | None:
    """The unit's process, if it is another one, and ready."""
    if shown(sensor, unit, "ActiveState") != "active":
        return None
    found = shown(sensor, unit, "MainPID")
    return found if found not in {"0", pid} else None


def test_a_recorder_that_hangs_is_ended_by_the_watchdog_and_records_again(sensor: Sensor) -> None:
    hurry(sensor, RECORDER, "WatchdogSec=20", "TimeoutAbortSec=2")
    sensor.ssh(f"sudo systemctl restart {RECORDER}")
    records_again(sensor)
    pid = shown(sensor, RECORDER, "MainPID")
    sensor.ssh(f"sudo kill -STOP {pid}")
    wait_until(lambda: another_process(sensor, RECORDER, pid), 240, "another recorder")
    assert "Watchdog timeout" in sensor.journal(unit=RECORDER)
    records_again(sensor)


def test_a_recorder_that_is_killed_again_and_again_is_never_given_up(sensor: Sensor) -> None:
    hurry(sensor, RECORDER, "RestartSec=100ms")
    sensor.ssh(f"sudo systemctl restart {RECORDER}")
    kill = f"""
    for n in $(seq {MORE_THAN_SYSTEMD_ALLOWS}); do
        while pid=$(systemctl show --property=MainPID --value {RECORDER}); [ "$pid" = 0 ]; do
            systemctl is-failed --quiet {RECORDER} && exit 1
            sleep 0.05
        done
        sudo kill -9 "$pid"
        while [ "$(systemctl show --property=MainPID --value {RECORDER})" = "$pid" ]; do sleep 0.05; done
    done
    """
    sensor.ssh(kill)
    wait_until(lambda: shown(sensor, RECORDER, "ActiveState") == "active", 240, "the recorder to be active")
    assert int(shown(sensor, RECORDER, "NRestarts")) >= MORE_THAN_SYSTEMD_ALLOWS
    records_again(sensor)


def test_a_worker_that_takes_all_memory_does_not_disturb_the_recorder(sensor: Sensor) -> None:
    records_again(sensor)  # whatever was done to it before
    recorder, worker = shown(sensor, RECORDER, "MainPID"), shown(sensor, WORKER, "MainPID")
    standing = [int(sensor.ssh(f"cat /proc/{pid}/oom_score_adj")) for pid in (recorder, worker)]
    assert standing[0] <= 0, "a container may not go below 0"
    assert standing[1] == 500
    greedy = "print(len(bytearray(2 << 30)))"  # where the worker stands, and more than this sensor has
    ended = sensor.ssh(f"sudo choom -n {standing[1]} -- python3 -c '{greedy}' || echo ended with $?")
    assert ended == "ended with 137", "by the kernel"
    assert shown(sensor, RECORDER, "MainPID") == recorder
    records_again(sensor)
