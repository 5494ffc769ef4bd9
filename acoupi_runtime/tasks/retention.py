"""retention: makes room before the card is full, and says for how long it lasts. Writes the store, deletes files.

What is elsewhere too goes first, the oldest before the newer. What is nowhere else goes only where `max_age` or
`when_full=drop_oldest` asks for it, and is counted.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from acoupi_runtime.clock import Clock
from acoupi_runtime.configuration import RetentionConfig
from acoupi_runtime.store import Store
from acoupi_runtime.tasks.files import follow

logger = logging.getLogger(__name__)

_BATCH = 200
_MEGABYTE = 1_000_000
_GIGABYTE = 1_000_000_000
MESSAGE_HISTORY = timedelta(days=1)
"""For which acknowledged messages are kept, to be looked at."""
MESSAGE_LIMIT = 100_000
"""Messages that may wait: some 100 MB of the card."""
HISTORY_LIMIT = 250_000
"""Recordings without a file that are remembered, whatever `max_history` says: some 300 MB of the card."""
_TIDY = 3600.0
"""Seconds between two times that rows are forgotten and the store's file is tidied up: that writes."""
_PRUNE = 5000
"""Rows forgotten at a time."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system holds, in bytes, as a plain user sees it."""

    total: int
    free: int

    @classmethod
    def at(cls, path: Path) -> Room:
        """The room of the file system that a path is, or will be, on."""
        while not path.exists():
            path = path.parent
        status = os.statvfs(path)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        free = status.f_bavail * status.f_frsize
        return cls(used + free, free)

    def missing_to(self, share: float) -> float:
        """Bytes that must be freed until no more than this share is used; negative where it is not reached."""
        return (self.total - self.free) - share * self.total


class Retention:
    """Knows what may be deleted, and when it must be."""

    def __init__(self, store: Store, config: RetentionConfig, recordings: Path, clock: Clock, full_file: Path) -> None:
        self._store = store
        self._full_file = full_file
        self._config = config
        self._recordings = recordings
        self._clock = clock
        self._full = False
        self._doubts_clock = False
        self._tidy_at = float("-inf")

    def run(self, messengers: tuple[str, ...]) -> None:
        """Make room, and forget rows that nobody needs."""
        wall = datetime.fromtimestamp(self._clock.wall(), UTC)
        self._store.prune_messages(wall - MESSAGE_HISTORY, messengers, MESSAGE_LIMIT)
        if self._config.max_age is not None:
            self._delete_older_than(wall - timedelta(days=self._config.max_age))
        if self._config.max_size is not None:
            excess = self._store.retained_bytes() - self._config.max_size * _GIGABYTE
            self._let_recorder_wait(is_full=self._make_room("size", excess) > 0)
        else:
            self._let_recorder_wait(is_full=False)
        room = Room.at(self._recordings)
        reserve = self._config.reserve * _MEGABYTE
        if room.missing_to(self._config.high_watermark) > 0 or room.free < 2 * reserve:
            self._make_room("room", max(room.missing_to(self._config.low_watermark), 2 * reserve - room.free))
        if self._clock.steady() >= self._tidy_at:
            self._store.prune_recordings(wall - timedelta(days=self._config.max_history), HISTORY_LIMIT, _PRUNE)
            self._store.tidy()
            self._tidy_at = self._clock.steady() + _TIDY

    def _delete_older_than(self, instant: datetime) -> None:
        """Delete by age; not by a clock that nobody keeps right: one that is wrong by years would delete years."""
        if self._clock.synced():
            self._delete("age", uploaded_only=False, before=instant)
        elif not self._doubts_clock:
            logger.warning("program.retention.max_age waits until the clock is synchronised")
        self._doubts_clock = not self._clock.synced()

    def _let_recorder_wait(self, *, is_full: bool) -> None:
        """Say to the recorder, which looks only at the card, that recordings have all the room they were given."""
        if is_full:
            self._full_file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._full_file.touch()
        else:
            self._full_file.unlink(missing_ok=True)

    def _make_room(self, reason: str, size: float) -> float:
        """Delete what may go, until `size` bytes are free; returns what is still missing of that."""
        size -= self._delete(reason, uploaded_only=True, size=size)
        if size > 0 and self._config.when_full == "drop_oldest":
            size -= self._delete(reason, uploaded_only=False, size=size)
        if size > 0 and not self._full:
            logger.error(
                "%s: %.0f MB are too much, and none of it may be deleted; fetch the recordings and run `acoupi-runtime "
                "archived --before DATE`, or set program.retention.when_full=drop_oldest",
                self._recordings,
                size / _MEGABYTE,
            )
        self._full = size > 0
        return size

    def _delete(
        self, reason: str, *, uploaded_only: bool, before: datetime | None = None, size: float = float("inf")
    ) -> int:
        freed = 0
        while freed < size:
            goes = self._store.let_go(_BATCH, reason, uploaded_only=uploaded_only, before=before, size=size - freed)
            followed = follow(goes.moves)
            self._store.settled(followed.done)
            freed += goes.size
            if len(goes.moves) < _BATCH:
                break
        return freed


def days_left(room: Room, reserve_megabytes: float, bytes_per_day: float) -> float | None:
    """Days until the card is full at the pace of the last day; None where nothing comes in."""
    if bytes_per_day <= 0:
        return None
    return max(0.0, room.free - reserve_megabytes * _MEGABYTE) / bytes_per_day
