"""latency: from the end of a recording until its detections are stored, durably, without the model's own time.

    python benchmarks/latency.py [--recordings 100] [--json]

This process stands where the recorder stands: it hands over complete recordings as the recorder does. Redis and the
processing worker are the real ones, and so are the file, its move, the row, the hint and every fsync.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np

from acoupi_runtime.audio.guano import compose
from acoupi_runtime.audio.wavfile import Format, WavFile
from acoupi_runtime.clock import SystemClock
from acoupi_runtime.components import Model
from acoupi_runtime.configuration import CeleryConfig
from acoupi_runtime.data import Capture, Deployment, ModelOutput, Recording
from acoupi_runtime.home import Home
from acoupi_runtime.programs.energy import EnergyConfig
from acoupi_runtime.programs.energy import Program as Energy
from acoupi_runtime.store import Store
from acoupi_runtime.system.apps import bare_app
from acoupi_runtime.system.sending import HINTED_TASK, Hints, Sender
from acoupi_runtime.system.setup import setup_program
from acoupi_runtime.system.status import responding_workers
from acoupi_runtime.tasks.filing import Filing

LIMIT = 0.025
RATE, SECONDS = 48_000, 3
PATIENCE = 120.0
STORED = (
    "SELECT 1 FROM recording r JOIN model_output m ON m.recording = r.seq JOIN detection d ON d.model_output = m.seq"
    " WHERE r.id = ? AND r.state = 'kept'"
)


def complete(spool: Path, deployment: Deployment, sound: np.ndarray) -> tuple[Recording, Capture]:
    """A complete recording in the spool, as the recorder leaves it."""
    clock = SystemClock()
    id_ = uuid4()
    path = spool / f"{id_}.wav"
    recording = Recording(
        id=id_,
        created_on=datetime.fromtimestamp(clock.wall() - SECONDS, UTC),
        duration=SECONDS,
        samplerate=RATE,
        deployment=deployment,
        path=path,
    )
    capture = Capture(
        frames=len(sound),
        stream="benchmark",
        first_frame=0,
        boot_id=clock.boot_id,
        boottime=clock.steady() - SECONDS,
        clock_synced=True,
    )
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    text = compose(recording, capture)
    wav = WavFile(descriptor, Format(RATE, 1, 16), text)
    wav.write(sound)
    wav.finish(text)
    os.fsync(descriptor)
    os.close(descriptor)
    return recording, capture


class Timed:
    """The energy detector, which notes how long it took, in the worker."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.name = model.name
        self.version = getattr(model, "version", "1")

    def run(self, recording: Recording) -> ModelOutput:
        """Listen."""
        begun = time.perf_counter()
        output = self._model.run(recording)
        with Path(os.environ["LATENCY_NOTES"]).open("a") as notes:
            notes.write(f"{recording.id} {time.perf_counter() - begun}\n")
        return output


class Program(Energy):
    """The energy program, timed."""

    def model(self, config: EnergyConfig) -> Model:
        """As it is, but for the clock around it."""
        return Timed(super().model(config))


def measure(root: Path, number: int) -> tuple[list[float], list[float]]:
    """Seconds from each hand-over to its stored detections, and those that the model took of it."""
    paths = {"recordings": str(root / "recordings"), "db_metadata": str(root / "store.db")}
    config = EnergyConfig.model_validate({"paths": paths, "microphone": {"device_name": "file:/none"}})
    home = Home(root / "home")
    sys.path.insert(0, str(Path(__file__).parent))
    setup_program(home, "latency:Program", config)
    spool = root / "recordings" / ".spool"
    spool.mkdir(parents=True)
    time_axis = np.arange(RATE * SECONDS) / RATE
    sound = np.random.default_rng(1).normal(0, 30, time_axis.size)
    sound += np.where((time_axis > 1) & (time_axis < 2), 3000 * np.sin(2 * np.pi * 8000 * time_axis), 0)
    frames = sound.astype("<i2").reshape(-1, 1)
    redis = [
        "redis-server",
        str(home.config_dir / "redis.conf"),
        "--unixsocket",
        str(home.redis_socket),
        "--dir",
        str(root),
    ]
    worker = [sys.executable, "-m", "acoupi_runtime", "worker", "processing"]
    notes = root / "notes"
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environ = {**os.environ, "ACOUPI_HOME": str(home.root), "PYTHONPATH": places, "LATENCY_NOTES": str(notes)}
    with contextlib.ExitStack() as stack:
        for command in (redis, worker):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        end = time.monotonic() + PATIENCE
        while responding_workers(home, ["processing"]) != ["processing"]:
            if time.monotonic() > end:
                raise SystemExit("latency: the processing worker does not answer")
        app = bare_app(home, CeleryConfig())
        stack.callback(app.close)
        hints = Hints()
        hints.start(Sender(app), "detection")
        store = stack.enter_context(contextlib.closing(Store.open(root / "store.db")))
        deployment = Deployment(name="benchmark")
        store.start_deployment(deployment)
        filing = stack.enter_context(contextlib.closing(Filing(store, hint=hints.hint)))
        asked = stack.enter_context(contextlib.closing(sqlite3.connect(root / "store.db", timeout=60)))
        took: dict[str, float] = {}
        for _ in range(number):
            recording, capture = complete(spool, deployment, frames)
            begun = time.perf_counter()
            filing.completed(recording, capture)
            while not asked.execute(STORED, (recording.id.bytes,)).fetchone():
                if time.perf_counter() - begun > PATIENCE:
                    raise SystemExit("latency: a recording was not processed")
                time.sleep(0.0005)
            took[str(recording.id)] = time.perf_counter() - begun
            time.sleep(0.05)
    model = dict(line.split() for line in notes.read_text().splitlines())
    return list(took.values()), [float(model[id_]) for id_ in took]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="From the end of a recording until its detections are stored.")
    parser.add_argument("--recordings", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acoupi-") as folder:
        took, model = measure(Path(folder), arguments.recordings)
    overhead = [whole - own for whole, own in zip(took, model, strict=True)]
    figures = {
        "recordings": arguments.recordings,
        "whole_median_ms": statistics.median(took) * 1e3,
        "model_median_ms": statistics.median(model) * 1e3,
        "overhead_median_ms": statistics.median(overhead) * 1e3,
        "overhead_p95_ms": statistics.quantiles(overhead, n=20)[-1] * 1e3,
        "limit_ms": LIMIT * 1e3,
    }
    if arguments.json:
        json.dump(figures, sys.stdout, indent=2)
        return
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, {HINTED_TASK}\n")
    for name, value in figures.items():
        print(f"{name:20} {value:8.1f}")


if __name__ == "__main__":
    main()
