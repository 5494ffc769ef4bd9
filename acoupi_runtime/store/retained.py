"""retained: which recordings may go, and rows that nobody needs any more. Writes rows only; the files follow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from acoupi_runtime.store.counters import count_in
from acoupi_runtime.store.rows import Move, State, micros
from acoupi_runtime.store.shelf import Shelf

_UPLOADED = {State.KEPT: "recording_uploaded", State.QUARANTINED: "recording_quarantined_uploaded"}
"""The states of what may go, and the indexes of what was uploaded of it."""


@dataclass(frozen=True, slots=True)
class Goes:
    """What was decided to go.

    Attributes:
        moves: The files.
        size: Their bytes.
    """

    moves: tuple[Move, ...]
    size: int


class Retained(Shelf):
    """The shelf of what takes room."""

    def retained_bytes(self) -> int:
        """Bytes of all files that the store knows of."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT coalesce(sum(size), 0) FROM recording WHERE state IN ('recorded', 'kept', 'quarantined')"
            ).fetchone()
        return int(row[0])

    def let_go(
        self,
        limit: int,
        reason: str,
        *,
        uploaded_only: bool,
        before: datetime | None = None,
        size: float = float("inf"),
    ) -> Goes:
        """Decide that the oldest recordings go, kept or quarantined; their files are the caller's to delete.

        Args:
            limit: How many at most.
            reason: What is stored with them, and counted as `deleted_<reason>`.
            uploaded_only: Spare those that are nowhere else.
            before: Only those made before.
            size: Stop when this many bytes will be free.
        """
        moves = []
        unsent = 0
        where = "moving_from IS NULL AND path IS NOT NULL"
        where += " AND uploaded_on IS NOT NULL" if uploaded_only else ""
        where += " AND created_on < :before" if before is not None else ""
        oldest = " UNION ALL ".join(  # each by an index that has its order, which SQLite does not choose by itself
            "SELECT * FROM (SELECT seq, id, path, size, uploaded_on, created_on"  # noqa: S608 - clauses of ours
            f" FROM recording INDEXED BY {uploaded if uploaded_only else 'recording_state'}"
            f" WHERE state = '{state}' AND {where} ORDER BY created_on LIMIT :limit)"
            for state, uploaded in _UPLOADED.items()
        )
        with self._database.writing() as connection:
            rows = connection.execute(
                f"{oldest} ORDER BY created_on LIMIT :limit",
                {"before": None if before is None else micros(before), "limit": limit},
            ).fetchall()
            freed = 0
            for seq, identity, path, bytes_, uploaded_on, _ in rows:
                if freed >= size:
                    break
                freed += bytes_
                unsent += uploaded_on is None
                connection.execute(
                    "UPDATE recording SET state = 'dropped', reason = ?, moving_from = path, path = NULL WHERE seq = ?",
                    (reason, seq),
                )
                moves.append(Move(UUID(bytes=identity), Path(path), None))
            count_in(connection, {f"deleted_{reason}": len(moves), "deleted_not_uploaded": unsent})
        return Goes(tuple(moves), freed)

    def prune_recordings(self, before: datetime, most: int, limit: int) -> int:
        """Forget recordings that have no file any more, with what was heard in them; returns how many.

        Those that nobody wanted to be forgotten yet, but for the limit, are counted as `forgotten`.

        Args:
            before: Those made before are forgotten.
            most: Of the others, so many are remembered: the newest.
            limit: How many are forgotten at once, at most.
        """
        gone = "state IN ('dropped', 'missing')"
        instant = micros(before)
        with self._database.writing(durable=False) as connection:
            aged = connection.execute(
                "DELETE FROM recording WHERE moving_from IS NULL AND seq IN"  # noqa: S608 - ours
                f" (SELECT seq FROM recording WHERE {gone} AND created_on < ? LIMIT ?)",
                (instant, limit),
            ).rowcount
            (excess,) = connection.execute(
                f"SELECT max(count(*) - ?, 0) FROM recording WHERE {gone}",  # noqa: S608 - ours
                (most,),
            ).fetchone()
            beyond = connection.execute(
                "DELETE FROM recording WHERE moving_from IS NULL AND seq IN"  # noqa: S608 - ours
                f" (SELECT seq FROM recording WHERE {gone} ORDER BY created_on LIMIT ?) RETURNING created_on",
                (min(excess, limit),),
            ).fetchall()
            count_in(connection, {"forgotten": sum(created_on >= instant for (created_on,) in beyond)})
        return aged + len(beyond)

    def tidy(self) -> None:
        """Give pages that were freed back to the disk, some at a time, and keep the planner's figures fresh."""
        # Alone: both read before they write, and what others have written in between is no state to write upon.
        with self._database.writing(durable=False) as connection:
            if connection.execute("PRAGMA freelist_count").fetchone()[0]:  # it writes a page even if there is none
                connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()
            connection.execute("PRAGMA optimize")
