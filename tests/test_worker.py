"""Tests of a sensor's processes: they record a real file, and are killed, flushed, cut off and asked to end."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import soundfile

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.audio.recorder import Recorder, RestartNeededError
from acoupi_runtime.audio.state import RecorderState, write_state
from acoupi_runtime.clock import SystemClock
from acoupi_runtime.configuration import DeploymentConfig
from acoupi_runtime.store import Store
from acoupi_runtime.system.files import configured_program
from acoupi_runtime.system.worker import _Process, worker_of
from tests.processes import PATIENCE, Sensor, listening_values, sensor
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 7


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that stands for a microphone."""
    import numpy as np

    path = tmp_path_factory.mktemp("tone") / "tone.wav"
    wave = np.sin(np.arange(48_000 * SECONDS) * 0.1) * 8000
    soundfile.write(path, wave.astype("<i2"), 48_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tone: Path) -> Iterator[Sensor]:
    """A sensor as most are: a recording worker, a processing worker, Redis. A test may leave it in any state."""
    root = tmp_path_factory.mktemp("w")
    with sensor(root, "default", listening_values(root, tone)) as made:
        yield made


def rows(made: Sensor, state: str) -> dict[str, Path]:
    """Recordings of the store in this state: their files by id."""
    with contextlib.closing(sqlite3.connect(f"file:{made.root / 'store.db'}?mode=ro", uri=True, timeout=60)) as store:
        found = store.execute("SELECT id, path FROM recording WHERE state = ?", (state,)).fetchall()
    return {bytes(id_).hex(): Path(path) for id_, path in found}


def kept(made: Sensor) -> dict[str, Path]:
    return rows(made, "kept") if (made.root / "store.db").exists() else {}


def more_kept(made: Sensor, than: int, what: str) -> dict[str, Path]:
    """Wait until more recordings are in their place, and return all."""
    wait_until(lambda: len(kept(made)) > than, PATIENCE, f"{what}; {made.errors()}")
    return kept(made)


def test_recordings_are_made_stored_and_filed(one: Sensor) -> None:
    one.up("recording", "processing")
    for id_, path in more_kept(one, len(kept(one)) + 1, "two more recordings to be filed").items():
        assert path.is_relative_to(one.root / "recordings")
        found = read_guano(path)
        assert found is not None
        recording, capture = found
        assert recording.id.hex == id_
        assert recording.deployment.name == socket.gethostname()
        assert soundfile.info(path).frames == capture.frames
        assert 0 < capture.frames <= 48_000


