"""soak: a day of a sensor in some minutes: does anything grow that should not?

    python -m benchmarks.soak [--hours 24] [--json]

The recorder, the store and all tasks of the program `energy` run in one process on a simulated clock, which passes when
somebody waits for it; the microphone is a file, which brings its sound as fast as the clock passes. Recordings go to a
real file system, messages to a real receiver (a process of its own), tasks are sent by the real beat. Retention has to
delete nearly all of it. Not simulated: Celery and Redis, whose memory `benchmarks/footprint.py` looks at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from uuid import UUID

import numpy as np

from acoupi_runtime.audio.recorder import Recorder
from acoupi_runtime.data import Capture, Deployment, Recording
from acoupi_runtime.home import Home
from acoupi_runtime.programs.energy import EnergyConfig
from acoupi_runtime.programs.energy import Program as EnergyProgram
from acoupi_runtime.system.beat import Beat, Entry
from acoupi_runtime.tasks.filing import Filing
from acoupi_runtime.tasks.work import Work
from benchmarks.device import calls
from tests.receiver import receiving

RATE = 16_000
PLACE = Deployment(name="soak")
ROOM = 5_000_000
"""Bytes that recordings may take."""
HISTORY = 0.25
"""Days for which rows of deleted recordings stay: shorter than the run, so that the store comes to its size."""
WARM = 0.5
"""Share of the time after which everything has been in use."""
SAMPLES = 200
HOUR = 3600.0


@dataclass(frozen=True)
class Sample:
    """What the sensor takes at one moment."""

    hours: float
    memory: int
    descriptors: int
    threads: int
    recordings: int
    """Bytes of sound on the disk."""
    store: int
    """Bytes."""
    backlog: int


@dataclass
class Soak:
    """How it went."""

    hours: float
    made: int = 0
    sent: int = 0
    samples: list[Sample] = field(default_factory=list)

    def warm(self) -> list[Sample]:
        return [one for one in self.samples if one.hours >= WARM * self.hours]

    def trend(self, name: str) -> tuple[float, float, float]:
        """First and last value after the warm-up, and the slope in units a day."""
        warm = self.warm()
        values = [float(getattr(one, name)) for one in warm]
        slope = float(np.polyfit([one.hours / 24 for one in warm], values, 1)[0])
        return values[0], values[-1], slope


class Clock:
    """Time that passes when it is waited for. It stands for the beat, too: what is due is done before anybody wakes."""

    boot_id = "soak"

    def __init__(self) -> None:
        self.now = 1000.0
        # A day ahead of the clock that notes acknowledgements: what is kept of messages for a day goes at once, so that
        # the growth of the store is that which stays.
        self._offset = (datetime.now(UTC) + timedelta(days=1)).timestamp() - self.now
        self.passed: Callable[[threading.Event], None] = lambda _: None

    def steady(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self._offset

    def synced(self) -> bool:
        return True

    def will_sync(self) -> bool:
        return True

    def wait(self, stop: threading.Event, seconds: float) -> None:
        self.now += seconds
        self.passed(stop)


class BeatClocks:
    """The same time as the beat asks for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.now

    def wall(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)


