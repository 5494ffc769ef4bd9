"""footprint: memory, processor time and readiness of a sensor's processes, Redis included, beside the reference's.

    python -m benchmarks.footprint [--seconds 60] [--repeat 3] [--json] [--setup separate ...] [--source file ...]

Memory is PSS as on a device that runs nothing else, after the first recordings have been filed. Processor
time is that of all threads, in percent of one core. The microphone is a file, or a virtual sound card behind PortAudio,
ALSA and the PulseAudio plugin, which a real card does not need; no other plugin is seen, as in the recorder's unit. The
reference system has that card only, with ALSA as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acoupi_runtime.audio.state import read_state
from acoupi_runtime.home import Home
from acoupi_runtime.programs import load_program_class
from acoupi_runtime.store import Store
from acoupi_runtime.system.setup import setup_program
from acoupi_runtime.system.status import responding_workers
from benchmarks import reference
from benchmarks.soundcard import NAME, sound_card, why_not

SETUPS: dict[str, tuple[str, dict[str, Any], float]] = {
    "separate": ("default", {}, 110),
    "separate, detector": ("energy", {}, 135),
    "shared": ("default", {"isolation": "shared"}, 80),
}
"""Program, configuration, and the MiB it may take."""
SOURCES = ("file", "microphone")
REFERENCE = {"separate": 202.0, "separate, detector": 268.0}
"""MiB that the reference system was once measured to take, for where it cannot be measured here."""
RATE = 48_000
ALL_DAY = {"schedule_start": "00:00", "schedule_end": "00:00"}
PATIENCE = 120.0


@dataclass
class Figures:
    """What was measured of one set-up; MiB, seconds, percent of a core."""

    pss: dict[str, float]
    limit: float
    microphone_open: float
    sound: float
    workers_answer: float
    recording: dict[str, float]
    window_closed: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.pss.values())


def wait(what: Callable[[], Any], name: str) -> float:
    """Wait until it is so; the instant."""
    end = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > end:
            raise SystemExit(f"footprint: waited {PATIENCE:g} s for {name}")
        time.sleep(0.01)
    return time.monotonic()


def noise(path: Path, seconds: int = 20) -> Path:
    """A file that stands for a microphone."""
    samples = np.random.default_rng(1).normal(0, 1000, 48_000 * seconds).astype("<i2")
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, 48_000, 0, "NONE", ""))
        wav.writeframes(samples.tobytes())
    return path


def setup(root: Path, name: str, device: str | None = None, **recording: Any) -> Home:
    """Write a home for a set-up."""
    program, values, _ = SETUPS[name]
    values = values | {
        "microphone": {"device_name": device or f"file:{root / 'noise.wav'}"},
        "recording": recording,
        "paths": {"recordings": str(root / "recordings"), "db_metadata": str(root / "store.db")},
    }
    home = Home(root / "home")
    setup_program(home, program, load_program_class(program).config_schema.model_validate(values))
    return home


@contextlib.contextmanager
def running(home: Home, names: list[str], environment: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Run Redis and the workers as their units do; their processes by name."""
    redis = ["redis-server", str(home.config_dir / "redis.conf"), "--unixsocket", str(home.redis_socket)]
    script = str(home.bin_dir / "acoupi-workers-start.sh")
    with contextlib.ExitStack() as stack:

        def start(command: list[str], name: str) -> int:
            with (home.root / f"{name}.err").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process.pid

        yield {"redis": start([*redis, "--dir", str(home.run_dir)], "redis")} | {
            name: start([script, name], name) for name in names
        }


def pss(pids: dict[str, int]) -> dict[str, float]:
    """MiB of each process; a page of a file counts once among these processes, whoever else on this machine has it."""
    anonymous, files = dict.fromkeys(pids, 0), {name: Counter[str]() for name in pids}
    for name, pid in pids.items():
        where, resident = "", 0
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                where = words[5] if len(words) > 5 else ""
            elif words[0] == "Rss:":
                resident = int(words[1])
            elif words[0] == "Anonymous:":
                own = int(words[1]) if where.startswith("/") else resident
                anonymous[name] += own
                files[name][where] += resident - own
    sharers = Counter(where for each in files.values() for where, size in each.items() if size)
    return {
        name: (anonymous[name] + sum(size / sharers[where] for where, size in files[name].items() if size)) / 1024
        for name in pids
    }


