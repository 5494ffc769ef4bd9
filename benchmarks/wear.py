"""wear: what a sensor writes to its card beyond the sound, at the block device. Root only.

    python -m benchmarks.wear [--seconds 900]

Sensors with the real processes of the program `energy`, its messenger and a receiver, each on a card of its own, run
beside each other: 3 s of 48 kHz at intervals of 3, 10 and 60 s, and one whose window is closed. All that reaches the
device counts: files, the file system's own journal, SQLite's log, our logs. Beside each recording sensor a bare one
only writes such a file, fsyncs it, gives it its name, fsyncs the folder and moves the file into another one: what that
costs no recorder can save, and what ours writes beyond it is what is judged. One heartbeat falls into the measured
time, so that a day has more of them than the usual 24. What systemd's journal writes is not ours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from acoupi_runtime.disk import sync_dir
from acoupi_runtime.store import Store
from benchmarks.device import UNITS, Device, calls, ended
from benchmarks.powercut import Card, card, why_not
from tests.receiver import receiving

RATE = 48_000
DURATION = 3
MOST_PER_RECORDING = 100_000
MOST_A_DAY = 20_000_000
SETUPS: tuple[float | None, ...] = (3, 10, 60, None)
LOG_PAGES = 1200
"""More than SQLite lets its log grow to."""
SETTLED = 30.0
"""Seconds after which what a start does is over."""
PATIENCE = 300.0


@dataclass(frozen=True)
class Point:
    """Where a sensor stands."""

    written: int
    recordings: int
    commits: int
    at: float


@dataclass(frozen=True)
class Figures:
    """What one sensor wrote."""

    interval: float | None
    recordings: int
    beyond: float
    """Bytes beyond the sound."""
    commits: int
    seconds: float

    bare: float
    """Bytes beyond the sound that the bare one wrote."""

    @property
    def a_day(self) -> float:
        return self.beyond * 86_400 / self.seconds

    @property
    def each(self) -> float | None:
        return (self.beyond - self.bare) / self.recordings if self.recordings else None

    def row(self) -> str:
        if not self.recordings:
            return f"| window closed | | | | | {self.a_day / 1e6:.1f} |"
        columns = (
            f"{DURATION} s every {self.interval:g} s",
            f"{self.recordings}",
            f"{self.bare / self.recordings / 1e3:.0f}",
            f"{(self.beyond - self.bare) / self.recordings / 1e3:.0f}",
            f"{self.commits / self.recordings:.2f}",
            f"{self.a_day / 1e6:.0f}",
        )
        return f"| {' | '.join(columns)} |"


class Bare:
    """Writes files as any recorder has to that keeps them over a power cut, at intervals, in a thread of its own."""

    def __init__(self, made: Card, interval: float) -> None:
        self.card, self._interval = made, interval
        self.files = 0
        self._stop = threading.Event()
        self._spool, self._filed = made.path / "spool", made.path / "filed"
        self._spool.mkdir()
        self._filed.mkdir()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        sound = bytes(range(256)) * (DURATION * RATE * 2 // 256)
        while not self._stop.wait(self._interval):
            part, whole = self._spool / f"{self.files}.part", self._spool / f"{self.files}.wav"
            with part.open("xb") as file:
                file.write(sound)
                file.flush()
                os.fsync(file.fileno())
            part.rename(whole)
            sync_dir(self._spool)
            whole.rename(self._filed / whole.name)
            self.files += 1

    def point(self) -> Point:
        self.card.sync()
        return Point(self.card.written, self.files, 0, time.monotonic())


def configured(wav: Path, url: str, interval: float | None, heartbeat: float) -> dict[str, Any]:
    window = {"schedule_start": "00:00:00", "schedule_end": "00:00:00"}
    if interval is None:
        begin = datetime.now(UTC) + timedelta(hours=12)
        window = {"schedule_start": f"{begin:%H:%M}:00", "schedule_end": f"{begin + timedelta(minutes=1):%H:%M}:00"}
    return {
        "timezone": "UTC",
        "microphone": {"device_name": f"file:{wav}", "samplerate": RATE},
        "recording": {"duration": DURATION, "interval": interval or 10, **window},
        "messaging": {"http": {"base_url": url}, "heartbeat_interval": heartbeat},
    }


def rows(device: Device) -> int:
    if not device.store.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{device.store}?mode=ro", uri=True, timeout=60)) as store:
        if not store.execute("PRAGMA user_version").fetchone()[0]:
            return 0  # its tables are just being made
        return int(store.execute("SELECT count(*) FROM recording").fetchone()[0])


def grow_log(device: Device) -> None:
    """Let SQLite's log reach the size that it keeps: until then, for a sensor's first hours, each commit costs more."""
    with contextlib.closing(Store.open(device.store)) as store:
        for _ in range(LOG_PAGES):
            store.count("grown")


def point(device: Device) -> Point:
    device.card.sync()
    log = (device.folder / "syncs").read_text(errors="replace")
    commits = sum("store.db-wal" in line for line in log.splitlines())
    return Point(device.card.written, rows(device), commits, time.monotonic())


def started(folder: Path, made: Card, values: dict[str, Any]) -> Device:
    watch = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-y", "-e", "trace=fsync,fdatasync"]
    return Device(folder, made, "energy", values, before=[*watch, "-A", "-o", str(folder / "syncs")])


def measure(seconds: float) -> list[Figures]:
    """Run all sensors side by side."""
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wear-")))
        receiver = stack.enter_context(receiving())
        wav = calls(base / "calls.wav", 20, RATE, 1)
        devices, bares = [], []
        for number, interval in enumerate(SETUPS):
            folder = base / str(number)
            folder.mkdir()
            made = stack.enter_context(card(folder, 1024))
            values = configured(wav, receiver.url, interval, seconds)
            devices.append(stack.enter_context(ended(started(folder, made, values))))
            if interval is not None:
                folder = base / f"bare-{number}"
                folder.mkdir()
                bares.append(Bare(stack.enter_context(card(folder, 1024)), interval))
                stack.callback(bares[-1].close)
        for device in devices:
            device.keep_up()
        wait(lambda: all(rows(one) for one, interval in zip(devices, SETUPS, strict=True) if interval))
        for device in devices:
            grow_log(device)
        time.sleep(SETTLED)
        before, bare_before = [point(one) for one in devices], [one.point() for one in bares]
        time.sleep(seconds)
        after, bare_after = [point(one) for one in devices], [one.point() for one in bares]
        for device in devices:
            if any(device.restarts.values()) or not all(device.running(name) for name in UNITS):
                raise SystemExit(f"wear: a process ended meanwhile\n{device.journal()}")
    floors = [
        beyond(*each) / max(1, each[1].recordings - each[0].recordings)
        for each in zip(bare_before, bare_after, strict=True)
    ]
    return [figures(*each) for each in zip(SETUPS, before, after, [*floors, 0.0], strict=True)]


def beyond(before: Point, after: Point) -> float:
    """Bytes beyond the sound."""
    return after.written - before.written - (after.recordings - before.recordings) * DURATION * RATE * 2


def figures(interval: float | None, before: Point, after: Point, floor: float) -> Figures:
    recordings = after.recordings - before.recordings
    seconds = after.at - before.at
    return Figures(
        interval, recordings, beyond(before, after), after.commits - before.commits, seconds, floor * recordings
    )


def wait(is_so: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit("wear: the sensors do not record")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a sensor writes to its card beyond the sound.")
    parser.add_argument("--seconds", type=float, default=900)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was mounted and started is taken away
    if (reason := why_not()) is not None:
        raise SystemExit(f"wear: {reason}")
    results = measure(arguments.seconds)
    print(
        "| recordings | number | kB each, bare | kB each, ours beyond | durable commits | MB a day beyond the sound |"
    )
    print("|---|---|---|---|---|---|")
    for each in results:
        print(each.row())
    bad = [one for one in results if (one.each or 0) > MOST_PER_RECORDING]
    bad += [one for one in results if one.interval is None and one.a_day > MOST_A_DAY]
    if bad:
        raise SystemExit(
            "wear: more than 100 kB a recording beyond the bare file, or 20 MB a day with the window closed"
        )


if __name__ == "__main__":
    main()
