"""watch: whether a worker still does its work, as reasons to doubt it. Asks how long the queues are; changes nothing.

Celery can be alive and no longer consume (celery #10205, #9054), and threads cannot be stopped when a task hangs. Both
are seen here, from outside of Celery; what follows from it is up to whoever feeds the watchdog.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger(__name__)

STANDSTILL = 30.0
"""Seconds for which something may wait in a queue of an idle worker before the worker is doubted."""


class Queues(Protocol):
    """Something that knows how many tasks wait."""

    def waiting(self, queues: Sequence[str]) -> int:
        """How many tasks wait in these queues; raises OSError or the like where Redis is away."""


@dataclass(slots=True)
class _Running:
    name: str
    since: float
    warned: bool = False


class Watch:
    """Knows what a worker works on and for how long, and whether its queues move.

    Tasks report from the pool's threads, `look` is called every few seconds by one thread, `doubt` by the one that
    feeds the watchdog: it never blocks.
    """

    def __init__(self, *, soft: float, hard: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._names: tuple[str, ...] = ()
        self._soft, self._hard = soft, hard
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._moved = clock()
        self._waited_since: float | None = None
        self.done = 0
        """Tasks that have ended."""

    def begins(self, task_id: str, name: str) -> None:
        """A task begins."""
        with self._lock:
            self._running[task_id] = _Running(name, self._clock())
            self._moved = self._clock()

    def ends(self, task_id: str) -> None:
        """A task has ended, however."""
        with self._lock:
            self._running.pop(task_id, None)
            self._moved = self._clock()
            self.done += 1

    def look(self, queues: Queues, names: Sequence[str]) -> None:
        """Look at the queues of these names, and at how long tasks have taken."""
        try:
            waiting = queues.waiting(names)
        except Exception as error:  # noqa: BLE001 - whatever it is: without an answer there is nothing to doubt
            logger.debug("the queues cannot be looked at: %s", error)
            waiting = 0
        now = self._clock()
        with self._lock:
            self._names = tuple(names)
            if not waiting or self._running:
                self._waited_since = None
            elif self._waited_since is None:
                self._waited_since = now
            late = [task for task in self._running.values() if not task.warned and now - task.since > self._soft]
            for task in late:
                task.warned = True
        for task in late:
            logger.warning("task %s runs for more than %g s (task_soft_time_limit)", task.name, self._soft)

    def doubt(self) -> str | None:
        """Why this worker should not be trusted to go on, or None."""
        now = self._clock()
        with self._lock:
            for task in self._running.values():
                if now - task.since > self._hard:
                    return f"task {task.name} runs for more than {self._hard:g} s (task_time_limit)"
            since = self._waited_since
            if since is not None and now - max(since, self._moved) > STANDSTILL:
                return f"tasks wait in {', '.join(self._names)} and none was begun for {STANDSTILL:g} s"
        return None
