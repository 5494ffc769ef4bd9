"""continuity: every frame that a real sensor's microphone delivers, once and in order, while processing is killed.

    python -m benchmarks.continuity [--seconds 600] [--kill-every 30] [--rate 48000 --rate 384000]

A virtual sensor (real Debian and systemd, PulseAudio's null sink as its sound card, ALSA and PortAudio over it) is
provisioned with the detector's program and records without a pause. Its microphone hears a count: each frame is its own
number over 2^31 frames, an hour and a half at 384 kHz. Needs root, as the sensors do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sqlite3
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from packaging.markers import default_environment

from acoupi_fleet.wheelhouse import Target, Wheelhouse, bundled_lock
from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.data import Capture
from tests.sensors import Rig, Sensor, why_not
from tests.sensors.rig import CACHE
from tests.support import wait_until

PATIENCE = 240
STORAGE = "var/lib/acoupi/storages"
PROCESSING = "acoupi-worker@processing.service"
RECORDING = "acoupi-worker@recording.service"
LOWS = 32_767
"""Values of the even frames; the odd ones count how often they went round. None is zero: silence is not of it."""
PERIOD = 2 * LOWS << 15
"""Frames until it starts again."""
PLAYER = """\
#!/usr/bin/python3
# Counts for ever: even frames hold 1 to 32767, odd ones -32768 + n while the even ones go round for the n-th time.
import array, sys
low = array.array("h", range(1, 32768))
both = array.array("h", bytes(4 * len(low)))
both[0::2] = low
while True:
    for high in range(-32768, 0):
        both[1::2] = array.array("h", [high]) * len(low)
        sys.stdout.buffer.write(both.tobytes())
"""
PLAYER_UNIT = """\
[Service]
Nice=-5
ExecStart=
ExecStart=/bin/sh -c '/usr/local/sbin/sensor-count | exec pacat -s unix:/run/sensor/microphone.sock -d microphone \
--raw --format=s16le --channels=1 --rate=$RATE --latency-msec=2000'
"""
SETTINGS = """\
{line}
[all:vars]
program=energy
program.timezone=UTC
program.microphone.device_name=ultramic
program.microphone.samplerate={rate}
program.recording.continuous=true
program.recording.duration=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
deployment.name=counter
"""

Samples = np.ndarray[Any, np.dtype[np.int16]]


@dataclass(frozen=True)
class Break:
    """A frame that does not follow on the one before it: its number in the stream, the one due, the one found."""

    frame: int
    due: int
    found: int | None


def count(first: int, frames: int) -> Samples:
    """The count from a number on."""
    pairs, odd = np.divmod(np.arange(first, first + frames, dtype=np.int64) % PERIOD, 2)
    return np.where(odd == 1, pairs // LOWS - 32_768, pairs % LOWS + 1).astype(np.int16)


def number(frames: Samples) -> int | None:
    """The number of the first of some frames; None if they are not of the count, or fewer than three."""
    if len(frames) < 3:
        return None
    first, second, third = (int(value) for value in frames[:3])
    even, odd, skipped = (first, second, 0) if first > 0 else (second, third, 1)
    found = (2 * ((odd + 32_768) * LOWS + even - 1) - skipped) % PERIOD
    return found if np.array_equal(count(found, 3), frames[:3]) else None


class Listener:
    """Follows the count through a stream.

    Attributes:
        counted: Frames of the count.
        starved: Frames of silence. The player is to blame for them: it was late, and the count goes on after them where
            it stopped. Silence in the place of sound that was lost would leave its numbers out, and so be a break.
        breaks: Where the count does not go on by one.
    """

    def __init__(self) -> None:
        self.counted = 0
        self.starved = 0
        self.breaks: list[Break] = []
        self._due: int | None = None

    def hear(self, frames: Samples) -> None:
        """Take in the next frames of the stream."""
        places = np.flatnonzero(frames)
        sound = frames[places]
        at = 0
        while at < len(sound):
            if self._due is not None:
                wrong = np.flatnonzero(sound[at:] != count(self._due, len(sound) - at))
                right = int(wrong[0]) if len(wrong) else len(sound) - at
                at, self._due = at + right, (self._due + right) % PERIOD
                if at == len(sound):
                    break
            found = number(sound[at:])
            if self._due is not None or found is None:
                frame = self.counted + self.starved + int(places[at])
                self.breaks.append(Break(frame, -1 if self._due is None else self._due, found))
            self._due = found
            if found is None:
                break  # what is left of these frames cannot be told
        self.counted += len(sound)
        self.starved += len(frames) - len(sound)


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        files: Recordings of the one stream, in the order of their frames.
        frames: That are in them.
        apart: Files that do not begin with the frame after the last one of the file before.
        overflows: That the recorder says of itself, in its files.
        others: Recordings of other openings of the microphone: there should be none.
        outputs: Recordings that the detector has listened to meanwhile.
        kills: Of the processing worker.
        restarts: Of it, and of the recording one.
    """

    rate: int
    files: int
    frames: int
    heard: Listener
    apart: int
    overflows: int
    others: int
    outputs: int
    kills: int
    restarts: tuple[int, int]

    @property
    def gapless(self) -> bool:
        """Whether each frame is there once, in order."""
        return not (self.heard.breaks or self.apart or self.overflows or self.others or self.restarts[1])