def test_both_workers_answer_and_nobody_listens_on_tcp(one: Sensor) -> None:
    one.up("recording", "processing")
    assert one.redis is not None
    assert one.redis.command("CONFIG", "GET", "port").split() == ["port", "0"]
    listening = {
        line.split()[9]
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        if " 0A " in line
    }
    pids = [process.pid for process in one.processes.values() if process.poll() is None]
    for pid in [*pids, one.redis.process.pid]:
        sockets = {str(link.readlink())[8:-1] for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
        assert not sockets & listening


def test_a_second_recorder_does_not_start(one: Sensor) -> None:
    one.up("recording", "processing")
    second = one.run("worker", "recording")
    assert second.returncode == 75
    assert f"process {one.processes['recording'].pid} does this already" in second.stderr
    assert one.answering("recording")


def test_a_killed_processing_worker_stops_no_recording_and_loses_none(one: Sensor) -> None:
    one.up("recording", "processing")
    one.kill("processing")
    recorded = one.recorded()
    wait_until(lambda: one.recorded() >= recorded + 3, PATIENCE, "recording to go on alone")
    assert rows(one, "recorded")
    one.up("processing")
    wait_until(lambda: len(rows(one, "recorded")) <= 1, PATIENCE, "the backlog to be worked off")


def test_a_killed_recorder_leaves_only_whole_recordings(one: Sensor) -> None:
    one.up("recording", "processing")
    wait_until(
        lambda: (state := one.recorder()) and state.state == "recording", PATIENCE, "a recording to be under way"
    )
    one.kill("recording")
    before = len(kept(one))
    one.up("recording")
    for path in more_kept(one, before, "recording to go on").values():
        assert soundfile.info(path).frames > 0
    assert one.run("task", "run", "rescan").returncode == 0
    wait_until(lambda: not rows(one, "recorded"), PATIENCE, "what was under way to be repaired and filed")


def test_recording_goes_on_without_redis_and_processing_resumes_with_it(one: Sensor) -> None:
    one.up("recording", "processing")
    one.stop_redis()
    recorded = one.recorded()
    wait_until(lambda: one.recorded() >= recorded + 2, PATIENCE, "recording to go on without Redis")
    assert [one.processes[name].poll() for name in ("recording", "processing")] == [None, None]
    wait_until(lambda: rows(one, "recorded"), PATIENCE, "them to be stored")
    meanwhile = rows(one, "recorded").keys()  # their hints were lost: nobody was there to take them
    one.up("recording", "processing")
    wait_until(lambda: meanwhile <= kept(one).keys(), PATIENCE, "what was recorded meanwhile to be filed")


def test_a_flushed_redis_loses_nothing(one: Sensor) -> None:
    one.up("recording", "processing")
    assert one.redis is not None
    before = kept(one)
    for _ in range(20):
        one.redis.command("FLUSHALL")
    recorded = wait_until(lambda: rows(one, "recorded") or more_kept(one, len(before), "a recording"), PATIENCE, "more")
    wait_until(lambda: recorded.keys() <= kept(one).keys(), PATIENCE, "every recording to be filed")
    wait_until(lambda: one.answering("recording", "processing"), PATIENCE, "both workers to answer again")


def test_sigterm_closes_the_recording_that_is_under_way(one: Sensor) -> None:
    one.up("recording", "processing")
    assert one.run("task", "run", "rescan").returncode == 0  # repairs what an earlier test killed
    wait_until(
        lambda: (state := one.recorder()) and state.state == "recording", PATIENCE, "a recording to be under way"
    )
    for name in ("recording", "processing"):
        one.processes[name].terminate()
    assert [one.processes[name].wait(60) for name in ("recording", "processing")] == [0, 0]
    assert not list((one.root / "recordings" / ".spool").glob("*.part"))
    assert not list(one.home.run_dir.glob("*.pid"))
    for path in (one.root / "recordings").rglob("*.wav"):
        assert soundfile.info(path).frames > 0


def test_a_recorder_starts_without_redis_and_tells_systemd(one: Sensor) -> None:
    one.up("recording", "processing")
    for name in ("recording", "processing"):
        one.kill(name)
    one.stop_redis()
    address = str(one.root / "notify")
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(PATIENCE)
        process = one.start("worker", "recording", env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
        first = systemd.recv(4096).decode()
        assert first.startswith("READY=1\nSTATUS=")
        while "WATCHDOG=1" not in (said := systemd.recv(4096).decode()):
            assert "STOPPING" not in said
        assert "STATUS=" in said
        wait_until(lambda: one.recorded() >= 1, PATIENCE, "a recording without Redis")
        process.terminate()
        while "STOPPING=1" not in said:
            said = systemd.recv(4096).decode()
        assert process.wait(60) == 0


def test_a_deployment_stopped_by_hand_stays_stopped_until_it_is_started(one: Sensor) -> None:
    one.up("recording", "processing")
    assert one.run("deployment", "stop").returncode == 0
    wait_until(lambda: one.recorder() is None, PATIENCE, "the recorder to pause")
    assert one.run("deployment", "stop").returncode == 1
    one.processes["recording"].terminate()
    one.processes["recording"].wait(60)
    one.up("recording")
    assert one.recorder() is None
    assert one.status()["deployment"] is None
    started = one.run("deployment", "start")
    assert started.returncode == 0, started.stderr
    wait_until(one.recorder, PATIENCE, "the recorder to listen again")
    assert one.status()["deployment"]["name"] == socket.gethostname()
    assert one.run("deployment", "start").returncode == 1


@pytest.mark.parametrize("program", ["connected", "energy"])
def test_one_process_does_all_where_memory_is_short(tmp_path: Path, tone: Path, program: str) -> None:
    values = listening_values(tmp_path, tone) | {"isolation": "shared"}
    with sensor(tmp_path, program, values, deployment=DeploymentConfig(name="Oak", latitude=51.5)) as made:
        made.up("recording")
        assert list(made.status()["workers"]) == ["recording"]
        assert made.status()["deployment"]["name"] == "Oak"
        more_kept(made, 1, "two recordings to be filed")
        assert made.answering("recording")


HEAVY = """
import os
from pathlib import Path
from acoupi_runtime.programs.energy import Program as Energy

class Program(Energy):
    def model(self, config):
        with (Path(config.paths.db_metadata).parent / "made-in").open("a") as made:
            made.write(f"{os.getpid()}\\n")
        return super().model(config)
"""


def test_only_the_worker_that_listens_has_the_model_and_it_has_it_before_the_first_recording(
    tmp_path: Path, tone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy.py").write_text(HEAVY)
    monkeypatch.syspath_prepend(str(tmp_path))
    with sensor(tmp_path, "heavy:Program", listening_values(tmp_path, tone)) as made:
        made.up("processing")
        assert (tmp_path / "made-in").read_text().split() == [str(made.processes["processing"].pid)]
        made.up("recording")
        more_kept(made, 1, "two recordings to be listened to")
        assert (tmp_path / "made-in").read_text().split() == [str(made.processes["processing"].pid)]


def test_a_place_that_changed_is_another_deployment(tmp_path: Path, tone: Path) -> None:
    with sensor(tmp_path, "default", listening_values(tmp_path, tone), deployment=DeploymentConfig(name="Oak")) as made:
        for name, identical in (("Oak", True), ("Oak", True), ("Elm", False)):
            (made.home.config_dir / "deployment.json").write_text(DeploymentConfig(name=name).model_dump_json())
            made.start("worker", "recording")
            wait_until(made.recorder, PATIENCE, "the recorder to listen")
            assert made.status()["deployment"]["name"] == name
            made.processes["recording"].terminate()
            made.processes["recording"].wait(60)
            with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as store:
                found = store.execute("SELECT name, ended_on IS NULL FROM deployment ORDER BY seq").fetchall()
            assert found == [("Oak", 1)] if identical else [("Oak", 0), ("Elm", 1)]


def test_a_process_that_ends_for_a_dead_microphone_leaves_word_of_it_however_short_its_life(
    tmp_path: Path, tone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = listening_values(tmp_path, tone) | {"recovery": "usb-reset"}

    class Dead(Recorder):
        def run(self, stop: threading.Event) -> None:
            del stop
            clock = SystemClock()
            begun = clock.steady() - 1
            for later in (0, 1):  # the thread beside has looked once, and is to write a minute later
                facts = {"state": "no-microphone", "pid": os.getpid(), "boot_id": "", "samplerate": 1, "channels": 1}
                facts |= {"boottime": begun + later, "lost_seconds": 3 + later}
                write_state(made.home, RecorderState.model_validate(facts))
                if not later:
                    process._missed.look()  # type: ignore[union-attr]
            raise RestartNeededError("dead")

    monkeypatch.setattr("acoupi_runtime.audio.recorder.Recorder", Dead)
    with sensor(tmp_path, "default", values) as made:
        made.home.run_dir.mkdir(exist_ok=True)
        program = configured_program(made.home)
        process = _Process(program, worker_of(program, "recording"))
        with pytest.raises(RestartNeededError):
            process._record(program.config)
        assert (made.home.run_dir / "microphone-dead-since").exists()
        with contextlib.closing(Store.open(tmp_path / "store.db")) as store:
            assert store.counters() == {"microphone_gone": 1, "microphone_gone_seconds": 1, "lost_seconds": 4}


@pytest.mark.parametrize("kind", ["a file is where its folder should be", "a folder has its name"])
def test_a_store_that_cannot_be_opened_stops_no_recording_and_has_them_all_when_it_can(
    tmp_path: Path, tone: Path, kind: str
) -> None:
    store = tmp_path / "card" / "store.db"
    values = listening_values(tmp_path, tone)
    values["paths"]["db_metadata"] = str(store)
    with sensor(tmp_path, "default", values) as made:
        if kind == "a folder has its name":
            store.mkdir(parents=True)
        else:
            store.parent.touch()
        made.start_redis()
        process = made.start("worker", "recording")
        wait_until(lambda: made.recorded() >= 2 or process.poll() is not None, PATIENCE, "recording without a store")
        assert process.poll() is None, made.errors()
        early = {path.stem for path in (tmp_path / "recordings" / ".spool").glob("*.wav")}
        assert len(early) >= 2
        if store.is_dir():
            store.rmdir()
        else:
            store.parent.unlink()
        made.start("worker", "processing")

        def filed() -> bool:
            if not store.is_file():
                return False
            with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=60)) as connection:
                try:
                    found = connection.execute("SELECT id FROM recording WHERE state = 'kept'").fetchall()
                except sqlite3.OperationalError:  # it is being made
                    return False
            return early <= {str(UUID(bytes=id_)) for (id_,) in found}

        wait_until(filed, PATIENCE, f"what was recorded meanwhile to be filed; {made.errors()}")
        assert process.poll() is None, made.errors()
        assert made.status()["deployment"]["name"] == socket.gethostname()
        with contextlib.closing(sqlite3.connect(store)) as connection:
            assert connection.execute("SELECT count(*) FROM deployment").fetchone() == (1,)


def test_a_worker_that_nobody_asked_for_does_not_start(one: Sensor) -> None:
    done = one.run("worker", "detection")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "there are recording, processing" in done.stderr
