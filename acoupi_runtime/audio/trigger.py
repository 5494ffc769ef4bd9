"""trigger: recordings that start because it became loud. Pure arithmetic on frames; opens no file."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from acoupi_runtime.audio.ring import Frames
from acoupi_runtime.configuration import TriggerConfig

_STEP = 0.05
"""Seconds over which the level is taken."""


@dataclass(slots=True)
class Span:
    """Frames to be recorded.

    Attributes:
        start: The first one.
        end: The one after the last, as far as is known: it moves on while it is loud.
    """

    start: int
    end: int


class LevelTrigger:
    """Follows the level.

    Attributes:
        spans: What is due, oldest first; spans do not overlap. The last one may still grow.
        heard: Frames up to which the level is known.
    """

    def __init__(self, config: TriggerConfig, samplerate: int, bits: int) -> None:
        self._step = max(1, round(_STEP * samplerate))
        self._threshold = (10 ** (config.level / 20) * (1 << (bits - 1))) ** 2
        self._pre = round(config.pre_roll * samplerate)
        self._post = max(self._step, round(config.post_roll * samplerate))
        self._most = max(self._step, round(config.max_duration * samplerate))
        self.spans: deque[Span] = deque()
        self.begin()

    def begin(self) -> None:
        """A new tape begins: its frames count from 0."""
        self._rest: Frames | None = None
        self._last_end = 0
        self.spans.clear()
        self.heard = 0

    def hear(self, first: int, block: Frames) -> None:
        """Take in frames, the first of which has this number. Blocks may leave frames out, and repeat none."""
        if self._rest is not None and first == self.heard + len(self._rest):
            block, first = np.concatenate((self._rest, block)), self.heard
        steps = len(block) // self._step
        whole, self._rest = block[: steps * self._step], block[steps * self._step :].copy()
        by_step = whole.astype(np.float32).reshape(steps, self._step, block.shape[1])
        # The variance, since a constant offset is no sound; the loudest channel counts.
        for step in np.flatnonzero(by_step.var(axis=1).max(axis=1) >= self._threshold).tolist():
            self._loud(first + step * self._step)
        self.heard = first + steps * self._step

    def over(self) -> bool:
        """Whether the oldest span has its final end."""
        return bool(self.spans) and (len(self.spans) > 1 or self.heard >= self.spans[0].end)

    def _loud(self, frame: int) -> None:
        wanted = frame + self._step + self._post
        if self.spans and frame < self.spans[-1].end:
            span = self.spans[-1]
            span.end = min(span.start + self._most, max(span.end, wanted))
        else:
            start = max(self._last_end, frame - self._pre)
            self.spans.append(Span(start, min(start + self._most, wanted)))
        self._last_end = self.spans[-1].end
