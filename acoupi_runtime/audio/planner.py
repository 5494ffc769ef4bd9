"""planner: when the next recording starts. Pure: clocks come in as numbers, nothing is waited for.

Intervals follow the steady clock. The window of the day follows the wall clock, and is looked at anew each time, so
that a step of the wall clock moves the window and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from acoupi_runtime.configuration import BasicConfig


@dataclass(frozen=True, slots=True)
class Window:
    """The time of day in which is recorded: start after end crosses midnight, start equal to end is all day."""

    start: time
    end: time
    zone: ZoneInfo

    @classmethod
    def of(cls, config: BasicConfig) -> Window:
        """The window of a configuration."""
        return cls(config.recording.schedule_start, config.recording.schedule_end, ZoneInfo(config.timezone))

    def contains(self, wall: float) -> bool:
        """Whether an instant (s since 1970) lies in the window; its end does not."""
        local = datetime.fromtimestamp(wall, self.zone).time()
        if self.start < self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end

    def opened(self, wall: float) -> float | None:
        """The latest opening up to an instant; None for all day, which never opens."""
        return self._opening(wall, (0, -1, -2), latest=True)

    def opens(self, wall: float) -> float | None:
        """The first opening after an instant; None for all day."""
        return self._opening(wall, (0, 1, 2), latest=False)

    def _opening(self, wall: float, days: tuple[int, ...], *, latest: bool) -> float | None:
        if self.start == self.end:
            return None
        today = datetime.fromtimestamp(wall, self.zone).date()
        for day in days:
            # An opening that the change to summer time skips is taken as the instant an hour later on the clock.
            local = datetime.combine(today + timedelta(days=day), self.start, self.zone)
            opening = local.astimezone(UTC).timestamp()
            if (opening <= wall) if latest else (opening > wall):
                return opening
        raise AssertionError("every day has an opening")


def next_start(window: Window, period: float, previous: float | None, earliest: float, offset: float) -> float:
    """When the next recording starts.

    Args:
        window: The time of day in which is recorded.
        period: Seconds from one start to the next.
        previous: The planned start before, by the steady clock; None if there was none.
        earliest: The earliest start that can still be met. What was due before is dropped, not made up for.
        offset: What is added to the steady clock to get the wall clock.

    Returns:
        The start by the steady clock, possibly ahead.
    """
    due = earliest if previous is None else max(previous + period, earliest)
    if window.contains(due + offset):
        if previous is None:
            return due
        opened = window.opened(due + offset)
        if opened is not None and opened - offset > previous:
            return max(opened - offset, earliest)
        # Rounded, since a start that is due exactly now must not be taken for a late one by the last bit.
        start = previous + period * max(1, math.ceil(round((earliest - previous) / period, 9)))
        if window.contains(start + offset):
            return start
        due = start
    opens = window.opens(due + offset)
    assert opens is not None  # noqa: S101 - a window that is all day contains every instant
    return opens - offset
