"""filesource: a WAV file in place of a microphone, played in a loop at the pace of a clock. Reads that file only."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acoupi_runtime.audio.ring import Frames, Ring, ring_dtype
from acoupi_runtime.clock import Clock
from acoupi_runtime.configuration import MicrophoneConfig, RecordingConfig
from acoupi_runtime.errors import DeviceConfigurationError, DeviceUnavailableError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_READABLE = {(_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}


@dataclass(frozen=True, slots=True)
class _Sound:
    path: Path
    kind: int
    channels: int
    samplerate: int
    bits: int
    place: int
    frames: int

    def take(self, file: int, first: int, count: int, channels: int, dtype: str) -> Frames:
        """Frames of the endless loop, as a ring holds them."""
        size = self.channels * self.bits // 8
        # Read, not mapped: a file that somebody cuts short while it is mapped kills the process.
        parts = []
        while count:
            at = first % self.frames
            part = min(count, self.frames - at)
            parts.append(os.pread(file, part * size, self.place + at * size))
            first, count = first + part, count - part
        values = _integers(np.frombuffer(b"".join(parts), np.uint8), self.kind, self.bits, dtype)
        return np.ascontiguousarray(values.reshape(-1, self.channels)[:, :channels])


def _integers(raw: Frames, kind: int, bits: int, dtype: str) -> Frames:
    if kind == _FLOAT:
        return _from_float(raw.view(f"<f{bits // 8}"), dtype)
    if bits == 24:  # noqa: PLR2004
        wide = np.zeros((raw.size // 3, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        raw, bits = wide, 32
    values: Frames = raw.reshape(-1).view(f"<i{bits // 8}")
    have, want = bits, np.dtype(dtype).itemsize * 8
    return (values >> (have - want)).astype(dtype) if have > want else values.astype(dtype) << (want - have)


def _from_float(values: Frames, dtype: str) -> Frames:
    limits = np.iinfo(dtype)
    return np.clip(values.astype(np.float64) * (limits.max + 1), limits.min, limits.max).astype(dtype)


class FileSource:
    """A file that stands in for a microphone.

    Args:
        name: The file's path; `~` is the home of the user that runs this.
        microphone: What is asked of a microphone is asked of the file.
        recording: Its chunksize is how many frames come at once.
        clock: Its steady time is the pace.
    """

    def __init__(self, name: str, microphone: MicrophoneConfig, recording: RecordingConfig, clock: Clock) -> None:
        self._path = Path(name).expanduser()
        self._microphone = microphone
        self._block = recording.chunksize
        self._dtype = ring_dtype(recording.bits)
        self._clock = clock

    def open(self, ring: Ring) -> _FileStream:
        """Start to play.

        Raises:
            DeviceUnavailableError: If the file is not there or not a WAV.
            DeviceConfigurationError: If it has another samplerate or too few channels.
        """
        sound = _look_into(self._path)
        wanted = self._microphone
        if sound.samplerate != wanted.samplerate or sound.channels < wanted.audio_channels:
            raise DeviceConfigurationError(
                f"{self._path}: has {sound.samplerate} Hz and {sound.channels} channel(s); "
                f"set program.microphone.samplerate={sound.samplerate} and audio_channels to at most {sound.channels}"
            )
        return _FileStream(sound, ring, wanted.audio_channels, self._dtype, self._block, self._clock)

    def reset(self) -> None:
        """There is nothing to look at anew: the file is looked for at each opening."""


class _FileStream:
    """A file being played: frames become due as time passes, in whole blocks, as with a sound card."""

    def __init__(self, sound: _Sound, ring: Ring, channels: int, dtype: str, block: int, clock: Clock) -> None:
        self.device = f"file:{sound.path}"
        self._sound = sound
        self._ring = ring
        self._shape = (channels, dtype)
        self._block = block
        self._clock = clock
        self._started = clock.steady()
        self._file = os.open(sound.path, os.O_RDONLY | os.O_CLOEXEC)

    def poll(self) -> None:
        """Bring in the blocks that are due.

        Raises:
            DeviceUnavailableError: If the file has gone.
        """
        due = int((self._clock.steady() - self._started) * self._sound.samplerate)
        try:
            while self._ring.head + self._block <= due:
                block = self._sound.take(self._file, self._ring.head, self._block, *self._shape)
                after = self._started + (self._ring.head + self._block) / self._sound.samplerate
                self._ring.write(block, after)
        except (OSError, ValueError) as error:
            raise DeviceUnavailableError(f"{self.device}: cannot be read any more ({error}); put it back") from error

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _look_into(path: Path) -> _Sound:
    try:
        with path.open("rb") as file:
            head = file.read(12)
            if head[:4] != b"RIFF" or head[8:] != b"WAVE":
                raise DeviceUnavailableError(f"{path}: is not a WAV file; name one that is")
            kind = channels = samplerate = bits = 0
            place = size = 0
            while len(chunk := file.read(8)) == 8:  # noqa: PLR2004
                name, size = struct.unpack("<4sI", chunk)
                if name == b"fmt ":
                    content = file.read(size + size % 2)
                    kind, channels, samplerate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
                    if kind == _EXTENSIBLE:
                        kind = struct.unpack("<H", content[24:26])[0]
                elif name == b"data":
                    place = file.tell()
                    size = min(size, path.stat().st_size - place)
                    break
                else:
                    file.seek(size + size % 2, 1)
            else:
                raise DeviceUnavailableError(f"{path}: has no sound in it; name a WAV file that has")
    except (OSError, struct.error) as error:
        raise DeviceUnavailableError(
            f"{path}: cannot be read ({error}); name a WAV file in program.microphone"
        ) from error
    if (kind, bits) not in _READABLE or not channels or size < channels * bits // 8:
        raise DeviceUnavailableError(f"{path}: is not PCM of 16, 24 or 32 bits or float; convert it")
    return _Sound(path, kind, channels, samplerate, bits, place, size // (channels * bits // 8))
