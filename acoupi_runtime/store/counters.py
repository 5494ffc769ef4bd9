"""counters: what went wrong and how often, steps of the clock, and notes to ourselves. Writes rows only."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime

from acoupi_runtime.data import now
from acoupi_runtime.store.database import REBUILD
from acoupi_runtime.store.rows import instant, micros
from acoupi_runtime.store.shelf import Shelf


class Counters(Shelf):
    """The shelf of figures."""

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        with self._database.writing(durable=False) as connection:
            count_in(connection, {name: amount})

    def count_all(self, amounts: Mapping[str, int]) -> None:
        """Add to several counters at once."""
        with self._database.writing(durable=False) as connection:
            count_in(connection, amounts)

    def counters(self) -> dict[str, int]:
        """All counters, by name."""
        with self._database.reading() as connection:
            return dict(connection.execute("SELECT name, value FROM counter ORDER BY name").fetchall())

    def add_clock_step(self, step: float) -> None:
        """Note that the wall clock was moved by some seconds."""
        with self._database.writing(durable=False) as connection:
            connection.execute(
                "INSERT INTO clock_step (noticed_on, boot_id, boottime, step) VALUES (?, ?, ?, ?)",
                (micros(now()), self._clock.boot_id, self._clock.steady(), step),
            )
            count_in(connection, {"clock_steps": 1})

    def clock_steps(self, limit: int = 100) -> tuple[tuple[datetime, float], ...]:
        """When the wall clock was seen to have moved, and by how many seconds; the latest first."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT noticed_on, step FROM clock_step ORDER BY seq DESC LIMIT ?", (limit,))
            return tuple((instant(noticed_on), step) for noticed_on, step in rows)

    @property
    def rebuilding(self) -> bool:
        """Whether this store is new, and must learn from the files what recordings there are."""
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM meta WHERE key = ?", (REBUILD,)).fetchone() is not None

    def rebuilt(self) -> None:
        """All files have been looked at."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM meta WHERE key = ?", (REBUILD,))


def count_in(connection: sqlite3.Connection, amounts: Mapping[str, int]) -> None:
    """Add to counters within a transaction."""
    connection.executemany(
        "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        [(name, amount) for name, amount in amounts.items() if amount],
    )
