"""outbox: messages, and who has acknowledged them. Writes rows only; sends nothing.

A message waits once for each messenger. It is never marked sent before that messenger's other side has acknowledged it,
so it may be sent twice; the receiver's key is its id.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from acoupi_runtime.data import Message, Response, ResponseStatus, now
from acoupi_runtime.store.counters import count_in
from acoupi_runtime.store.rows import instant, micros
from acoupi_runtime.store.shelf import Shelf

_ANSWER_LIMIT = 500
"""Characters of a receiver's answer that are kept."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that a messenger has to deliver.

    Attributes:
        message: What is to be sent.
        attempts: How often that was tried before.
    """

    message: Message
    attempts: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one delivery went.

    Attributes:
        response: What the other side said.
        pause: Seconds before it is tried again, if it was not acknowledged.
    """

    response: Response
    pause: float = 0.0


class Outbox(Shelf):
    """The shelf of messages."""

    def put_messages(self, messages: Iterable[Message], messengers: Sequence[str]) -> None:
        """Store messages that belong to no recording, in one transaction; one that is there stays as it is."""
        with self._database.writing() as connection:
            put_in(connection, messages, None, messengers)

    def waiting_messages(
        self, messenger: str, limit: int, order: Literal["oldest_first", "newest_first"], *, hold: str | None = None
    ) -> tuple[Waiting, ...]:
        """What a messenger has to deliver now.

        Args:
            messenger: Its name.
            limit: How many at most.
            order: Which come first.
            hold: A boot whose recordings' messages wait until their times have been corrected.
        """
        direction = "ASC" if order == "oldest_first" else "DESC"
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT m.id, m.content, m.created_on, d.attempts FROM delivery d"  # noqa: S608 - a word of ours
                " JOIN message m ON m.seq = d.message"
                " LEFT JOIN recording r ON r.seq = m.recording"
                " WHERE d.messenger = :messenger AND d.acknowledged_on IS NULL"
                " AND (d.next_at IS NULL OR d.next_boot_id IS NOT :boot OR d.next_at <= :now)"
                " AND (:hold IS NULL OR r.seq IS NULL OR r.boot_id != :hold OR r.clock_synced"
                " OR r.corrected_by IS NOT NULL)"
                f" ORDER BY d.message {direction} LIMIT :limit",
                {
                    "messenger": messenger,
                    "boot": self._clock.boot_id,
                    "now": self._clock.steady(),
                    "hold": hold,
                    "limit": limit,
                },
            )
            return tuple(
                Waiting(Message(id=UUID(bytes=identity), content=content, created_on=instant(created_on)), attempts)
                for identity, content, created_on, attempts in rows
            )

    def attempted(self, messenger: str, attempts: Sequence[Attempt]) -> None:
        """Store how deliveries went, in one transaction; a recording whose last one is acknowledged is uploaded."""
        moment = self._clock.steady()
        with self._database.writing() as connection:
            for attempt in attempts:
                response = attempt.response
                acknowledged = response.status is ResponseStatus.SUCCESS
                row = connection.execute(
                    "UPDATE delivery SET attempts = attempts + 1, status = ?, answer = ?, acknowledged_on = ?,"
                    " next_boot_id = ?, next_at = ?"
                    " WHERE messenger = ? AND message = (SELECT seq FROM message WHERE id = ?)"
                    " AND acknowledged_on IS NULL RETURNING message",
                    (
                        response.status,
                        None if response.content is None else response.content[:_ANSWER_LIMIT],
                        micros(response.received_on) if acknowledged else None,
                        self._clock.boot_id,
                        moment + attempt.pause,
                        messenger,
                        response.message.id.bytes,
                    ),
                ).fetchone()
                if row and acknowledged:
                    _mark_uploaded(connection, row[0])
            sent = sum(attempt.response.status is ResponseStatus.SUCCESS for attempt in attempts)
            count_in(connection, {"messages_sent": sent, "messages_failed": len(attempts) - sent})

    def outbox(self) -> dict[str, int]:
        """How many messages wait, for each messenger."""
        with self._database.reading() as connection:
            return dict(
                connection.execute(
                    "SELECT messenger, count(*) FROM delivery WHERE acknowledged_on IS NULL GROUP BY messenger"
                ).fetchall()
            )

    def mark_archived(self, before: datetime) -> int:
        """Mark the recordings made before an instant, kept or quarantined, as safe elsewhere; returns how many."""
        with self._database.writing() as connection:
            return connection.execute(
                "UPDATE recording SET uploaded_on = ? WHERE state IN ('kept', 'quarantined') AND created_on < ?"
                " AND uploaded_on IS NULL",
                (micros(now()), micros(before)),
            ).rowcount

    def prune_messages(self, acknowledged_before: datetime, messengers: Sequence[str], limit: int) -> None:
        """Forget what all have acknowledged, who is no messenger any more, and the oldest beyond a limit.

        Each delivery that is given up is counted as `messages_dropped`, as each that came is as `messages_sent`.

        Args:
            acknowledged_before: Acknowledged messages are kept until then, for a person to look at.
            messengers: The names of those that are configured.
            limit: Messages that may be there. Of those beyond, acknowledged ones go first, then the oldest; what they
                said was stored as detections all the same.
        """
        with self._database.writing(durable=False) as connection:
            dropped = connection.execute(
                "DELETE FROM delivery WHERE acknowledged_on IS NULL"
                " AND messenger NOT IN (SELECT value FROM json_each(?))",
                (json.dumps(list(messengers)),),
            ).rowcount
            connection.execute(
                "DELETE FROM message WHERE seq IN (SELECT m.seq FROM message m WHERE NOT EXISTS"
                " (SELECT 1 FROM delivery d WHERE d.message = m.seq AND"
                "  (d.acknowledged_on IS NULL OR d.acknowledged_on >= ?)))",
                (micros(acknowledged_before),),
            )
            excess = connection.execute("SELECT max(count(*) - ?, 0) FROM message", (limit,)).fetchone()[0]
            if excess:
                excess -= connection.execute(
                    "DELETE FROM message WHERE seq IN (SELECT m.seq FROM message m WHERE NOT EXISTS"
                    " (SELECT 1 FROM delivery d WHERE d.message = m.seq AND d.acknowledged_on IS NULL)"
                    " ORDER BY m.seq LIMIT ?)",
                    (excess,),
                ).rowcount
                oldest = "(SELECT seq FROM message ORDER BY seq LIMIT ?)"
                dropped += connection.execute(
                    f"DELETE FROM delivery WHERE acknowledged_on IS NULL AND message IN {oldest}",  # noqa: S608 - ours
                    (excess,),
                ).rowcount
                connection.execute(f"DELETE FROM message WHERE seq IN {oldest}", (excess,))  # noqa: S608 - ours
            count_in(connection, {"messages_dropped": dropped})


