"""recordings: recordings from complete to final. Writes rows only: no file is touched here.

A decision is stored before a file moves (`path` is where it belongs, `moving_from` where it may still be), so a crash
between the two leaves something that the rescan can finish, and never something that nobody knows of.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from acoupi_runtime.data import Capture, Deployment, Recording
from acoupi_runtime.errors import StoreError
from acoupi_runtime.store.counters import count_in
from acoupi_runtime.store.deployments import deployment_in
from acoupi_runtime.store.outbox import put_in, rewrite_in
from acoupi_runtime.store.outputs import add_outputs_in
from acoupi_runtime.store.rows import (
    DEPLOYMENT,
    RECORDING,
    Claim,
    Correction,
    Known,
    Move,
    Outcome,
    State,
    Unsynced,
    deployment_from,
    micros,
    optional_path,
    recording_from,
)
from acoupi_runtime.store.shelf import Shelf

Order = Literal["oldest_first", "newest_first"]

_INSERT = """
INSERT INTO recording (id, deployment, created_on, duration, samplerate, audio_channels, time_expansion, boot_id,
    boottime, clock_synced, capture, size, state, path)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'recorded', ?) ON CONFLICT (id) DO NOTHING"""

_FREE = "(r.lease_until IS NULL OR r.lease_boot_id IS NOT :boot OR r.lease_until <= :now)"


class Recordings(Shelf):
    """The shelf of recordings."""

    def add_recording(self, recording: Recording, capture: Capture) -> bool:
        """Store a completed recording; False if it is there already, which is then left as it is."""
        return bool(self.add_recordings(((recording, capture),)))

    def add_recordings(self, completed: Iterable[tuple[Recording, Capture]]) -> int:
        """Store completed recordings in one transaction, and count what is wrong with them; how many are new."""
        tally: Counter[str] = Counter()
        deployments: dict[UUID, int] = {}
        with self._database.writing() as connection:
            for recording, capture in completed:
                row = (
                    recording.id.bytes,
                    deployment_in(connection, recording.deployment, deployments),
                    micros(recording.created_on),
                    recording.duration,
                    recording.samplerate,
                    recording.audio_channels,
                    recording.time_expansion,
                    capture.boot_id,
                    capture.boottime,
                    capture.clock_synced,
                    capture.model_dump_json(exclude_defaults=True),
                    _size(recording.path),
                    None if recording.path is None else str(recording.path),
                )
                if connection.execute(_INSERT, row).rowcount:
                    tally.update(_noteworthy(capture))
            count_in(connection, tally)
        return tally["recordings"]

    def get_recording(self, recording_id: UUID) -> Recording:
        """A recording.

        Raises:
            StoreError: If there is none of this id.
        """
        with self._database.reading() as connection:
            found = _claims(connection, "r.id = :id", {"id": recording_id.bytes}, 1)
        if not found:
            raise StoreError(f"recording {recording_id}: there is none of this id in {self._database.path}")
        return found[0][1].recording

    def claim(self, recording_id: UUID, *, owner: str, lease: float) -> Claim | None:
        """Take one recording to work on; None if it is final, unknown, or somebody works on it."""
        where = f"r.id = :id AND r.state = 'recorded' AND {_FREE}"
        taken = self._claim(where, {"id": recording_id.bytes}, 1, owner, lease)
        return taken[0] if taken else None

    def claim_next(self, limit: int, order: Order, *, owner: str, lease: float) -> tuple[Claim, ...]:
        """Take the next recordings that wait.

        Args:
            limit: How many at most.
            order: Which come first.
            owner: The process that works on them, as `lease_owners` will list it.
            lease: Seconds after which others may try.
        """
        direction = "ASC" if order == "oldest_first" else "DESC"
        where = f"r.state = 'recorded' AND {_FREE} ORDER BY r.created_on {direction}"
        return self._claim(where, {}, limit, owner, lease)

    def _claim(self, where: str, values: dict[str, object], limit: int, owner: str, lease: float) -> tuple[Claim, ...]:
        boot, moment = self._clock.boot_id, self._clock.steady()
        # Not durable: an attempt must be remembered when it kills this process, not when the power goes.
        with self._database.writing(durable=False) as connection:
            found = _claims(connection, where, {**values, "boot": boot, "now": moment}, limit)
            connection.executemany(
                "UPDATE recording SET attempts = attempts + 1, lease_owner = ?, lease_boot_id = ?, lease_until = ?"
                " WHERE seq = ?",
                [(owner, boot, moment + lease, seq) for seq, _ in found],
            )
        return tuple(claim for _, claim in found)

    def lease_owners(self) -> frozenset[str]:
        """The processes that hold leases of this boot."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT lease_owner FROM recording WHERE state = 'recorded' AND lease_owner IS NOT NULL"
            )
            return frozenset(owner for (owner,) in rows)

    def release_leases(self, owner: str) -> None:
        """Give back what a process held that is no more; its attempts stay counted."""
        with self._database.writing(durable=False) as connection:
            connection.execute(
                "UPDATE recording SET lease_owner = NULL, lease_until = NULL"
                " WHERE state = 'recorded' AND lease_owner = ?",
                (owner,),
            )

    def failed(self, recording_id: UUID, reason: str, *, pause: float) -> None:
        """Note why an attempt failed; nobody tries again before `pause` seconds."""
        with self._database.writing(durable=False) as connection:
            connection.execute(
                "UPDATE recording SET reason = ?, lease_owner = NULL, lease_boot_id = ?, lease_until = ?"
                " WHERE id = ? AND state = 'recorded'",
                (reason, self._clock.boot_id, self._clock.steady() + pause, recording_id.bytes),
            )

    def give_back(self, claims: Iterable[Claim], *, pause: float = 0.0) -> None:
        """Undo claims whose work could not be done or stored: that was not the recordings' fault.

        What is decided, was noted as failed or given back by now stays as it is. Nobody tries before `pause` seconds.
        """
        until = self._clock.steady() + pause if pause else None
        with self._database.writing(durable=False) as connection:
            connection.executemany(
                "UPDATE recording SET attempts = attempts - 1, lease_owner = NULL, lease_until = ?"
                " WHERE id = ? AND state = 'recorded' AND attempts > 0 AND lease_owner IS NOT NULL",
                [(until, claim.recording.id.bytes) for claim in claims],
            )

    def finish(self, outcomes: Sequence[Outcome], messengers: Sequence[str]) -> tuple[Move, ...]:
        """Store what was decided, in one transaction; what has a final state already is left out.

        Args:
            outcomes: What was decided.
            messengers: The names of those that have to acknowledge the messages.

        Returns:
            The files that must follow now; the rescan finds those that do not.
        """
        moves = []
        tally: Counter[str] = Counter()
        with self._database.writing() as connection:
            for outcome in outcomes:
                source = outcome.recording.path
                moving = source is not None and source != outcome.path and outcome.state is not State.MISSING
                done = connection.execute(
                    "UPDATE recording SET state = ?, path = ?, moving_from = ?, reason = ?, lease_owner = NULL,"
                    " lease_until = NULL WHERE id = ? AND state = 'recorded' AND created_on = ? RETURNING seq",
                    (
                        outcome.state,
                        None if outcome.path is None else str(outcome.path),
                        str(source) if moving else None,
                        outcome.reason,
                        outcome.recording.id.bytes,
                        micros(outcome.recording.created_on),
                    ),
                ).fetchone()
                if done is None:
                    # Final already, or its time was corrected meanwhile: then it is decided again, with that time.
                    connection.execute(
                        "UPDATE recording SET lease_until = NULL WHERE id = ? AND state = 'recorded'",
                        (outcome.recording.id.bytes,),
                    )
                    continue
                tally[outcome.state] += 1
                add_outputs_in(connection, outcome.outputs, {outcome.recording.id: done[0]})
                put_in(connection, outcome.messages, done[0], messengers)
                if moving and source is not None:
                    moves.append(Move(outcome.recording.id, source, outcome.path))
            count_in(connection, tally)
        return tuple(moves)

    def moves(self, limit: int = 1000) -> tuple[Move, ...]:
        """Files that may not have followed a decision yet, in the order of the decisions."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, moving_from, path FROM recording WHERE moving_from IS NOT NULL ORDER BY seq LIMIT ?",
                (limit,),
            ).fetchall()
        return tuple(Move(UUID(bytes=identity), Path(source), optional_path(path)) for identity, source, path in rows)

    def settled(self, moved: Iterable[Move], lost: Iterable[Move] = ()) -> None:
        """Note which files have followed, and which are nowhere. Stored lazily: looking again does no harm."""
        same = "moving_from = :source AND path IS :target AND id = :id"  # else it was decided anew meanwhile
        with self._database.writing(durable=False) as connection:
            connection.executemany(
                f"UPDATE recording SET moving_from = NULL WHERE {same}",  # noqa: S608 - a clause of ours
                [_move_values(move) for move in moved],
            )
            missing = connection.executemany(
                "UPDATE recording SET moving_from = NULL, path = NULL, size = 0, state = 'missing'"  # noqa: S608 - ours
                f" WHERE {same}",
                [_move_values(move) for move in lost],
            ).rowcount
            count_in(connection, {"missing": max(missing, 0)})

    def reappeared(self, recording_id: UUID, path: Path) -> None:
        """A file is where it should not be any more: it follows the decision once more, or waits for one again."""
        with self._database.writing(durable=False) as connection:
            connection.execute(
                "UPDATE recording SET state = 'recorded', path = :path WHERE id = :id AND state = 'missing'",
                {"path": str(path), "id": recording_id.bytes},
            )
            connection.execute(
                "UPDATE recording SET moving_from = :path WHERE id = :id AND state != 'recorded' AND path IS NOT :path",
                {"path": str(path), "id": recording_id.bytes},
            )

    def known(self, ids: Iterable[UUID]) -> dict[UUID, Known]:
        """What the store knows of these recordings' files; unknown ones are left out."""
        found = {}
        with self._database.reading() as connection:
            for identity in ids:
                row = connection.execute(
                    "SELECT state, path, moving_from IS NOT NULL FROM recording WHERE id = ?", (identity.bytes,)
                ).fetchone()
                if row:
                    found[identity] = Known(State(row[0]), optional_path(row[1]), bool(row[2]))
        return found

    def backlog(self) -> int:
        """How many recordings wait."""
        with self._database.reading() as connection:
            return int(connection.execute("SELECT count(*) FROM recording WHERE state = 'recorded'").fetchone()[0])

    def unsynced(self, boot: str, limit: int) -> tuple[Unsynced, ...]:
        """Recordings of a boot that have the time of a clock which was not right, and whose files are at rest."""
        with self._database.reading() as connection:
            where = "r.boot_id = :boot AND r.clock_synced = 0 AND r.corrected_by IS NULL AND r.moving_from IS NULL"
            found = _claims(connection, where, {"boot": boot}, limit)
            states = [
                connection.execute("SELECT state, boottime FROM recording WHERE seq = ?", (seq,)).fetchone()
                for seq, _ in found
            ]
        return tuple(
            Unsynced(claim.recording, State(state), boottime)
            for (_, claim), (state, boottime) in zip(found, states, strict=True)
        )

    def correct_times(self, corrections: Iterable[Correction]) -> tuple[Move, ...]:
        """Correct recordings once, with what follows from their time, in one transaction.

        Returns:
            The files that must follow now.
        """
        moves = []
        number = 0
        with self._database.writing() as connection:
            for correction in corrections:
                right = micros(correction.created_on)
                row = connection.execute(
                    "UPDATE recording SET corrected_by = (? - created_on) / 1e6, created_on = ?"
                    " WHERE id = ? AND corrected_by IS NULL AND moving_from IS NULL RETURNING state, path",
                    (right, right, correction.recording_id.bytes),
                ).fetchone()
                if row is None:
                    continue
                number += 1
                rewrite_in(connection, correction.messages)
                state, path = row
                if state == State.KEPT and correction.path is not None and path != str(correction.path):
                    connection.execute(
                        "UPDATE recording SET moving_from = path, path = ? WHERE id = ?",
                        (str(correction.path), correction.recording_id.bytes),
                    )
                    moves.append(Move(correction.recording_id, Path(path), correction.path))
            count_in(connection, {"times_corrected": number})
        return tuple(moves)