class Sensor:
    """All of a sensor in one process; also the recorder's sink, which waits until the row is there."""

    def __init__(self, folder: Path, config: EnergyConfig, hours: float) -> None:
        self._folder = folder
        self._config = config
        self._clock = Clock()
        self._end = self._clock.now + hours * HOUR
        self._hints: SimpleQueue[UUID] = SimpleQueue()
        self._hinted = threading.Semaphore(0)
        self._next_sample = self._clock.now
        self.soak = Soak(hours)
        self._begun = self._clock.now
        program = EnergyProgram(config, Home(folder / "home"))
        program.setup(config)
        pipeline = program.pipeline(config)
        self._work = Work(
            config,
            program.home,
            pipeline,
            lambda: program.model(config),
            messaging=config.messaging,
            clock=self._clock,
        )
        self._filing = Filing(self._work.store, hint=self._hint)
        schedules = {name: task.schedule for name, task in program.tasks.items() if task.schedule is not None}
        entries = [Entry(name, "", schedule) for name, schedule in schedules.items()]
        self._beat = Beat(entries, self._run, BeatClocks(self._clock))
        self._recorder = Recorder(
            config,
            program.home,
            deployment=lambda: PLACE,
            sink=self,
            alive=lambda _: None,
            clock=self._clock,
        )

    def completed(self, recording: Recording, capture: Capture) -> None:
        self._filing.completed(recording, capture)
        if not self._hinted.acquire(timeout=60):
            raise SystemExit("soak: a recording was not stored within a minute")
        self.soak.made += 1

    def run(self) -> Soak:
        """Let the time pass."""
        self._clock.passed = self._pass
        stop = threading.Event()
        self._recorder.run(stop)
        self._filing.close()
        self.soak.sent = self._work.store.counters().get("messages_sent", 0)
        self._work.close()
        return self.soak

    def _hint(self, identity: UUID) -> None:
        self._hints.put(identity)
        self._hinted.release()

    def _run(self, entry: Entry, lifetime: float) -> bool:
        del lifetime
        getattr(self._work, entry.name)()
        return True

    def _pass(self, stop: threading.Event) -> None:
        while True:
            try:
                self._work.process_recording(str(self._hints.get_nowait()))
            except Empty:
                break
        self._beat.tick()
        if self._clock.now >= self._next_sample:
            self._next_sample += self.soak.hours * HOUR / SAMPLES
            self.soak.samples.append(self._sample())
        if self._clock.now >= self._end:
            stop.set()

    def _sample(self) -> Sample:
        files = [path.stat().st_size for path in (self._folder / "recordings").rglob("*") if path.is_file()]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Sample(
            hours=(self._clock.now - self._begun) / HOUR,
            memory=pages * os.sysconf("SC_PAGE_SIZE"),
            descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            threads=threading.active_count(),
            recordings=sum(files),
            store=sum(path.stat().st_size for path in self._folder.glob("store.db*")),
            backlog=self._work.store.backlog(),
        )


def serve(pipe: Connection) -> None:
    """Be the receiver, whose memory is not the sensor's."""
    with receiving() as receiver:
        pipe.send(receiver.url)
        pipe.recv()


def soak(hours: float) -> Soak:
    """Run it."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="soak-") as name:
            folder = Path(name)
            wav = calls(folder / "calls.wav", 61, RATE, 1)
            config = EnergyConfig.model_validate(configured(folder, wav, ours.recv()))
            return Sensor(folder, config, hours).run()
    finally:
        ours.send(None)
        server.join()


def configured(folder: Path, wav: Path, url: str) -> dict[str, Any]:
    return {
        "timezone": "UTC",
        "microphone": {"device_name": f"file:{wav}", "samplerate": RATE},
        "recording": {"duration": 3, "interval": 10, "schedule_start": "00:00:00", "schedule_end": "00:00:00"},
        "paths": {"recordings": str(folder / "recordings"), "db_metadata": str(folder / "store.db")},
        "retention": {"max_size": ROOM / 1e9, "max_history": HISTORY},
        "messaging": {"http": {"base_url": url}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Does anything grow that should not?")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = soak(arguments.hours)
    if arguments.json:
        json.dump(asdict(result), sys.stdout)
        return
    print(f"{result.hours:g} hours: {result.made} recordings, {result.sent} messages\n")
    print(f"| after {WARM:.0%} of it | start | end | slope a day |\n|---|---|---|---|")
    for name, unit, factor in (
        ("memory", "MiB", 1 << 20),
        ("descriptors", "", 1),
        ("threads", "", 1),
        ("recordings", "MB on the disk", 1e6),
        ("store", "MB", 1e6),
        ("backlog", "recordings", 1),
    ):
        start, end, slope = (value / factor for value in result.trend(name))
        print(f"| {name} {unit} | {start:.1f} | {end:.1f} | {slope:+.2f} |")


if __name__ == "__main__":
    main()
