"""What tests of the capture path share: simulated time, a sound card that fails on order, a signal that counts."""

from __future__ import annotations

import threading
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.audio.recorder import Recorder
from acoupi_runtime.audio.ring import Ring
from acoupi_runtime.audio.source import Source
from acoupi_runtime.audio.state import RecorderState
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.data import Capture, Deployment, Recording
from acoupi_runtime.errors import DeviceUnavailableError
from acoupi_runtime.home import Home

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC).timestamp()
STEPS = 1 << 16
"""The signal that counts starts again after so many frames: 16 bits hold no more."""
PLACE = Deployment(name="Old oak, Grünewald", latitude=52.5, longitude=-13.25)


class SimulatedClock:
    """Time that passes only when it is waited for. Its end stops who waits."""

    boot_id = "simulated"

    def __init__(self, *, wall: float = NOON, steady: float = 5000.0) -> None:
        self.now = steady
        self.offset = wall - steady
        self.is_synced = False
        self.end = float("inf")
        self._events: list[tuple[float, Callable[[], None]]] = []

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen some seconds from now."""
        self._events.append((self.now + seconds, event))
        self._events.sort(key=lambda each: each[0])

    def steady(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.offset

    def synced(self) -> bool:
        return self.is_synced

    def will_sync(self) -> bool:
        return not self.is_synced

    def wait(self, stop: threading.Event, seconds: float) -> None:
        self.now += seconds
        while self._events and self._events[0][0] <= self.now:
            self._events.pop(0)[1]()
        if self.now >= self.end:
            stop.set()


@dataclass
class Card:
    """A sound card: a `Source` whose every frame is its own number (modulo 2^16), or what `sound` says.

    Its crystal may be off (`ppm`), its blocks may come late by chance (`jitter`, in s), it may lose sound, with or
    without saying so, and be pulled out. All times are in s of the simulated clock.
    """

    clock: SimulatedClock
    samplerate: int = 48_000
    channels: int = 1
    dtype: str = "<i2"
    block: int = 8192
    ppm: float = 0.0
    jitter: float = 0.0
    sound: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None
    plugged: bool = True
    dead: bool = False
    opened: int = 0
    resets: int = 0
    _losses: list[tuple[int, bool]] = field(default_factory=list)

    def open(self, ring: Ring) -> _CardStream:
        if not self.plugged:
            raise DeviceUnavailableError("card: is not plugged in; plug it in")
        self.opened += 1
        return _CardStream(self, ring)

    def reset(self) -> None:
        self.resets += 1

    def lose(self, frames: int, *, says_so: bool) -> None:
        """Let so many frames get lost right now."""
        self._losses.append((frames, says_so))


class _CardStream:
    device = "card"

    def __init__(self, card: Card, ring: Ring) -> None:
        self._card = card
        self._ring = ring
        self._started = card.clock.steady()
        self._lost = 0
        self._random = np.random.default_rng(1)

    def instant(self, frame: int) -> float:
        """When the card hears its n-th frame, delivered or lost."""
        card = self._card
        return self._started + frame / (card.samplerate * (1 + card.ppm * 1e-6))

    def poll(self) -> None:
        card = self._card
        self._bring()
        if not card.plugged:
            raise DeviceUnavailableError("card: is gone; plug it in")

    def _bring(self) -> None:
        card, flagged = self._card, False
        while card._losses:
            lost, says_so = card._losses.pop(0)
            self._lost += lost
            flagged = flagged or says_so
        while not card.dead:
            first = self._ring.head + self._lost
            ready = self.instant(first + card.block)
            if ready > card.clock.steady():
                return
            numbers = np.arange(first, first + card.block)
            block = card.sound(numbers) if card.sound else (numbers % STEPS - STEPS // 2)
            if card.dtype == "<i4":
                block = block.astype(np.int64) << 8
            frames = np.repeat(block.astype(card.dtype)[:, None], card.channels, axis=1)
            late = float(self._random.exponential(card.jitter)) if card.jitter else 0.0
            self._ring.write(frames, ready + late, overflow=flagged)
            flagged = False

    def close(self) -> None:
        pass


@dataclass
class Kept:
    """A sink that keeps what it is told."""

    all: list[tuple[Recording, Capture]] = field(default_factory=list)

    def completed(self, recording: Recording, capture: Capture) -> None:
        self.all.append((recording, capture))

    @property
    def recordings(self) -> list[Recording]:
        return [recording for recording, _ in self.all]

    @property
    def captures(self) -> list[Capture]:
        return [capture for _, capture in self.all]


@dataclass
class Run:
    """What a recorder did in simulated time."""

    kept: Kept
    states: list[RecorderState]
    clock: SimulatedClock


def configured(folder: Path, **sections: dict[str, Any]) -> BasicConfig:
    """A configuration that records all day in UTC into a folder, changed as wanted."""
    recording = {"schedule_start": "00:00", "schedule_end": "00:00", **sections.pop("recording", {})}
    paths = {"recordings": str(folder / "recordings"), **sections.pop("paths", {})}
    microphone = {"samplerate": 48_000, **sections.pop("microphone", {})}
    return BasicConfig.model_validate(
        {"timezone": "UTC", "recording": recording, "paths": paths, "microphone": microphone, **sections}
    )


def simulate(
    folder: Path, config: BasicConfig, seconds: float, *, clock: SimulatedClock, source: Source | None = None
) -> Run:
    """Let a recorder run for some seconds of simulated time."""
    home = Home(folder / "home")
    kept, states = Kept(), list[RecorderState]()
    clock.end = clock.steady() + seconds

    def alive(_: str) -> None:
        states.append(RecorderState.model_validate_json(home.recorder_file.read_bytes()))

    recorder = Recorder(config, home, deployment=lambda: PLACE, sink=kept, alive=alive, clock=clock, source=source)
    recorder.run(threading.Event())
    return Run(kept, states, clock)


def counting_wav(path: Path, samplerate: int, *, bits: int = 16, channels: int = 1) -> Path:
    """A WAV that counts, and can be played in a loop without a seam: all values of 16 bits, one after the other."""
    numbers = np.repeat(np.arange(STEPS, dtype=np.int64) - STEPS // 2, channels)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(samplerate)
        wide = (numbers << (bits - 16)).astype("<i4").view(np.uint8).reshape(-1, 4)
        file.writeframes(wide[:, : bits // 8].tobytes())
    return path


def samples(path: Path) -> np.ndarray[Any, Any]:
    """The integers in a file of ours, as an independent reader (libsndfile) sees them; 24 bits stand in 32."""
    import soundfile

    kind = "int16" if soundfile.info(str(path)).subtype == "PCM_16" else "int32"
    found: np.ndarray[Any, Any] = soundfile.read(str(path), dtype=kind, always_2d=True)[0]
    return found >> 8 if kind == "int32" else found


def breaks(values: np.ndarray[Any, Any]) -> int:
    """How often a signal that counts does not go on by one."""
    return int(np.count_nonzero((np.diff(values.astype(np.int64)) - 1) % STEPS))


def joined(kept: Kept) -> np.ndarray[Any, Any]:
    """All recordings, one after the other, in the order of their frames; first channel."""
    ordered = sorted(kept.all, key=lambda each: each[1].first_frame)
    return np.concatenate([samples(recording.path)[:, 0] for recording, _ in ordered if recording.path])


def check_files(kept: Kept) -> None:
    """Each file holds what was said of it, and says the same of itself."""
    for recording, capture in kept.all:
        assert recording.path is not None
        assert len(samples(recording.path)) == capture.frames
        assert read_guano(recording.path) == (recording, capture)
