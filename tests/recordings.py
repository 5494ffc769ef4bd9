"""Real recordings for tests, as the recorder leaves them in the spool, and a program's work on them."""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acoupi_runtime.audio.flacfile import FlacFile
from acoupi_runtime.audio.guano import compose
from acoupi_runtime.audio.wavfile import Format, WavFile
from acoupi_runtime.clock import SystemClock
from acoupi_runtime.data import Capture, Deployment, Recording

if TYPE_CHECKING:
    from acoupi_runtime.configuration import BasicConfig

PLACE = Deployment(
    id=uuid.UUID(int=7), name="meadow", latitude=51.5, longitude=-0.1, started_on=datetime(2026, 5, 1, tzinfo=UTC)
)


@dataclass
class SetClock:
    """A clock that a test sets: the seam where a machine cannot jump its own."""

    boot_id: str = "boot-1"
    since_boot: float = 100.0
    offset: float = 1_780_000_000.0
    is_synced: bool = True
    keeper: bool = True
    waited: list[float] = field(default_factory=list)

    def steady(self) -> float:
        return self.since_boot

    def wall(self) -> float:
        return self.offset + self.since_boot

    def synced(self) -> bool:
        return self.is_synced

    def will_sync(self) -> bool:
        return self.keeper

    def wait(self, stop: threading.Event, seconds: float) -> None:
        del stop
        self.waited.append(seconds)


def tone(seconds: float, samplerate: int, hertz: float, at: float, length: float, level: float = 0.1) -> np.ndarray:
    """Quiet noise with one tone in it; full scale is 1."""
    time = np.arange(round(seconds * samplerate)) / samplerate
    sound = np.random.default_rng(1).normal(0, 0.003, time.size)
    during = (time >= at) & (time < at + length)
    return np.where(during, sound + level * np.sin(2 * np.pi * hertz * time), sound)


def describe(path: Path, frames: int = 4800, samplerate: int = 48_000, **facts: Any) -> tuple[Recording, Capture]:
    """A recording and how it came about; `facts` may name fields of both."""
    capture = {"stream": "s", "first_frame": 0, "boot_id": SystemClock().boot_id, "boottime": 1.0, "clock_synced": True}
    capture |= {key: value for key, value in facts.items() if key in Capture.model_fields}
    described = {"created_on": datetime(2026, 5, 7, 19, 30, 15, tzinfo=UTC), "deployment": PLACE}
    described |= {key: value for key, value in facts.items() if key in Recording.model_fields}
    recording = Recording(duration=frames / samplerate, samplerate=samplerate, path=path, **described)
    return recording, Capture(frames=frames, **capture)


def record(
    spool: Path,
    sound: np.ndarray | None = None,
    samplerate: int = 48_000,
    bits: int = 16,
    kind: str = "wav",
    **facts: Any,
) -> tuple[Recording, Capture]:
    """Write a complete recording into the spool, with the recorder's own writers."""
    sound = np.zeros(4800) if sound is None else sound
    columns = sound.reshape(len(sound), -1)
    spool.mkdir(parents=True, exist_ok=True)
    identity = facts.pop("id", None) or uuid.uuid4()
    path = spool / f"{identity}.{kind}"
    channels = columns.shape[1]
    recording, capture = describe(path, len(columns), samplerate, **facts, id=identity, audio_channels=channels)
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        text = compose(recording, capture)
        writer = (WavFile if kind == "wav" else FlacFile)(descriptor, Format(samplerate, channels, bits), text)
        writer.write(np.round(columns * (2 ** (bits - 1) - 1)).astype("<i2" if bits == 16 else "<i4"))
        writer.finish(text)
    finally:
        os.close(descriptor)
    part.rename(path)
    return recording, capture


def leave_unfinished(spool: Path, sound: np.ndarray, samplerate: int) -> None:
    """Leave a recording in the spool as a power cut leaves it: without sizes, and without its name."""
    spool.mkdir(parents=True, exist_ok=True)
    identity = uuid.uuid4()
    path = spool / f"{identity}.wav"
    text = compose(*describe(path, len(sound), samplerate, id=identity))
    descriptor = os.open(f"{path}.part", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        WavFile(descriptor, Format(samplerate, 1, 16), text).write((sound[:, None] * 32767).astype("<i2"))
    finally:
        os.close(descriptor)


def spool_of(config: BasicConfig) -> Path:
    """Where the recorder of this configuration leaves its recordings."""
    return Path(config.paths.recordings) / ".spool"


def files_below(folder: Path) -> set[str]:
    """All files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
