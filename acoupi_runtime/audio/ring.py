"""ring: the last seconds of sound, counted in frames. One writer that never waits; readers notice what they missed.

Frame numbers count from the opening of the stream, and a frame keeps its number for ever. The writer is PortAudio's
thread: it copies into memory that was allocated before, and notes when. A reader copies out and then looks whether the
writer has come past meanwhile (a seqlock): what it returns was not torn.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[Any]


def ring_dtype(bits: int) -> str:
    """How frames stand in a ring: 24 bits take the upper three bytes of four, as sound cards give them."""
    return "<i2" if bits == 16 else "<i4"  # noqa: PLR2004


class Mark(NamedTuple):
    """When a block came in."""

    frame: int
    """Number of the frame after its last one."""
    boottime: float
    """Of that frame, in s."""
    lost_before: int | None
    """First frame of the block, if the sound card says that sound is missing before it."""


class Ring:
    """A preallocated buffer of frames.

    Attributes:
        head: Number of frames that have come in since the opening.
        marks: Notes about the blocks, oldest first; the one reader takes them away with popleft().
    """

    def __init__(self, capacity: int, channels: int, dtype: str) -> None:
        self._data = np.zeros((capacity, channels), dtype=dtype)
        self._frame_size = channels * self._data.itemsize
        self._capacity = capacity
        self._claimed = 0
        self.head = 0
        self.marks: deque[Mark] = deque(maxlen=8192)

    @property
    def oldest(self) -> int:
        """The first frame that is still here."""
        return max(0, self._claimed - self._capacity)

    def write(self, block: Any, boottime: float, *, overflow: bool = False) -> None:
        """Append a block. Called by one thread only; it never waits.

        Args:
            block: Anything with the buffer protocol: whole frames, not more than the ring holds. Not kept.
            boottime: CLOCK_BOOTTIME of the end of the block.
            overflow: Whether sound was lost right before the block.
        """
        frames = np.frombuffer(block, self._data.dtype).reshape(-1, self._data.shape[1])
        first = self.head
        count = len(frames)
        self._claimed = first + count
        place = first % self._capacity
        until_wrap = min(count, self._capacity - place)
        self._data[place : place + until_wrap] = frames[:until_wrap]
        self._data[: count - until_wrap] = frames[until_wrap:]
        self.head = first + count
        self.marks.append(Mark(first + count, boottime, first if overflow else None))

    def read(self, start: int, out: Frames) -> tuple[int, int]:
        """Copy frames from `start` on, as many as fit and have come in.

        Returns:
            The first frame that was copied, after `start` if the writer has come past it; and how many were.
        """
        while True:
            first = max(start, self.oldest)
            count = max(0, min(len(out), self.head - first))
            place = first % self._capacity
            until_wrap = min(count, self._capacity - place)
            out[:until_wrap] = self._data[place : place + until_wrap]
            out[until_wrap:count] = self._data[: count - until_wrap]
            if first >= self.oldest:
                return first, count
