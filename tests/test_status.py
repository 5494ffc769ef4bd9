"""Tests of what a sensor says of itself: only what lives counts, and looking costs little and opens nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.processes import PATIENCE, Sensor, listening_values, sensor
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def silence(path: Path, seconds: int = 5, value: int = 0) -> Path:
    """A wav file of one value."""
    import numpy as np
    import soundfile

    soundfile.write(path, np.full(48_000 * seconds, value, "<i2"), 48_000, subtype="PCM_16")
    return path


def noise(path: Path) -> Path:
    """A wav file of noise."""
    import numpy as np
    import soundfile

    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, 48_000 * 5).clip(-1, 1), 48_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sensor]:
    """A sensor at work."""
    root = tmp_path_factory.mktemp("s")
    with sensor(root, "default", listening_values(root, noise(root / "noise.wav"))) as made:
        made.up("recording", "processing")
        wait_until(lambda: made.recorded() >= 1, PATIENCE, f"a first recording; {made.errors()}")
        yield made


@pytest.fixture
def asleep(tmp_path: Path) -> Iterator[Sensor]:
    """A sensor in which nothing runs."""
    with sensor(tmp_path, "default", listening_values(tmp_path, noise(tmp_path / "noise.wav"))) as made:
        yield made


def test_a_sensor_at_work_shows_live_frames(living: Sensor) -> None:
    seen = living.status("--watch-frames", "1")
    assert seen["workers"] == {
        name: {"pid": living.processes[name].pid, "alive": True} for name in ("recording", "processing")
    }
    assert seen["celery"] == {"responding": ["recording", "processing"]}
    assert seen["recorder"]["state"] in ("recording", "listening")
    assert seen["recorder"]["frames_delta"] >= 24_000
    assert not seen["recorder"]["silent"]
    assert seen["store"]["last_recording"] is not None
    assert seen["disk"]["free"] > 0
    assert seen["clock"].keys() == {"synced", "now"}
    assert seen["deployment"]["name"]
    assert (seen["program"], seen["home"]) == ("default", str(living.home.root))


def test_a_person_reads_it_line_by_line(living: Sensor) -> None:
    lines = living.run("status").stdout.splitlines()
    assert any(
        line.startswith(f"worker recording: process {living.processes['recording'].pid}, answers") for line in lines
    )
    assert any(line.startswith("recorder: ") and "dBFS" in line for line in lines)


def test_check_asks_the_running_recorder(living: Sensor) -> None:
    done = living.run("check")
    assert done.returncode == 0, done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ok", "microphone:"],
        ["ok", "store:"],
        ["ok", "workers:"],
        ["ok", "program:"],
    ]


def test_nothing_that_is_left_over_looks_alive(asleep: Sensor) -> None:
    asleep.up("recording", "processing")
    wait_until(asleep.recorder, PATIENCE, "the recorder to listen")
    for name in ("recording", "processing"):
        asleep.kill(name)
    assert (asleep.home.run_dir / "recording.pid").exists()
    assert asleep.home.recorder_file.exists()
    seen = asleep.status("--watch-frames", "1")
    assert [worker["alive"] for worker in seen["workers"].values()] == [False, False]
    assert seen["recorder"] is None
    assert seen["celery"] == {"responding": []}
    done = asleep.run("check")
    assert done.returncode == 1
    assert "failed  workers: recording, processing: not running" in done.stdout
    assert "warning microphone: file:" in done.stdout


def test_a_sensor_at_rest_is_looked_at_without_celery_or_numpy(asleep: Sensor) -> None:
    code = (
        "import sys, json\nfrom acoupi_runtime.home import Home\nfrom acoupi_runtime.system.status import status\n"
        "json.dump([status(Home.from_environment(), watch_frames=0.1),"
        " sorted({'celery', 'kombu', 'redis', 'numpy', 'sounddevice', 'jinja2'} & sys.modules.keys())], sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=asleep.environ, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    seen, imported = json.loads(done.stdout)
    assert imported == []
    assert seen["store"] is None
    assert seen["deployment"] is None
    assert not (asleep.root / "store.db").exists()


def test_a_silent_microphone_is_a_warning(tmp_path: Path) -> None:
    values = listening_values(tmp_path, silence(tmp_path / "silence.wav"), duration=0.5, interval=0.5)
    with sensor(tmp_path, "default", values) as made:
        made.up("recording", "processing")
        wait_until(lambda: (state := made.recorder()) and state.silent, PATIENCE, "three silent recordings")
        done = made.run("check")
        assert done.returncode == 0, done.stdout
        assert "it is silent" in done.stdout
        assert "SILENT" in made.run("status").stdout


def test_a_missing_microphone_fails_the_check_and_is_waited_for(tmp_path: Path) -> None:
    with sensor(tmp_path, "default", listening_values(tmp_path, tmp_path / "later.wav")) as made:
        made.up("recording", "processing")
        wait_until(lambda: (state := made.recorder()) and state.state == "no-microphone", PATIENCE, "it to be missed")
        assert made.run("check").returncode == 1
        noise(tmp_path / "later.wav")
        wait_until(lambda: made.recorded() >= 1, PATIENCE, "it to be found")
        assert made.run("check").returncode == 0


def test_a_store_that_is_another_programs_is_shown_and_left_alone(asleep: Sensor) -> None:
    import sqlite3

    path = asleep.root / "store.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    before = path.read_bytes()
    seen = asleep.status()
    assert seen["store"] is None
    assert str(path) in seen["store_error"]
    assert path.read_bytes() == before
