"""wavfile: WAV files that are written while they grow, and can be repaired. Touches only the file it was given.

The metadata stands in a chunk `guan` in front of the sound, in room that was kept for it: so it is there from the first
moment, and a file that a power cut left behind knows what it is. The sound begins at a multiple of 4096 bytes.

numpy comes with the first block that is written: who reads metadata or repairs a file does not pay its 12 MiB.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from acoupi_runtime.audio.ring import Frames

MOST_BYTES = (1 << 31) - (1 << 16)
"""A WAV is cut here: many readers take its sizes as signed."""
_PAGE = 4096
_GROWTH = 2048
"""Bytes by which the metadata may grow until the file is closed."""
_FRONT = struct.Struct("<4sI4s4sIHHIIHH4sI")
_BACK = struct.Struct("<4sI")


class Format(NamedTuple):
    """The form of the sound in a file."""

    samplerate: int
    """Hz, as it is marked."""
    channels: int
    bits: int

    @property
    def frame_size(self) -> int:
        """Bytes a frame."""
        return self.channels * self.bits // 8


def _header(form: Format, text: bytes, room: int, data_size: int) -> bytes:
    """All that stands before the sound; `room` is the size of the chunk in front."""
    size = form.frame_size
    riff_size = _FRONT.size - 8 + room + _BACK.size + data_size + data_size % 2 if data_size else 0
    rate = form.samplerate * size
    fmt = (16, 1, form.channels, form.samplerate, rate, size, form.bits)
    front = _FRONT.pack(b"RIFF", riff_size, b"WAVE", b"fmt ", *fmt, b"guan", room)
    return front + text.ljust(room, b"\n") + _BACK.pack(b"data", data_size)


def pack(block: Frames, bits: int) -> bytes:
    """The bytes of a block of integers, as they stand in a WAV."""
    if bits == 16:  # noqa: PLR2004
        return block.tobytes()
    import numpy as np

    as_bytes = np.ascontiguousarray(block, dtype="<i4").view(np.uint8).reshape(-1, 4)
    return as_bytes[:, :3].tobytes()


class WavFile:
    """A WAV in the making: sizes of 0 in its header say so.

    Attributes:
        frames: Whole frames that were written.
    """

    def __init__(self, descriptor: int, form: Format, text: str) -> None:
        self._file = descriptor
        self._form = form
        encoded = text.encode()
        self._start = -(-(_FRONT.size + len(encoded) + _GROWTH + _BACK.size) // _PAGE) * _PAGE
        room = self._start - _FRONT.size - _BACK.size
        self._bytes = 0
        write_all(descriptor, _header(form, encoded, room, 0))

    @property
    def frames(self) -> int:
        """Whole frames that were written."""
        return self._bytes // self._form.frame_size

    def write(self, block: Frames) -> None:
        """Append frames.

        Raises:
            OSError: If they could not all be written; `frames` says how many were.
        """
        left = memoryview(pack(block, self._form.bits))
        while left:
            written = os.write(self._file, left)
            self._bytes += written
            left = left[written:]

    def sync(self) -> None:
        """Make what was written last over a power cut."""
        os.fsync(self._file)

    def finish(self, text: str) -> None:
        """Write the sizes and the final metadata. Renaming the file is the caller's."""
        data_size = self.frames * self._form.frame_size
        finish(self._file, Head(self._form, self._start, data_size, b""), text.encode())


class Head(NamedTuple):
    """What the front of a WAV of ours says."""

    form: Format
    start: int
    """Where the sound begins."""
    data_size: int
    """Bytes of sound; 0 while it is being written."""
    text: bytes
    """The metadata."""


def read_head(descriptor: int) -> Head | None:
    """The front of a WAV of ours; None if it is none."""
    front = os.pread(descriptor, _FRONT.size, 0)
    if len(front) < _FRONT.size:
        return None
    riff, _, wave, _, _, _, channels, samplerate, _, frame_size, bits, name, room = _FRONT.unpack(front)
    form = Format(samplerate, channels, bits)
    if (riff, wave, name) != (b"RIFF", b"WAVE", b"guan") or not frame_size or frame_size != form.frame_size:
        return None
    text = os.pread(descriptor, room, _FRONT.size)
    back = os.pread(descriptor, _BACK.size, _FRONT.size + room)
    if len(back) < _BACK.size or back[:4] != b"data":
        return None
    return Head(form, _FRONT.size + room + _BACK.size, _BACK.unpack(back)[1], text.strip(b"\n\0 "))


def read_text(descriptor: int) -> bytes | None:
    """The GUANO text of a WAV of ours; None if it has none."""
    head = read_head(descriptor)
    return head and head.text


def finish(descriptor: int, head: Head, text: bytes) -> None:
    """Give a WAV its sizes and its metadata.

    Raises:
        OSError: If the metadata has outgrown its room, or cannot be written.
    """
    room = head.start - _FRONT.size - _BACK.size
    if len(text) > room:
        raise OSError(errno.EINVAL, "the metadata has outgrown its room")
    end = head.start + head.data_size
    # A chunk of odd length is followed by a byte of padding, which reading past the end gives too.
    os.ftruncate(descriptor, end + end % 2)
    write_all(descriptor, _header(head.form, text, room, head.data_size), 0)


def write_all(descriptor: int, content: bytes, place: int | None = None) -> None:
    """Write all of it, at the end or at a place.

    Raises:
        OSError: If not all of it could be written.
    """
    left = memoryview(content)
    while left:
        written = os.write(descriptor, left) if place is None else os.pwrite(descriptor, left, place)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left = left[written:]
        place = None if place is None else place + written
