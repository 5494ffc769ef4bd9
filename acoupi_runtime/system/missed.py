"""missed: counts in the store what the recorder could not record. Reads its live state; writes counters.

The live state forgets with its process; these figures stay, and are seen in `status` and in each heartbeat.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

from acoupi_runtime.audio.state import RecorderState
from acoupi_runtime.clock import SystemClock
from acoupi_runtime.errors import StoreError
from acoupi_runtime.store import Store

logger = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two writings, where there is something to write."""
_PATIENCE = 5.0
_BEGINNINGS = {"no-microphone": "microphone_gone", "paused": "recording_paused", "error": "recorder_errors"}
"""How often it came to this, by the counter's name."""


class Missed:
    """Follows one recorder's word. Any thread may call it.

    Args:
        store: Where the counters are.
        read: Asks for the live state; None where none is known.
        clock: The machine's, or a simulation.
    """

    def __init__(
        self, store: Store, read: Callable[[], RecorderState | None], clock: SystemClock | None = None
    ) -> None:
        self._store = store
        self._read = read
        self._clock = clock or SystemClock()
        self._last: RecorderState | None = None
        self._tally: Counter[str] = Counter()
        self._lost = 0.0
        self._write_at = float("-inf")
        self._mutex = threading.Lock()

    def look(self) -> None:
        """Take note of what has happened since the last look; store it, if the last time was a while ago."""
        with self._mutex:
            self._note()
            if self._clock.steady() >= self._write_at:
                self._write()

    def close(self) -> None:
        """Store what would go with the process; given up where another thread waits for the store."""
        if self._mutex.acquire(timeout=_PATIENCE):
            try:
                self._write()
            finally:
                self._mutex.release()

    def _note(self) -> None:
        state = self._read()
        if state is None:
            return
        last = self._last if self._last is not None and self._last.pid == state.pid else None
        self._last = state
        if state.state in _BEGINNINGS and (last is None or last.state != state.state):
            self._tally[_BEGINNINGS[state.state]] += 1
        if last is not None and last.state == state.state == "no-microphone":
            self._tally["microphone_gone_seconds"] += round(state.boottime) - round(last.boottime)
        self._lost += state.lost_seconds - (0.0 if last is None else last.lost_seconds)

    def _write(self) -> None:
        """Store what was noted; what the store does not take now is kept."""
        whole = int(self._lost)
        tally = self._tally + Counter({"lost_seconds": whole})
        if not tally:
            return
        try:
            self._store.count_all(tally)
        except StoreError as error:
            logger.debug("what was missed is not stored yet: %s", error)
            return
        self._tally.clear()
        self._lost -= whole
        self._write_at = self._clock.steady() + EVERY
