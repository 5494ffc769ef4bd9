"""cuts: which frames of a tape become recordings: those of the schedule, and those that were loud. Opens no file."""

from __future__ import annotations

from typing import Literal, Protocol

from acoupi_runtime.audio.planner import Window, next_start
from acoupi_runtime.audio.tape import Tape
from acoupi_runtime.audio.trigger import LevelTrigger, Span
from acoupi_runtime.configuration import BasicConfig


class Cuts(Protocol):
    """Decides what is recorded. Asked again and again, until the frames that it names have come in."""

    kind: Literal["schedule", "level"]

    def next(self, tape: Tape) -> Span | None:
        """The frames of the next recording, possibly ahead; None if none is known of."""

    def final(self, span: Span) -> bool:
        """Whether the end of a span will not move any more."""

    def done(self, span: Span, tape: Tape) -> None:
        """A span was recorded, or was given up."""


class ScheduledCuts:
    """Recordings at intervals, or one after the other, within a window of the day."""

    kind: Literal["schedule", "level"] = "schedule"

    def __init__(self, config: BasicConfig) -> None:
        recording, rate = config.recording, config.microphone.samplerate
        self._window = Window.of(config)
        self._period = recording.period
        self._frames = max(1, round(recording.duration * rate))
        self._pre = round(recording.pre_roll * rate)
        # What follows without a pause follows by the frame: by the clock, a crystal's drift would tear gaps.
        self._joined = recording.period == recording.duration
        self._previous: float | None = None
        self._joint: tuple[str, int] | None = None
        self._planned: tuple[Span, float] | None = None

    def next(self, tape: Tape) -> Span | None:
        """The frames of the next recording, possibly ahead."""
        offset, after = tape.offset(), self._end_of_last(tape)
        if after is not None and self._window.contains(tape.boottime_of(after) + offset):
            start, planned = after, tape.boottime_of(after)
        else:
            # What follows without a pause has no grid to keep to: after a gap it starts at once.
            previous = None if self._joined else self._previous
            earliest = max(tape.reach, after or 0)
            planned = next_start(self._window, self._period, previous, tape.boottime_of(earliest), offset)
            start = max(tape.frame_at(planned), earliest)
        # What follows without a pause starts where the last one ended, even if some of it has been lost meanwhile.
        span = Span(min(start, max(start - self._pre, tape.reach)), start + self._frames)
        self._planned = (span, planned)
        return span

    def final(self, span: Span) -> bool:
        """Its end is known from the first."""
        del span
        return True

    def done(self, span: Span, tape: Tape) -> None:
        """The next one follows it."""
        if self._planned is not None and self._planned[0] is span:
            self._previous = self._planned[1]
            self._joint = (tape.id, span.end) if self._joined else None

    def _end_of_last(self, tape: Tape) -> int | None:
        """The frame at which the next recording has to go on; None if there is none before it on this tape."""
        return self._joint[1] if self._joint is not None and self._joint[0] == tape.id else None


class TriggeredCuts:
    """Recordings of what is loud, within the same window of the day."""

    kind: Literal["schedule", "level"] = "level"

    def __init__(self, config: BasicConfig, trigger: LevelTrigger) -> None:
        self._window = Window.of(config)
        self._trigger = trigger

    def next(self, tape: Tape) -> Span | None:
        """The oldest span that is due."""
        spans = self._trigger.spans
        while spans:
            if self._window.contains(tape.boottime_of(spans[0].start) + tape.offset()):
                return spans[0]
            if not self._trigger.over():
                return None
            spans.popleft()
        return None

    def final(self, span: Span) -> bool:
        """Whether it has become quiet."""
        return self._trigger.over() or span not in self._trigger.spans

    def done(self, span: Span, tape: Tape) -> None:
        """What comes is a new one."""
        del tape
        if self._trigger.spans and self._trigger.spans[0] is span:
            self._trigger.spans.popleft()
