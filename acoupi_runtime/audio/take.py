"""take: one recording in the making: its file, and all that is known of it. Touches only that file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID, uuid4

from acoupi_runtime.audio import guano
from acoupi_runtime.audio.levels import Levels
from acoupi_runtime.audio.paths import PART
from acoupi_runtime.audio.ring import Frames
from acoupi_runtime.audio.wavfile import Format, WavFile
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.data import Capture, Deployment, Recording
from acoupi_runtime.disk import require_room, sync_dir

SYNC_EVERY = 5.0
"""Seconds of sound that a power cut may take from a recording in the making."""


class Writer(Protocol):
    """A sound file in the making."""

    @property
    def frames(self) -> int:
        """Frames that were written."""

    def write(self, block: Frames) -> None:
        """Append frames."""

    def sync(self) -> None:
        """Make what was written last over a power cut."""

    def finish(self, text: str) -> None:
        """Make it complete, with its final metadata."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What the clocks say of a recording's first frame, and of themselves."""

    boot_id: str
    boottime: float
    offset: float
    synced: bool
    true_samplerate: float | None


class Take:
    """A recording in the making. Its file is locked while this process lives, so that nobody repairs it."""

    def __init__(
        self,
        spool: Path,
        config: BasicConfig,
        deployment: Deployment,
        *,
        stream: str,
        start: int,
        trigger: Literal["schedule", "level"],
        moment: Moment,
    ) -> None:
        self.id: UUID = uuid4()
        self.start = start
        self._config = config
        self._deployment = deployment
        self._stream = stream
        self._trigger: Literal["schedule", "level"] = trigger
        self._levels = Levels(config.recording.bits)
        self._unsynced = 0
        suffix = config.recording.format
        self._part = spool / f"{self.id}.{suffix}{PART}"
        microphone = config.microphone
        rate = max(1, round(microphone.samplerate / microphone.time_expansion))
        form = Format(rate, microphone.audio_channels, config.recording.bits)
        self._file = _create(self._part)
        try:
            text = guano.compose(*self._describe(1, moment, ()))
            self._writer = _writer(suffix, self._file, form, text)
        except BaseException:
            os.close(self._file)
            self._part.unlink()
            raise

    @property
    def frames(self) -> int:
        """Frames that are in the file."""
        return self._writer.frames

    def write(self, block: Frames) -> None:
        """Append integers, and see from time to time that they last.

        Raises:
            OSError: If they could not all be written; `frames` says how many were.
        """
        before = self._writer.frames
        try:
            self._writer.write(block)
        finally:
            self._levels.add(block[: self._writer.frames - before])
        self._unsynced += len(block)
        if self._unsynced >= SYNC_EVERY * self._config.microphone.samplerate:
            self._unsynced = 0
            self._writer.sync()
            sync_dir(self._part.parent)
            require_room(self._part.parent, self._config.retention.reserve * 1e6)

    def complete(self, moment: Moment, overflows: Sequence[tuple[int, int]]) -> tuple[Recording, Capture] | None:
        """Close the file and give it its name, so that a power cut cannot take it any more.

        Args:
            moment: What is known of the first frame now.
            overflows: Frames of the file before which sound is missing, and how many frames are.

        Returns:
            What was recorded; None if that is nothing.

        Raises:
            OSError: If it could not be completed. What is there of it is left to be repaired.
        """
        try:
            if not self.frames:
                self._part.unlink()
                return None
            recording, capture = self._describe(self.frames, moment, overflows)
            self._writer.finish(guano.compose(recording, capture))
            os.fsync(self._file)
            path = self._part.with_suffix("")
            self._part.rename(path)
            sync_dir(path.parent)
            return recording.model_copy(update={"path": path}), capture
        finally:
            os.close(self._file)

    def _describe(self, frames: int, moment: Moment, overflows: Sequence[tuple[int, int]]) -> tuple[Recording, Capture]:
        microphone = self._config.microphone
        recording = Recording(
            id=self.id,
            created_on=datetime.fromtimestamp(moment.boottime + moment.offset, UTC),
            duration=frames / microphone.samplerate,
            samplerate=microphone.samplerate,
            audio_channels=microphone.audio_channels,
            time_expansion=microphone.time_expansion,
            deployment=self._deployment,
        )
        levels = self._levels
        capture = Capture(
            frames=frames,
            stream=self._stream,
            first_frame=self.start,
            boot_id=moment.boot_id,
            boottime=moment.boottime,
            clock_synced=moment.synced,
            true_samplerate=moment.true_samplerate,
            overflows=tuple(overflows),
            peak=levels.peak,
            rms=levels.rms,
            silent=levels.silent,
            clipped=levels.clipped,
            trigger=self._trigger,
        )
        return recording, capture


def _create(part: Path) -> int:
    """Create a file, and lock it against those who repair what nobody holds."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Between the two calls somebody may have found it empty and nobody's, and deleted it.
            if part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _writer(suffix: str, file: int, form: Format, text: str) -> Writer:
    if suffix == "flac":
        from acoupi_runtime.audio.flacfile import FlacFile

        return FlacFile(file, form, text)
    return WavFile(file, form, text)
