"""The capture path measured: every frame once, in order, across all files; what it costs; how right its times are.

    python -m benchmarks.capture --seconds 600

Each row of the first table is a recorder as a process of its own, in real time, whose microphone is a file in which
each frame is its own number (modulo 2^16); or a virtual sound card behind PortAudio, for what that costs: what it hears
is counted by `benchmarks.continuity`. The second table is a day of simulated time, with a crystal that is off and
blocks that are late by chance.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.audio.paths import spool_dir
from acoupi_runtime.audio.state import RecorderState, read_state
from acoupi_runtime.home import Home
from benchmarks.soundcard import NAME, sound_card, why_not
from tests.audio_rig import STEPS, Card, Kept, SimulatedClock, breaks, configured, counting_wav, samples, simulate

ROOT = Path(__file__).parents[1]
WITHOUT_PAUSE = {"duration": 3, "continuous": True}
EVERY_10_S = {"duration": 3, "interval": 10}
CLOSED = {**EVERY_10_S, "schedule_start": "03:00", "schedule_end": "03:01"}
ROWS: list[tuple[str, int, dict[str, Any]]] = [
    ("48 kHz, without a pause", 48_000, WITHOUT_PAUSE),
    ("384 kHz, without a pause", 384_000, WITHOUT_PAUSE),
    ("48 kHz, 3 s every 10 s", 48_000, EVERY_10_S),
    ("48 kHz, window closed", 48_000, CLOSED),
]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    """Memory of a process, with its share of what others use too."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(rollup.split("\nPss:")[1].split()[0]) / 1024


def wait_for_sound(home: Home, process: subprocess.Popen[bytes]) -> RecorderState:
    """The recorder's state, once its start is over."""
    while process.poll() is None:
        state = read_state(home)
        if state is not None and state.frames >= 3 * state.samplerate:
            return state
        time.sleep(0.1)
    raise SystemExit("the recorder ended at once")


def record(folder: Path, rate: int, recording: dict[str, Any], seconds: float, *, card: bool = False) -> str:
    """Run one recorder, and say what came of it."""
    sound = counting_wav(folder / "count.wav", rate)
    if not card:
        return listen(folder, f"file:{sound}", rate, recording, seconds)
    with sound_card(rate, sound) as environment:
        return listen(folder, NAME, rate, recording, seconds, environment)


def listen(
    folder: Path,
    device: str,
    rate: int,
    recording: dict[str, Any],
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run one recorder in this environment, with this microphone."""
    microphone = {"device_name": device, "samplerate": rate}
    config = configured(folder, microphone=microphone, recording=recording)
    # It is afternoon here, so that the closed window does not open while this runs.
    config = config.model_copy(update={"timezone": "Etc/GMT-12" if time.gmtime().tm_hour < 12 else "UTC"})
    home = Home(folder / "home")
    home.config_dir.mkdir(parents=True)
    home.program_file.write_text(config.model_dump_json(), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.audio_process", str(home.root), "0"], cwd=ROOT, env=environment
    )
    try:
        wait_for_sound(home, process)
        before, began = cpu_seconds(process.pid), time.monotonic()
        time.sleep(seconds)
        cpu = 100 * (cpu_seconds(process.pid) - before) / (time.monotonic() - began)
        memory, state = pss_mib(process.pid), read_state(home)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(60)
        ended = time.monotonic() - began
    finally:
        process.kill()
        process.wait()
    assert state is not None
    frames, torn, files = check(spool_dir(config), joined=bool(recording.get("continuous")))
    return (
        f"{files} | {frames} | {torn if environment is None else '-'} | {state.overflows} | {state.lost_seconds:g} | "
        f"{cpu:.2f} % | {memory:.1f} MiB | {1000 * ended:.0f} ms"
    )


def check(spool: Path, *, joined: bool) -> tuple[int, int, int]:
    """Frames, breaks in the count within and between the files, and files."""
    found = Kept([each for path in spool.glob("*.wav") if (each := read_guano(path)) is not None])
    frames = torn = 0
    expected: int | None = None
    for recording, capture in sorted(found.all, key=lambda each: each[1].first_frame):
        assert recording.path is not None
        numbers = samples(recording.path)[:, 0].astype(np.int64) + STEPS // 2
        torn += breaks(numbers) + (int(numbers[0]) != capture.first_frame % STEPS)
        torn += joined and expected is not None and capture.first_frame != expected
        frames += len(numbers)
        expected = capture.first_frame + len(numbers)
    return frames, torn, len(found.all)


def drift(folder: Path, ppm: float, jitter: float, hours: float) -> str:
    """Record through a day of simulated time, and say how wrong the times were."""
    clock, silence = SimulatedClock(), np.zeros(8192, "<i2")
    card = Card(clock, samplerate=8000, ppm=ppm, jitter=jitter, sound=lambda _: silence)
    config = configured(folder, microphone={"samplerate": 8000}, recording={"duration": 3, "interval": 60})
    run = simulate(folder, config, hours * 3600 - 30, clock=clock, source=card)
    worst_time = worst_start = 0.0
    for number, capture in enumerate(run.kept.captures):
        heard = 5000 + capture.first_frame / (8000 * (1 + ppm * 1e-6))
        worst_time = max(worst_time, abs(capture.boottime - heard))
        worst_start = max(worst_start, abs(heard - (5000 + 60 * number)))
    rate = run.kept.captures[-1].true_samplerate or 0
    return (
        f"{len(run.kept.all)} | {1000 * worst_time:.2f} ms | {1000 * worst_start:.2f} ms | "
        f"{1e6 * (rate / 8000 - 1):+.2f} ppm"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of real time, for each row")
    parser.add_argument("--hours", type=float, default=24, help="of simulated time, for each row")
    asked = parser.parse_args()
    print("| recorder | files | frames | breaks | overflows | lost s | CPU | PSS | ends in |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, rate, recording in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {record(Path(folder), rate, recording, asked.seconds)} |", flush=True)
    for rate in (48_000, 384_000) if why_not() is None else ():
        with tempfile.TemporaryDirectory() as folder:
            row = record(Path(folder), rate, WITHOUT_PAUSE, asked.seconds, card=True)
            print(f"| {rate // 1000} kHz, without a pause, through PortAudio | {row} |", flush=True)
    print("\n| crystal | late by | recordings | worst time | worst start | measured |")
    print("|---|---|---|---|---|---|")
    for ppm, jitter in ((0.0, 0.0), (100.0, 0.002), (-180.0, 0.002)):
        with tempfile.TemporaryDirectory() as folder:
            print(
                f"| {ppm:+g} ppm | {1000 * jitter:g} ms | {drift(Path(folder), ppm, jitter, asked.hours)} |", flush=True
            )


if __name__ == "__main__":
    main()
