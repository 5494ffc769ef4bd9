"""store: the truth about recordings, what was heard in them and what is to be sent. Touches one SQLite file.

Table of contents: `database` is the file and its transactions, `schema` its tables, and each shelf the calls of a few
of them. All calls may come from any thread and process at once; each is one transaction, and returns when it is stored.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from acoupi_runtime.clock import Clock, SystemClock
from acoupi_runtime.data import now
from acoupi_runtime.store.counters import Counters
from acoupi_runtime.store.database import Database
from acoupi_runtime.store.deployments import Deployments
from acoupi_runtime.store.outbox import Outbox
from acoupi_runtime.store.outputs import Outputs
from acoupi_runtime.store.recordings import Recordings
from acoupi_runtime.store.retained import Retained
from acoupi_runtime.store.rows import State, instant, micros

# A look for each state: over several at once, SQLite would read all that there is to find the first.
_FIRSTS = " UNION ALL ".join(
    f"SELECT min(created_on) AS since FROM recording WHERE state = '{state}'"  # noqa: S608 - names of ours
    for state in (State.RECORDED, State.KEPT, State.QUARANTINED)
)


class Store(Deployments, Recordings, Outputs, Outbox, Counters, Retained):
    """All shelves over one file."""

    @classmethod
    def at(cls, path: Path, clock: Clock | None = None) -> Store:
        """A store that its first call opens: one that cannot be opened now may be opened by a later call."""
        return cls(Database(path), clock or SystemClock())

    @classmethod
    def open(cls, path: Path, clock: Clock | None = None) -> Store:
        """Open a store, and make it if it is not there.

        Raises:
            StoreError: If the file is another program's, or cannot be opened.
        """
        store = cls.at(path, clock)
        store.rebuilding  # noqa: B018 - the first look opens the file, so that a foreign one is refused here
        return store

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._database.close()

    def verify(self) -> bool:
        """Check the file if the last shutdown was unclean; False if it is corrupt, and will be rebuilt."""
        return self._database.verify()

    def let_go_if_suspect(self) -> None:
        """Give up idle connections to a corrupt file, so that it can be replaced."""
        self._database.let_go_if_suspect()

    def summary(self) -> dict[str, Any]:
        """What a person wants to know, as JSON has it."""
        with self._database.reading() as connection:
            states = {
                state: {"recordings": number, "bytes": size}
                for state, number, size in connection.execute(
                    "SELECT state, count(*), coalesce(sum(size), 0) FROM recording GROUP BY state"
                )
            }
            last = connection.execute(
                "SELECT id, created_on, duration, path FROM recording ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            day = connection.execute(
                f"SELECT coalesce(sum(size), 0), (SELECT min(since) FROM ({_FIRSTS}))"  # noqa: S608 - ours
                " FROM recording WHERE state IN ('recorded', 'kept', 'quarantined') AND created_on >= ?",
                (micros(now() - timedelta(days=1)),),
            ).fetchone()
            oldest = connection.execute(
                "SELECT min(m.created_on) FROM message m JOIN delivery d ON d.message = m.seq"
                " WHERE d.acknowledged_on IS NULL"
            ).fetchone()[0]
        return {
            "backlog": states.get(State.RECORDED, {"recordings": 0})["recordings"],
            "states": states,
            "last_recording": None
            if last is None
            else {
                "id": str(UUID(bytes=last[0])),
                "created_on": instant(last[1]).isoformat(),
                "duration": last[2],
                "path": last[3],
            },
            "outbox": self.outbox(),
            "oldest_message": None if oldest is None else instant(oldest).isoformat(),
            "counters": self.counters(),
            "rebuilding": self.rebuilding,
            "bytes_per_day": _per_day(*day),
        }


def _per_day(size: int, since: int | None) -> float:
    """Bytes a day, from what came in during the last day or, for a new sensor, since its first recording."""
    if since is None:
        return 0.0
    seconds = max((micros(now()) - since) / 1e6, 3600.0)  # the first hour says little about a day
    return size * 86_400 / min(seconds, 86_400.0)
