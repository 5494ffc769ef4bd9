"""Faults between the rooms: a microphone that is away for long, a broker for others, a full share, a weak supply."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from acoupi_fleet.report import Report
from acoupi_fleet.status import judge
from acoupi_runtime.audio.paths import make_spool, spool_dir
from acoupi_runtime.audio.state import RecorderState
from acoupi_runtime.components.saving import DateFileManager
from acoupi_runtime.configuration import BasicConfig, CeleryConfig
from acoupi_runtime.data import Message, Response, ResponseStatus
from acoupi_runtime.errors import StoreError
from acoupi_runtime.home import Home
from acoupi_runtime.store import Store
from acoupi_runtime.system.missed import EVERY, Missed
from acoupi_runtime.system.setup import HomeFile, render_home, render_units
from acoupi_runtime.system.supervise import FloodLimit
from acoupi_runtime.tasks import board
from acoupi_runtime.tasks.board import Board
from acoupi_runtime.tasks.pipeline import Pipeline
from acoupi_runtime.tasks.rescan import Rescan
from acoupi_runtime.tasks.work import Work
from tests.audio_rig import Card, SimulatedClock, configured, simulate
from tests.processes import PATIENCE, listening_values, sensor
from tests.recordings import SetClock, record
from tests.support import wait_until
from tests.test_status_verb import answer

NOBODY = 65534
"""Another user of this machine: not of our group, and not root."""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all users of this machine can enter: what is refused in it is refused by our own modes."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(prefix="acoupi-open-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(code: str, *words: Path) -> str:
    """What a line of Python says that another user runs."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", code, *words],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else done.stdout.strip()


# Other users of the machine -----------------------------------------------------------------------------------------


def test_another_user_reaches_neither_the_broker_nor_through_it_the_workers(open_folder: Path) -> None:
    files = render_home("default", BasicConfig(), CeleryConfig(), None, managed=True)
    (ours,) = [file.content.decode() for file in files if file.path == "config/redis.conf"]
    configuration = open_folder / "redis.conf"
    configuration.write_text(ours)
    address = open_folder / "redis.sock"
    program = shutil.which("redis-server")
    assert program is not None
    process = subprocess.Popen([program, configuration, "--unixsocket", address, "--dir", open_folder])
    connect = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print('connected')"
    try:
        wait_until(address.exists, 60, "the broker's socket")
        said = subprocess.run([sys.executable, "-c", connect, address], capture_output=True, text=True, check=True)
        assert said.stdout.strip() == "connected"
        assert as_nobody(connect, address).startswith("PermissionError")
        with redis.Redis(unix_socket_path=str(address), decode_responses=True) as client:
            found = client.config_get("port")
            assert found == {"port": "0"}, "no port"
    finally:
        process.terminate()
        process.wait(60)


def test_another_user_can_neither_plant_a_file_in_the_spool_nor_read_one(open_folder: Path) -> None:
    (open_folder / "recordings").mkdir()
    (open_folder / "recordings").chmod(0o755)  # a folder that was there before, and that everybody may look into
    spool = spool_dir(configured(open_folder))
    make_spool(spool)
    record(spool)
    (made,) = spool.iterdir()
    write = "import sys; open(sys.argv[1] + '/x.wav', 'wb'); print('written')"
    read = "import sys; open(sys.argv[1], 'rb').read(); print('read')"
    assert as_nobody(write, spool).startswith("PermissionError")
    assert as_nobody(read, made).startswith("PermissionError")
    assert [path.name for path in spool.iterdir()] == [made.name]


# A microphone that is away for long ---------------------------------------------------------------------------------