def run(sensor: Sensor, fleet: Callable[..., Any], folder: Path, rate: int, seconds: float, kill_every: float) -> Run:
    """Let a sensor record for some seconds, and kill its processing worker from time to time.

    Args:
        sensor: Is (re)provisioned.
        fleet: The workstation's command line, as in the tests.
        folder: For the inventory and the sound.
        rate: Hz.
        seconds: Of recorded sound.
        kill_every: Seconds.
    """
    _play(sensor, folder, rate)
    inventory = folder / "sensors.ini"
    inventory.write_text(SETTINGS.format(line=sensor.inventory_line(), rate=rate))
    done = fleet("provision", inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    restarts = [_restarts(sensor, unit) for unit in (PROCESSING, RECORDING)]
    kills, last_kill = 0, time.monotonic()
    deadline = last_kill + 3 * seconds + PATIENCE
    while (state := _state(sensor)).get("frames", 0) < seconds * rate:
        assert time.monotonic() < deadline, f"after {deadline - last_kill:.0f} s there is too little sound: {state}"
        if time.monotonic() - last_kill > kill_every:
            last_kill = time.monotonic()
            kills += _kill(sensor)
        time.sleep(1)
    wait_until(lambda: _pid(sensor) != "0", PATIENCE, "the processing worker to be back")
    wait_until(lambda: _outputs(sensor, rate), PATIENCE, "a detector's word")
    ended = tuple(
        _restarts(sensor, unit) - before for unit, before in zip((PROCESSING, RECORDING), restarts, strict=True)
    )
    sensor.ssh("sudo systemctl stop acoupi.target")
    return _judge(sensor, str(state["stream"]), rate, kills, ended)


def _play(sensor: Sensor, folder: Path, rate: int) -> None:
    """Let the microphone hear the count, and no recorder the microphone."""
    sensor.run("sudo systemctl stop acoupi.target", check=False)
    player = sensor.root / "usr/local/sbin/sensor-count"
    player.write_text(PLAYER)
    player.chmod(0o755)
    unit = sensor.root / "etc/systemd/system/sound.service.d/count.conf"
    unit.parent.mkdir(exist_ok=True)
    unit.write_text(PLAYER_UNIT)
    sensor.ssh("sudo systemctl daemon-reload")
    with wave.open(str(folder / "rate.wav"), "wb") as wav:  # says the rate; the player counts
        wav.setparams((1, 2, rate, 0, "NONE", ""))
        wav.writeframes(bytes(2))
    sensor.play(folder / "rate.wav")


def _state(sensor: Sensor) -> dict[str, Any]:
    told = sensor.run("sudo cat /var/lib/acoupi/.acoupi/run/recorder.json", check=False).stdout
    found: dict[str, Any] = json.loads(told) if told else {}
    return found


def _pid(sensor: Sensor) -> str:
    return sensor.ssh(f"systemctl show --property=MainPID --value {PROCESSING}")


def _restarts(sensor: Sensor, unit: str) -> int:
    return int(sensor.ssh(f"systemctl show --property=NRestarts --value {unit}"))


def _kill(sensor: Sensor) -> bool:
    """Kill the processing worker, as a crash would. Says whether there was one."""
    pid = _pid(sensor)
    return pid != "0" and sensor.run(f"sudo kill -9 {pid}", check=False).returncode == 0


def _outputs(sensor: Sensor, rate: int) -> int:
    """Recordings that the detector has listened to."""
    path = sensor.root / STORAGE / "metadata.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as store:
        row = store.execute(
            "SELECT count(DISTINCT r.seq) FROM recording r JOIN model_output m ON m.recording = r.seq"
            " WHERE r.samplerate = ?",
            (rate,),
        ).fetchone()
    return int(row[0])


def _judge(sensor: Sensor, stream: str, rate: int, kills: int, restarts: tuple[int, ...]) -> Run:
    """Listen to all that was recorded."""
    found: list[tuple[Path, Capture]] = []
    others = 0
    for path in (sensor.root / STORAGE).rglob("*.wav"):
        made = read_guano(path)
        assert made is not None, path
        if made[0].samplerate == rate:
            others += made[1].stream != stream
            found += [(path, made[1])] if made[1].stream == stream else []
    found.sort(key=lambda each: each[1].first_frame)
    heard, end, apart = Listener(), 0, 0
    for path, capture in found:
        with wave.open(str(path)) as wav:
            frames = np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
        assert len(frames) == capture.frames, path
        apart += capture.first_frame != end
        end = capture.first_frame + capture.frames
        heard.hear(frames)
    overflows = sum(len(capture.overflows) for _, capture in found)
    outputs = _outputs(sensor, rate)
    return Run(rate, len(found), end, heard, apart, overflows, others, outputs, kills, (restarts[0], restarts[1]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="of recorded sound, for each rate")
    parser.add_argument(
        "--kill-every", type=float, default=30, help="seconds between two kills of the processing worker"
    )
    parser.add_argument("--rate", type=int, action="append", help="Hz; 48000 and 384000 if left out")
    asked = parser.parse_args()
    if (reason := why_not()) is not None:
        raise SystemExit(f"continuity: {reason}")
    fill_wheels()
    print("| rate | files | frames | breaks | silence of the player | kills | listened to | |")
    print("|---|---|---|---|---|---|---|---|")
    failed = False
    with Rig.temporary() as rig, tempfile.TemporaryDirectory() as folder:
        for rate in asked.rate or (48_000, 384_000):
            (sensor,) = rig.add(1)
            made = run(sensor, rig.fleet, Path(folder), rate, asked.seconds, asked.kill_every)
            rig.take_away([sensor])
            print(
                f"| {rate} | {made.files} | {made.frames} | {len(made.heard.breaks)} | {made.heard.starved} |"
                f" {made.kills} | {made.outputs} | {'every frame once, in order' if made.gapless else made} |",
                flush=True,
            )
            failed = failed or not made.gapless
    if failed:
        raise SystemExit("continuity: not every frame is there once, in order")


def fill_wheels() -> None:
    """Fetch the wheels for the sensors, once: there is no package index in their network."""
    markers = {key: str(value) for key, value in default_environment().items()}
    markers |= {"python_version": "3.11", "python_full_version": "3.11.2", "implementation_version": "3.11.2"}
    target = Target(machine=platform.machine(), glibc="2.36", markers=markers)
    Wheelhouse(bundled_lock(), CACHE / "acoupi-fleet" / "wheels").ensure(target)


if __name__ == "__main__":
    main()
