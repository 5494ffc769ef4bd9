"""beat: when which task is sent. Reads clocks; the one effect is the `send` it was given.

Celery's own beat compares wall clock times: when the clock steps back by an hour, it sends nothing for an hour and says
nothing, and its schedule file can be corrupt. Here, intervals follow the monotonic clock and times of day the wall
clock, both in memory. A slot of the wall clock is used once, and one that was missed is dropped: its time is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

logger = logging.getLogger(__name__)

LATE = 60.0
"""Seconds after its slot in which a task of the wall clock is still sent."""
STEP = 2.0
"""Seconds by which the wall clock must have moved against the monotonic one to have been set."""
FORGET = timedelta(minutes=10)
"""A slot that is further ahead of now than this was used under a clock that was wrong, so it is used again. A smaller
step back is a correction, and repeats nothing."""
RETRY = 5.0
"""Seconds until a task that could not be sent is tried again."""
_LONGEST_SLEEP = 30.0


class Clocks(Protocol):
    """The two clocks. A simulation implements this."""

    def monotonic(self) -> float:
        """Seconds; never steps."""

    def wall(self) -> datetime:
        """Now, aware."""


class SystemClocks:
    """This machine's."""

    def monotonic(self) -> float:
        """Seconds since boot."""
        return time.monotonic()

    def wall(self) -> datetime:
        """Now, in UTC."""
        return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """A task that is sent again and again.

    Attributes:
        name: The task.
        queue: Where it is sent.
        schedule: Seconds between two sendings, or a Celery schedule.
    """

    name: str
    queue: str
    schedule: Any


Send = Callable[[Entry, float], bool]
"""Sends one task that is worthless after some seconds; False if it could not be. May be slow, does not raise."""


class _Interval:
    """Due at once, then every so many seconds; of those that were missed, only the last."""

    def __init__(self, entry: Entry, period: float, clocks: Clocks) -> None:
        self.entry, self._period = entry, period
        self._slot = clocks.monotonic()
        self._retry = self._slot

    def wait(self, clocks: Clocks) -> float:
        return max(self._slot, self._retry) - clocks.monotonic()

    def lifetime(self) -> float:
        return self._period

    def sent(self, clocks: Clocks) -> None:
        missed = (clocks.monotonic() - self._slot) // self._period
        self._slot += (missed + 1) * self._period

    def failed(self, clocks: Clocks) -> None:
        self._retry = clocks.monotonic() + min(RETRY, self._period)


class _Slots:
    """Due at the slots of a Celery schedule."""

    def __init__(self, entry: Entry, clocks: Clocks) -> None:
        self.entry = entry
        self._clocks = clocks
        self._used: datetime | None = None
        self._retry = clocks.monotonic()
        self._plan()

    def _plan(self) -> None:
        now = self._clocks.wall()
        self._offset = now.timestamp() - self._clocks.monotonic()
        if self._used is not None and self._used - now > FORGET:
            self._used = None
        self._slot = self._after(now)
        while self._used is not None and self._slot <= self._used:
            self._slot = self._after(self._slot)

    def _after(self, instant: datetime) -> datetime:
        # A Celery schedule says how long it is from a last run to the next one, by a clock that it is given.
        schedule = self.entry.schedule
        schedule.nowfun = lambda: instant
        remaining: timedelta = schedule.remaining_estimate(instant)
        return (instant + max(remaining, timedelta(seconds=1))).astimezone(UTC)

    def wait(self, clocks: Clocks) -> float:
        now, monotonic = clocks.wall(), clocks.monotonic()
        behind = (now - self._slot).total_seconds()
        if behind > LATE:
            logger.warning("%s was due at %s and is dropped: it is too late", self.entry.name, self._slot.isoformat())
            self._plan()
        elif behind < 0 and abs(now.timestamp() - monotonic - self._offset) > STEP:
            logger.info("the clock was set; %s is planned anew", self.entry.name)
            self._plan()
        else:
            self._offset = now.timestamp() - monotonic  # follows the slow drift of the one against the other
        return max((self._slot - now).total_seconds(), self._retry - monotonic)

    def lifetime(self) -> float:
        return LATE

    def sent(self, clocks: Clocks) -> None:
        del clocks
        self._used = self._slot
        self._plan()

    def failed(self, clocks: Clocks) -> None:
        self._retry = clocks.monotonic() + RETRY


class Beat:
    """Sends what is due, in the thread that calls it."""

    def __init__(self, entries: Iterable[Entry], send: Send, clocks: Clocks | None = None) -> None:
        self._clocks = clocks or SystemClocks()
        self._send = send
        self._plans = [
            _Interval(entry, float(entry.schedule), self._clocks)
            if isinstance(entry.schedule, int | float)
            else _Slots(entry, self._clocks)
            for entry in map(_without_celery_intervals, entries)
        ]

    def tick(self) -> float:
        """Send what is due now, and return for how many seconds nothing will be."""
        longest = _LONGEST_SLEEP
        for plan in self._plans:
            if plan.wait(self._clocks) <= 0:
                if self._send(plan.entry, plan.lifetime()):
                    plan.sent(self._clocks)
                else:
                    plan.failed(self._clocks)
            longest = min(longest, plan.wait(self._clocks))
        return max(longest, 0.01)

    def run(self, stop: threading.Event) -> None:
        """Send what is due until `stop` is set."""
        while not stop.is_set():
            stop.wait(self.tick())


def _without_celery_intervals(entry: Entry) -> Entry:
    """A plain `celery.schedules.schedule` is an interval: a class for what is a number here."""
    run_every, relative = getattr(entry.schedule, "run_every", None), getattr(entry.schedule, "relative", True)
    if isinstance(run_every, timedelta) and not relative and type(entry.schedule).__name__ == "schedule":
        return Entry(entry.name, entry.queue, run_every.total_seconds())
    return entry