def test_a_microphone_that_is_away_for_an_hour_costs_a_few_lines_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimulatedClock()
    card = Card(clock)
    clock.at(30, lambda: setattr(card, "plugged", False))
    clock.at(3630, lambda: setattr(card, "plugged", True))
    with caplog.at_level(logging.INFO):
        run = simulate(tmp_path, configured(tmp_path), 3660, clock=clock, source=card)
    assert sum(state.state == "no-microphone" for state in run.states) > 3000, "it was looked for all the time"
    assert run.states[-1].state in {"recording", "listening"}
    lines = [record.getMessage() for record in caplog.records]
    assert any("plug it in" in line for line in lines)
    assert any("found" in line for line in lines), "and its return is said"
    assert len(lines) < 10, lines


def test_trouble_that_changes_its_words_every_second_is_held_back_too() -> None:
    now = [0.0]
    limit = FloodLimit(lambda: now[0])
    passed = 0
    for second in range(3600):
        now[0] = second
        line = f"hw:{second % 9}: has given no sound for {second} s; see to its cable"
        passed += limit.filter(logging.makeLogRecord({"name": "x", "levelno": logging.WARNING, "msg": line}))
    assert passed == 60


# Whatever else is in the way of a start -----------------------------------------------------------------------------


def test_a_beat_starts_whatever_lies_about_where_celery_keeps_its_schedule(tmp_path: Path) -> None:
    with sensor(tmp_path, "default", listening_values(tmp_path, tmp_path / "none.wav")) as made:
        made.start_redis()
        for folder in (made.home.root, made.home.run_dir, tmp_path):
            for suffix in ("", ".db", ".dat", ".dir"):
                (folder / f"celerybeat-schedule{suffix}").write_bytes(os.urandom(4096))
        made.start("beat")
        wait_until(lambda: made.redis and made.redis.command("LLEN", "celery") != "0", PATIENCE, made.errors())
        made.processes["beat"].terminate()
        assert made.processes["beat"].wait(PATIENCE) == 0


# What a person is told ----------------------------------------------------------------------------------------------


def pi(folder: Path, *, degrees: float, alarm: int) -> Path:
    """What the kernel shows on a Raspberry Pi of its heat and of its supply: this machine is none."""
    zone, other, hwmon = (
        folder / f"class/{name}" for name in ("thermal/thermal_zone0", "hwmon/hwmon0", "hwmon/hwmon1")
    )
    for made in (zone, other, hwmon):
        made.mkdir(parents=True)
    (zone / "temp").write_text(f"{degrees * 1000:.0f}\n")
    (other / "name").write_text("cpu_thermal\n")
    (hwmon / "name").write_text("rpi_volt\n")
    (hwmon / "in0_lcrit_alarm").write_text(f"{alarm}\n")
    return folder


def metrics_of(said: dict[str, Any]) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in said["metrics"]}


class Box:
    """A messenger whose messages are only looked at."""

    name = "box"

    def send_message(self, message: Message) -> Response:
        return Response(status=ResponseStatus.SUCCESS, message=message)


def keeping_all(folder: Path, *messengers: Box) -> Pipeline:
    return Pipeline(manager=DateFileManager(folder / "recordings"), messengers=messengers)


def heartbeat_of(folder: Path) -> dict[str, Any]:
    """The heartbeat of a sensor whose folders are here."""
    paths = {"recordings": str(folder / "recordings"), "db_metadata": str(folder / "store.db")}
    work = Work(BasicConfig.model_validate({"paths": paths}), Home(folder / "home"), keeping_all(folder, Box()))
    try:
        work.heartbeat()
        (waiting,) = work.store.waiting_messages("box", 1, "newest_first")
        said: dict[str, Any] = json.loads(waiting.message.content)
        return said
    finally:
        work.close()


def test_a_weak_supply_and_heat_are_in_the_heartbeat_and_in_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "_SYS", pi(tmp_path / "ill", degrees=82.5, alarm=1))
    said = heartbeat_of(tmp_path)
    assert metrics_of(said)["temperature"] == 82.5
    assert metrics_of(said)["undervoltage"] == 1
    assert said["status"] == "no recorder, too hot, undervoltage"
    monkeypatch.setattr(board, "_SYS", pi(tmp_path / "well", degrees=48, alarm=0))
    said = heartbeat_of(tmp_path)
    assert metrics_of(said)["undervoltage"] == 0
    assert said["status"] == "no recorder"
    assert Board.read(tmp_path / "no Pi").troubles == ()

    ill = answer()
    ill["runtime"]["board"] = {"temperature": 82.5, "undervoltage": True}
    assert judge("pond", ill, clock_offset=0.0).troubles == ("it is too hot", "its supply is too weak")