def _move_values(move: Move) -> dict[str, object]:
    target = None if move.target is None else str(move.target)
    return {"id": move.id.bytes, "source": str(move.source), "target": target}


def _claims(
    connection: sqlite3.Connection, where: str, values: dict[str, object], limit: int
) -> list[tuple[int, Claim]]:
    rows = connection.execute(
        f"SELECT r.seq, r.attempts, r.capture, {RECORDING}, {DEPLOYMENT}"  # noqa: S608 - ours
        f" FROM recording r JOIN deployment d ON d.seq = r.deployment WHERE {where} LIMIT {limit:d}",
        values,
    )
    deployments: dict[bytes, Deployment] = {}
    found = []
    for seq, attempts, capture, *rest in rows:
        place: tuple[Any, ...] = tuple(rest[7:])
        deployment = deployments.get(place[0]) or deployments.setdefault(place[0], deployment_from(place))
        recording = recording_from(tuple(rest[:7]), deployment)
        found.append((seq, Claim(recording, Capture.model_validate_json(capture), attempts + 1)))
    return found


def _size(path: Path | None) -> int:
    with contextlib.suppress(OSError):
        return 0 if path is None else path.stat().st_size
    return 0


def _noteworthy(capture: Capture) -> dict[str, int]:
    """What a recording adds to the counters: a loss of sound is a figure that a person sees, never only a log line."""
    facts = {
        "recordings": 1,
        "silent": int(capture.silent),
        "clipped": int(capture.clipped > 0),
        "truncated": int(capture.truncated),
        "overflows": len(capture.overflows),
        "frames_lost": sum(frames for _, frames in capture.overflows),
        "clock_unsynced": int(not capture.clock_synced),
    }
    return {name: amount for name, amount in facts.items() if amount}
