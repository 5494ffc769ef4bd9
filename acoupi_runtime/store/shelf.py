"""shelf: what all parts of the store share. Touches nothing by itself."""

from __future__ import annotations

from acoupi_runtime.clock import Clock
from acoupi_runtime.store.database import Database


class Shelf:
    """One part of the store: a few tables, and the transactions over them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