def put_in(
    connection: sqlite3.Connection, messages: Iterable[Message], recording: int | None, messengers: Sequence[str]
) -> None:
    """Store messages within a transaction; without messengers there is nobody to store them for."""
    if not messengers:
        return
    for message in messages:
        row = connection.execute(
            "INSERT INTO message (id, recording, content, created_on) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO NOTHING RETURNING seq",
            (message.id.bytes, recording, message.content, micros(message.created_on)),
        ).fetchone()
        if row:
            connection.executemany(
                "INSERT INTO delivery (message, messenger) VALUES (?, ?)", [(row[0], name) for name in messengers]
            )


def rewrite_in(connection: sqlite3.Connection, messages: Iterable[Message]) -> None:
    """Give messages that nobody has acknowledged yet another content, within a transaction."""
    connection.executemany(
        "UPDATE message SET content = ? WHERE id = ? AND NOT EXISTS"
        " (SELECT 1 FROM delivery d WHERE d.message = message.seq AND d.acknowledged_on IS NOT NULL)",
        [(message.content, message.id.bytes) for message in messages],
    )


def _mark_uploaded(connection: sqlite3.Connection, message: int) -> None:
    connection.execute(
        "UPDATE recording SET uploaded_on = ? WHERE uploaded_on IS NULL"
        " AND seq = (SELECT recording FROM message WHERE seq = ?) AND NOT EXISTS"
        " (SELECT 1 FROM message m JOIN delivery d ON d.message = m.seq"
        "  WHERE m.recording = recording.seq AND d.acknowledged_on IS NULL)",
        (micros(now()), message),
    )
