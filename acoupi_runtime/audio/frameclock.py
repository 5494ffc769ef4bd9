"""frameclock: which instant a frame is from. Pure arithmetic; reads no clock.

A sound card's crystal is off by up to some 100 ppm: 8 s a day. Single blocks are late by chance, and a few are said to
be early. The lower quartile of some seconds lies close to the truth, and a line through that gives the card's true rate
and the time of each frame. Where sound was lost, counting starts a new stretch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_BIN = 5.0
"""Seconds out of which one arrival counts."""
_BINS = 240
_ENOUGH_FOR_A_LINE = 4
_ENOUGH_FOR_A_RATE = 12
_MOST_DRIFT = 1e-3
_JUMP = 0.05
"""Seconds by which a whole bin must be late to mean that sound is missing, though the card did not say so."""
_HEAD_START = 0.02
"""Seconds by which a bin must be early to mean that all before it was late, as in the first seconds of a stream."""
_STRETCHES = 64


@dataclass(slots=True)
class _Stretch:
    """Frames without a gap: lateness(frame) = offset + slope * (frame - first)."""

    first: int
    slope: float
    offset: float | None = None
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Lateness and frame of each arrival in the bin that is being filled."""
    bins: list[tuple[int, float]] = field(default_factory=list)


class FrameClock:
    """Maps frame numbers to CLOCK_BOOTTIME and back."""

    def __init__(self, samplerate: int) -> None:
        self._nominal = float(samplerate)
        self._bin_frames = int(_BIN * samplerate)
        self._stretches = [_Stretch(0, 0.0)]
        self._lost: list[int] = []

    def note(self, frame: int, boottime: float) -> None:
        """Frames up to `frame` had come in by then."""
        arrivals = self._stretches[-1].arrivals
        if arrivals and frame // self._bin_frames != arrivals[0][1] // self._bin_frames:
            self._close_bin(self._stretches[-1])
        stretch = self._stretches[-1]
        stretch.arrivals.append((boottime - frame / self._nominal, frame))
        if len(stretch.bins) < _ENOUGH_FOR_A_LINE:
            late, at = _typical(stretch.arrivals)
            seen = [*stretch.bins, (at, late)]
            stretch.offset = min(late - stretch.slope * (at - stretch.first) for at, late in seen)

    def note_lost(self, frame: int) -> None:
        """Sound is missing before this frame."""
        last = self._stretches[-1]
        if last.offset is not None:
            self._stretches.append(_Stretch(frame, last.slope))
            del self._stretches[:-_STRETCHES]

    def lost(self) -> tuple[int, ...]:
        """Frames before which sound turned out to be missing without the card saying so, since this was last asked."""
        found, self._lost = tuple(self._lost), []
        return found

    def missing_before(self, frame: int) -> int:
        """About how many frames are missing before one that was noted as such; 0 if that cannot be told."""
        for before, after in zip(self._stretches, self._stretches[1:], strict=False):
            if after.first == frame and before.offset is not None and after.offset is not None:
                expected = before.offset + before.slope * (frame - before.first)
                return max(0, round((after.offset - expected) * self._nominal))
        return 0

    def boottime_of(self, frame: int) -> float:
        """CLOCK_BOOTTIME of a frame, in s.

        Raises:
            LookupError: If nothing has come in yet.
        """
        known = [stretch for stretch in self._stretches if stretch.offset is not None]
        if not known:
            raise LookupError("no block has come in yet")
        stretch = next((stretch for stretch in reversed(known) if stretch.first <= frame), known[0])
        assert stretch.offset is not None  # noqa: S101 - for the type checker
        return frame / self._nominal + stretch.offset + stretch.slope * (frame - stretch.first)

    def frame_at(self, boottime: float) -> int:
        """The frame that is heard at an instant, which may lie ahead."""
        last = next(stretch for stretch in reversed(self._stretches) if stretch.offset is not None)
        assert last.offset is not None  # noqa: S101 - for the type checker
        step = 1 / self._nominal + last.slope
        return round((boottime - last.offset + last.slope * last.first) / step)

    @property
    def true_samplerate(self) -> float | None:
        """Hz, as measured against the clock; None until a minute has been heard without a gap."""
        stretch = self._stretches[-1]
        if len(stretch.bins) < _ENOUGH_FOR_A_RATE:
            return None
        return round(1 / (1 / self._nominal + stretch.slope), 4)

    def _close_bin(self, stretch: _Stretch) -> None:
        lateness, frame = _typical(stretch.arrivals)
        arrivals, stretch.arrivals = stretch.arrivals, []
        if len(stretch.bins) >= _ENOUGH_FOR_A_LINE and stretch.offset is not None:
            surprise = lateness - (stretch.offset + stretch.slope * (frame - stretch.first))
            if surprise > _JUMP:
                self._begin_after_gap(stretch, arrivals, lateness - surprise / 2)
                return
            if surprise < -_HEAD_START:
                stretch.bins.clear()
        stretch.bins.append((frame, lateness))
        del stretch.bins[:-_BINS]
        if len(stretch.bins) >= _ENOUGH_FOR_A_LINE:
            stretch.slope, stretch.offset = _line(stretch.bins, stretch.first, _MOST_DRIFT / self._nominal)

    def _begin_after_gap(self, stretch: _Stretch, arrivals: list[tuple[float, int]], limit: float) -> None:
        """The card lost sound without a word: it is missing before the block from which on all arrivals are late."""
        late = len(arrivals)
        while late and arrivals[late - 1][0] > limit:
            late -= 1
        block = arrivals[1][1] - arrivals[0][1] if len(arrivals) > 1 else 0
        start = arrivals[late - 1][1] if late else arrivals[0][1] - block
        self._lost.append(start)
        after = _Stretch(start, stretch.slope, arrivals=arrivals[late:])
        lateness, frame = _typical(after.arrivals)
        after.offset = lateness - after.slope * (frame - start)
        self._stretches.append(after)
        del self._stretches[:-_STRETCHES]


def _typical(arrivals: list[tuple[float, int]]) -> tuple[float, int]:
    """Lateness and frame at the lower quartile: neither the odd early block nor a stall decides."""
    return sorted(arrivals)[len(arrivals) // 4]


def _line(bins: list[tuple[int, float]], first: int, steepest: float) -> tuple[float, float]:
    """Slope and offset of the line through the bins; those in which nearly all was late do not count."""
    frames, lateness = (np.array(column, dtype=np.float64) for column in zip(*bins, strict=True))
    frames -= first
    base = lateness.min()
    lateness -= base
    slope = offset = 0.0
    for _ in range(2):
        middle, mean = frames.mean(), lateness.mean()
        spread = frames - middle
        slope = float((spread * (lateness - mean)).sum() / (spread * spread).sum())
        slope = max(-steepest, min(steepest, slope))
        offset = float(mean - slope * middle)
        above = lateness - (offset + slope * frames)
        in_time = above <= max(0.001, 2 * float(above.std()))
        if in_time.all() or np.count_nonzero(in_time) < _ENOUGH_FOR_A_LINE:
            break
        frames, lateness = frames[in_time], lateness[in_time]
    return slope, offset + float(base)