def test_what_was_lost_is_in_the_store_the_heartbeat_and_both_kinds_of_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts: dict[str, Any] = {"silent": True, "clipped": 7, "overflows": ((48, 480), (96, 20)), "clock_synced": False}
    with sensor(tmp_path, "default", listening_values(tmp_path, tmp_path / "none.wav")) as made:
        store = Store.open(tmp_path / "store.db")
        store.add_recording(*record(tmp_path / "recordings" / ".spool", **facts))
        store.add_clock_step(-3600)
        store.count("quarantined")
        expected = {
            "recordings": 1,
            "silent": 1,
            "clipped": 1,
            "overflows": 2,
            "frames_lost": 500,
            "clock_unsynced": 1,
            "clock_steps": 1,
            "quarantined": 1,
        }
        assert store.counters() == expected
        store.close()
        assert heartbeat_of(tmp_path)["counters"] == expected
        seen = made.status()
        assert seen["store"]["counters"] == expected
        assert seen["store"]["backlog"] == 1
        (line,) = [line for line in made.run("status").stdout.splitlines() if line.startswith("counted: ")]
        for name, number in expected.items():
            assert f"{number} {name.replace('_', ' ')}" in line
    said = answer()
    said["runtime"]["store"]["counters"] = expected
    look = judge("pond", said, clock_offset=0.0)
    assert look.counters == expected
    Report().looks([look])
    assert "so far 2 overflows, 1 quarantined" in capsys.readouterr().out


# What the recorder could not record ---------------------------------------------------------------------------------


def test_what_the_recorder_missed_is_counted_for_good(tmp_path: Path) -> None:
    clock, store = SetClock(), Store.open(tmp_path / "store.db")
    states: list[RecorderState] = []
    missed = Missed(store, lambda: states[-1] if states else None, clock)  # type: ignore[arg-type]

    def look(state: str, later: float, lost: float, pid: int = 1) -> None:
        clock.since_boot += later
        facts = {"state": state, "lost_seconds": lost, "pid": pid, "boottime": clock.since_boot}
        states.append(RecorderState.model_validate({"boot_id": "b", "samplerate": 1, "channels": 1, **facts}))
        missed.look()

    missed.look()  # no recorder yet
    look("recording", 5, 0)
    assert store.counters() == {}
    look("no-microphone", 5, 0)
    assert store.counters() == {"microphone_gone": 1}, "at once"
    for _ in range(12):
        look("no-microphone", 5, 0)
    look("recording", EVERY, 2.5)
    assert store.counters() == {"microphone_gone": 1, "microphone_gone_seconds": 60, "lost_seconds": 2}
    look("paused", EVERY, 4.0)
    look("recording", EVERY, 4.75)
    assert store.counters() == {
        "microphone_gone": 1,
        "microphone_gone_seconds": 60,
        "recording_paused": 1,
        "lost_seconds": 4,
    }, "parts of a second wait until they are a whole one"
    look("recording", EVERY, 1.25, pid=2)
    assert store.counters()["lost_seconds"] == 6, "another process begins anew"


