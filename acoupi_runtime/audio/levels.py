"""levels: how loud sound is, and whether it is any. Pure arithmetic on arrays."""

from __future__ import annotations

import math

import numpy as np

from acoupi_runtime.audio.ring import Frames

FLOOR = -200.0
"""dBFS of digital silence, whose logarithm JSON could not hold."""
_SILENT_RMS = -90.0


def dbfs(value: float) -> float:
    """A share of full scale in dB."""
    return round(max(FLOOR, 20 * math.log10(value)), 2) + 0.0 if value > 0 else FLOOR


class Levels:
    """Peak, RMS and clipping of all that was added.

    Attributes:
        frames: How many frames were added.
        clipped: How many of them touch full scale.
    """

    def __init__(self, bits: int) -> None:
        self._full = 1 << (bits - 1)
        self._low, self._high = self._full, -self._full
        self._centre: int | None = None
        self._sum = 0.0
        self._squares = 0.0
        self._values = 0
        self.frames = 0
        self.clipped = 0

    def add(self, block: Frames) -> None:
        """Count a block of integers, frames by channels."""
        if not len(block):
            return
        low, high = int(block.min()), int(block.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        if high >= self._full - 1 or low <= -self._full:
            touching = (block >= self._full - 1) | (block <= -self._full)
            self.clipped += int(np.count_nonzero(touching.any(axis=1)))
        values = block.ravel()
        if self._centre is None:
            self._centre = round(float(values.mean()))
        # A constant offset is no sound. It is taken off before squaring: what is left fits float32 exactly.
        centred = np.subtract(values, self._centre, dtype=np.float32)
        self._sum += float(centred.sum(dtype=np.float64))
        np.square(centred, out=centred)
        self._squares += float(centred.sum())
        self._values += len(values)
        self.frames += len(block)

    @property
    def peak(self) -> float | None:
        """Level in dBFS of the value furthest from zero; None before anything was added."""
        return dbfs(max(-self._low, self._high) / self._full) if self._values else None

    @property
    def rms(self) -> float | None:
        """Level in dBFS, without a constant offset; None before anything was added."""
        if not self._values:
            return None
        mean = self._sum / self._values
        return dbfs(math.sqrt(max(0.0, self._squares / self._values - mean * mean)) / self._full)

    @property
    def silent(self) -> bool:
        """Whether this is what a dead microphone gives; two steps of 16 bits from peak to peak stay below it, too."""
        rms = self.rms
        return rms is not None and rms < _SILENT_RMS
