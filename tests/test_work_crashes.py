"""Processing is killed at any time, or done by several at once: each recording is there once, and so is its message."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acoupi_runtime.data import Recording
from acoupi_runtime.store import State
from tests.crash_worker import program_in
from tests.receiver import Receiver, receiving
from tests.recordings import files_below, record, tone

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOUND = tone(0.5, 16_000, 4000, at=0.2, length=0.1)
PATIENCE = 200
"""Seconds after which a process counts as hanging."""
BUDGET = 12
"""Seconds for which it is killed: fewer times on a slow machine, but never a verdict that depends on its speed."""


@dataclass
class Sensor:
    """A folder in which recordings are made and processed."""

    folder: Path
    receiver: Receiver
    made: list[Recording]

    def record(self) -> None:
        self.made.append(record(self.folder / "recordings" / ".spool", SOUND, 16_000)[0])

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.crash_worker", str(self.folder), self.receiver.url]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with (self.folder / "errors").open("ab") as errors:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors)

    def check(self) -> None:
        """Let it come to its end without faults, and look whether everything is there, once."""
        assert self.start().wait(PATIENCE) == 0
        program = program_in(self.folder, self.receiver.url)
        store = program.work.store
        # A message whose last attempt failed waits for its pause; no fault lasts, so that all have gone out after it.
        for _ in range(3):
            program.tasks["send_messages"].function()
        known = store.known(recording.id for recording in self.made)
        assert {known[recording.id].state for recording in self.made} == {State.KEPT}
        assert store.backlog() == 0
        assert store.moves() == ()
        folder = self.folder / "recordings"
        assert files_below(folder) == {str(one.path.relative_to(folder)) for one in known.values() if one.path}
        for one in known.values():
            with wave.open(str(one.path)) as sound:
                assert sound.getnframes() == len(SOUND)
        expected = {str(m.id) for r in self.made for m in program.work._pipeline.messages(store.get_model_outputs(r))}
        assert len(expected) == len(self.made)
        assert set(self.receiver.stored) == expected
        assert store.outbox() == {}
        counted = store.counters()
        assert counted["kept"] == counted["recordings"] == len(self.made)
        program.work.close()
        with sqlite3.connect(self.folder / "metadata.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


@pytest.fixture
def sensor(tmp_path: Path) -> Iterator[Sensor]:
    with receiving() as receiver:
        yield Sensor(tmp_path, receiver, [])


def test_at_whatever_instant_it_is_killed(sensor: Sensor) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    began = time.monotonic()
    sensor.record()
    sensor.start().wait(PATIENCE)
    usual = time.monotonic() - began
    while time.monotonic() - began < BUDGET:
        sensor.record()
        process = sensor.start()
        try:
            process.wait(chance.uniform(0.3, 1.2) * usual)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    sensor.check()


def test_when_two_of_them_work_at_once(sensor: Sensor) -> None:
    for _ in range(20):
        sensor.record()
    processes = [sensor.start() for _ in range(3)]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0, 0], (sensor.folder / "errors").read_text()
    sensor.check()