def test_what_was_missed_in_the_last_minute_does_not_go_with_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, store = SetClock(), Store.open(tmp_path / "store.db")
    facts = {"state": "paused", "pid": 1, "boottime": 1, "boot_id": "b", "samplerate": 1, "channels": 1}
    states = [RecorderState.model_validate({**facts, "lost_seconds": lost}) for lost in (8, 3)]
    missed = Missed(store, states.pop, clock)  # type: ignore[arg-type]
    missed.look()
    missed.look()
    assert store.counters() == {"recording_paused": 1, "lost_seconds": 3}

    def full(_: object) -> None:
        raise StoreError("the card is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "count_all", full)
        missed.close()
    missed.close()
    assert store.counters() == {"recording_paused": 1, "lost_seconds": 8}


def test_a_sensor_counts_by_itself_that_its_microphone_is_gone(tmp_path: Path) -> None:
    with sensor(tmp_path, "default", listening_values(tmp_path, tmp_path / "none.wav")) as made:
        made.start_redis()
        made.start("worker", "recording")

        def counted() -> bool:
            seen = made.status()["store"]
            return seen is not None and seen["counters"].get("microphone_gone") == 1

        wait_until(counted, PATIENCE, f"it to be counted; {made.errors()}")


def test_what_was_missed_while_the_store_takes_nothing_is_counted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, store = SetClock(), Store.open(tmp_path / "store.db")
    facts = {"state": "paused", "lost_seconds": 9, "pid": 1, "boottime": 1, "boot_id": "b"}
    state = RecorderState.model_validate({**facts, "samplerate": 1, "channels": 1})
    missed = Missed(store, lambda: state, clock)  # type: ignore[arg-type]

    def full(_: object) -> None:
        raise StoreError("the card is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "count_all", full)
        missed.look()
    assert store.counters() == {}
    missed.look()
    assert store.counters() == {"recording_paused": 1, "lost_seconds": 9}


def test_recordings_that_have_all_the_room_they_were_given_make_the_recorder_wait(tmp_path: Path) -> None:
    clock = SimulatedClock()
    config = configured(
        tmp_path,
        recording={"duration": 2, "interval": 10},
        retention={"max_size": 0.0003, "reserve": 16},
        paths={"db_metadata": str(tmp_path / "store.db")},
    )
    work = Work(config, Home(tmp_path / "home"), keeping_all(tmp_path))

    def keep_house() -> None:
        work.rescan()
        work.process_backlog()
        work.housekeeping()

    def fetch() -> None:
        work.store.mark_archived(datetime.now(UTC) + timedelta(days=36_500))
        work.housekeeping()

    for seconds in (5, 15):  # the second recording is one too many
        clock.at(seconds, keep_house)
    clock.at(75, fetch)
    run = simulate(tmp_path, config, 98, clock=clock, source=Card(clock))
    work.close()
    paused = [state for state in run.states if state.state == "paused"]
    assert "program.retention.max_size" in paused[0].detail
    assert run.states[-1].state in {"recording", "listening"}
    starts = [round(capture.boottime - 5000) for capture in run.kept.captures]
    assert starts[:2] == [0, 10]
    assert starts[-2:] == [80, 90]
    assert not {20, 30, 40} & set(starts)
    assert run.states[-1].lost_seconds >= 6, "what was not recorded is counted"


def test_a_step_of_the_clock_is_counted(tmp_path: Path) -> None:
    clock = SetClock()
    store = Store.open(tmp_path / "store.db", clock)
    rescan = Rescan(store, tmp_path / "spool", tmp_path / "recordings", clock, reserve=0)
    rescan.run()
    clock.offset -= 3600
    rescan.run()
    rescan.run()
    assert store.counters() == {"clock_steps": 1}
    ((_, step),) = store.clock_steps()
    assert step == pytest.approx(-3600, abs=0.1)
    store.close()


def test_when_memory_is_short_the_kernel_takes_the_processing_and_not_the_recorder() -> None:
    units = {file.path: file.content.decode().splitlines() for file in _units()}
    recorder, worker = units["acoupi-worker@recording.service"], units["acoupi-worker@.service"]
    assert "OOMScoreAdjust=-500" in recorder
    assert {"OOMScoreAdjust=500", "MemoryMax=60%"} <= set(worker)
    assert not any(line.startswith("MemoryMax") for line in recorder)


def _units() -> tuple[HomeFile, ...]:
    return render_units("default", BasicConfig(), CeleryConfig(), scope="system")