def cpu(pids: dict[str, int], seconds: float) -> dict[str, float]:
    """Percent of a core that each process takes, over some seconds."""

    def spent(pid: int) -> int:
        # Nanoseconds on a processor, of each thread; /proc/PID/stat counts in hundredths of a second.
        return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))

    before, begun = {name: spent(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begun
    return {name: (spent(pid) - before[name]) / took / 1e7 for name, pid in pids.items()}


def measure(name: str, source: str, seconds: float) -> Figures:
    """Measure one set-up."""
    program, values, limit = SETUPS[name]
    found = load_program_class(program)
    names = list(found.get_worker_config(found.config_schema.model_validate(values)).names)
    with tempfile.TemporaryDirectory(prefix="acoupi-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        wav = noise(root / "noise.wav")
        environment = {**os.environ, "HOME": str(root)}
        device = None
        if source == "microphone":
            environment, device = stack.enter_context(sound_card(RATE, wav, plugins=False)), NAME
        home = setup(root, name, device, duration=3, interval=10, **ALL_DAY)
        begun = time.monotonic()
        with running(home, names, environment) as pids:
            opened = wait(lambda: (state := read_state(home)) and state.device, "the microphone") - begun
            sound = wait(lambda: (state := read_state(home)) and state.frames, "sound") - begun
            answered = wait(lambda: responding_workers(home, names) == names, "the workers") - begun
            with contextlib.closing(Store.open(root / "store.db")) as store:
                wait(
                    lambda: store.summary()["states"].get("kept", {"recordings": 0})["recordings"] >= 2,
                    "two recordings",
                )
            memory = pss(pids)
            busy = cpu(pids, seconds)
        # A minute of the day that is long over, or far ahead.
        away = {"schedule_start": "03:00", "schedule_end": "03:01"}
        home = setup(root, name, device, duration=3, interval=10, **away)
        with running(home, names, environment) as pids:
            wait(lambda: responding_workers(home, names) == names, "the workers")
            time.sleep(5)  # what a start does is over
            idle = cpu(pids, seconds)
    return Figures(memory, limit, opened, sound, answered, busy, idle)


def measure_reference(seconds: float) -> Figures:
    """Measure the reference system, which records and files as our `separate` does."""
    with tempfile.TemporaryDirectory(prefix="acoupi-") as folder:
        root = Path(folder)
        with (
            sound_card(RATE, noise(root / "noise.wav")) as environment,
            reference.running(root, environment) as (pids, ready),
        ):
            wait(lambda: reference.recordings(root) >= 2, "two recordings of the reference system")
            memory = pss(pids)
            busy = cpu(pids, seconds)
    return Figures(memory, REFERENCE["separate"], ready, ready, ready, busy, {})


def median(runs: list[Figures]) -> Figures:
    """The median of each figure."""

    def of(parts: list[dict[str, float]]) -> dict[str, float]:
        return {name: statistics.median(part[name] for part in parts) for name in parts[0]}

    return Figures(
        of([each.pss for each in runs]),
        runs[0].limit,
        statistics.median(each.microphone_open for each in runs),
        statistics.median(each.sound for each in runs),
        statistics.median(each.workers_answer for each in runs),
        of([each.recording for each in runs]),
        of([each.window_closed for each in runs]),
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Memory, processor time and readiness of a sensor's processes.")
    parser.add_argument("--seconds", type=float, default=60, help="over which processor time is measured")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the medians are printed")
    parser.add_argument("--setup", choices=list(SETUPS), action="append")
    parser.add_argument("--source", choices=SOURCES, action="append")
    parser.add_argument("--no-reference", action="store_true", help="do not install and measure the reference system")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    sources, missing = asked.source or list(SOURCES), why_not()
    if missing is not None:
        print(f"without a virtual sound card: {missing}", file=sys.stderr)
        sources = [source for source in sources if source == "file"]
    beside = "not asked for" if asked.no_reference else missing or reference.install()
    if beside is not None:
        print(f"without the reference system: {beside}", file=sys.stderr)
    runs: dict[str, list[Figures]] = {}
    for _ in range(asked.repeat):  # in turns: a machine that becomes busy slows all of them
        for name in asked.setup or SETUPS:
            for source in sources:
                runs.setdefault(f"{name}, {source}", []).append(measure(name, source, asked.seconds))
        if beside is None:
            runs.setdefault("reference system, microphone", []).append(measure_reference(asked.seconds))
    results = {name: median(each) for name, each in runs.items()}
    if asked.json:
        json.dump({name: asdict(each) | {"total": each.total} for name, each in results.items()}, sys.stdout, indent=2)
        return
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}\n")
    columns = ("set-up", "PSS, MiB", "each", "at most", "of the reference", "open, s", "sound, s", "answer, s")
    print(f"| {' | '.join(columns)} | recording, % | closed, % |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    measured = results.get("reference system, microphone")
    for name, each in results.items():
        parts = ", ".join(f"{part} {value:.1f}" for part, value in each.pss.items())
        busy, idle = sum(each.recording.values()), sum(each.window_closed.values())
        whole = REFERENCE["separate, detector" if "detector" in name else "separate"]
        if measured is not None and "detector" not in name:
            whole = measured.total
        print(
            f"| {name} | {each.total:.1f} | {parts} | {each.limit:g} | {each.total / whole:.2f} x {whole:.0f} "
            f"| {each.microphone_open:.2f} | {each.sound:.2f} | {each.workers_answer:.2f} | {busy:.2f} | {idle:.2f} |"
        )
    for name, each in results.items():
        for what in ("recording", "window_closed"):
            parts = ", ".join(f"{part} {value:.3f}" for part, value in getattr(each, what).items())
            print(f"{name}, {what.replace('_', ' ')}: {parts} %", file=sys.stderr)


if __name__ == "__main__":
    main()
