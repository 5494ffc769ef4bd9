"""footprint: memory, processor time and readiness of a sensor's processes, Redis included, in three set-ups.

    python benchmarks/footprint.py [--seconds 60] [--json] [--setup separate ...]

Memory is PSS as on a device that runs nothing else, after the first recordings have been filed. Processor
time is that of all threads, in percent of one core. The microphone is a file: sounddevice and ALSA come on top.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
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

SETUPS: dict[str, tuple[str, dict[str, Any], float]] = {
    "separate": ("default", {}, 110),
    "separate, detector": ("energy", {}, 135),
    "shared": ("default", {"isolation": "shared"}, 80),
}
"""Program, configuration, and the MiB it may take."""
ALL_DAY = {"schedule_start": "00:00", "schedule_end": "00:00"}
PATIENCE = 120.0


@dataclass
class Figures:
    """What was measured of one set-up; MiB, seconds, percent of a core."""

    pss: dict[str, float]
    limit: float
    microphone_open: float
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


def setup(root: Path, name: str, **recording: Any) -> Home:
    """Write a home for a set-up."""
    program, values, _ = SETUPS[name]
    values = values | {
        "microphone": {"device_name": f"file:{root / 'noise.wav'}"},
        "recording": recording,
        "paths": {"recordings": str(root / "recordings"), "db_metadata": str(root / "store.db")},
    }
    home = Home(root / "home")
    setup_program(home, program, load_program_class(program).config_schema.model_validate(values))
    return home


@contextlib.contextmanager
def running(home: Home, names: list[str]) -> Iterator[dict[str, int]]:
    """Run Redis and the workers as their units do; their processes by name."""
    redis = ["redis-server", str(home.config_dir / "redis.conf"), "--unixsocket", str(home.redis_socket)]
    script = str(home.bin_dir / "acoupi-workers-start.sh")
    with contextlib.ExitStack() as stack:

        def start(command: list[str], name: str) -> int:
            with (home.root / f"{name}.err").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(home.root)})
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


def measure(name: str, seconds: float) -> Figures:
    """Measure one set-up."""
    program, values, limit = SETUPS[name]
    found = load_program_class(program)
    names = list(found.get_worker_config(found.config_schema.model_validate(values)).names)
    with tempfile.TemporaryDirectory(prefix="acoupi-") as folder:
        root = Path(folder)
        noise(root / "noise.wav")
        home = setup(root, name, duration=3, interval=10, **ALL_DAY)
        begun = time.monotonic()
        with running(home, names) as pids:
            opened = wait(lambda: (state := read_state(home)) and state.frames, "the microphone") - begun
            answered = wait(lambda: responding_workers(home, names) == names, "the workers") - begun
            with contextlib.closing(Store.open(root / "store.db")) as store:
                wait(
                    lambda: store.summary()["states"].get("kept", {"recordings": 0})["recordings"] >= 2,
                    "two recordings",
                )
            memory = pss(pids)
            busy = cpu(pids, seconds)
        home = setup(root, name, duration=3, interval=10, schedule_start="00:00", schedule_end="00:01")
        with running(home, names) as pids:
            wait(lambda: responding_workers(home, names) == names, "the workers")
            time.sleep(5)  # what a start does is over
            idle = cpu(pids, seconds)
    return Figures(memory, limit, opened, answered, busy, idle)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Memory, processor time and readiness of a sensor's processes.")
    parser.add_argument("--seconds", type=float, default=60, help="over which processor time is measured")
    parser.add_argument("--setup", choices=list(SETUPS), action="append")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {name: measure(name, arguments.seconds) for name in arguments.setup or SETUPS}
    if arguments.json:
        json.dump(
            {name: asdict(figures) | {"total": figures.total} for name, figures in results.items()},
            sys.stdout,
            indent=2,
        )
        return
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores\n")
    print("| set-up | PSS, MiB | each | at most | open after, s | answer after, s | recording, % | window closed, % |")
    print("|---|---|---|---|---|---|---|---|")
    for name, each in results.items():
        parts = ", ".join(f"{part} {value:.1f}" for part, value in each.pss.items())
        busy, idle = sum(each.recording.values()), sum(each.window_closed.values())
        print(
            f"| {name} | {each.total:.1f} | {parts} | {each.limit:g} | {each.microphone_open:.2f} "
            f"| {each.workers_answer:.2f} | {busy:.2f} | {idle:.2f} |"
        )
    for name, each in results.items():
        for what in ("recording", "window_closed"):
            parts = ", ".join(f"{part} {value:.3f}" for part, value in getattr(each, what).items())
            print(f"{name}, {what.replace('_', ' ')}: {parts} %", file=sys.stderr)


if __name__ == "__main__":
    main()
