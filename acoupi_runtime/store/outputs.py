"""outputs: what models heard. Writes rows only.

An output is stored with all its detections in one transaction, so an id that is there stands for all of it, and storing
it again changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from uuid import UUID

from acoupi_runtime.data import (
    BoundingBox,
    Detection,
    ModelOutput,
    PredictedTag,
    PredictionType,
    Recording,
    Tag,
)
from acoupi_runtime.errors import StoreError
from acoupi_runtime.store.rows import instant, micros
from acoupi_runtime.store.shelf import Shelf


class Outputs(Shelf):
    """The shelf of model outputs."""

    def add_model_outputs(self, outputs: Iterable[ModelOutput]) -> None:
        """Store outputs of recordings that are here, in one transaction.

        Raises:
            StoreError: If one is of a recording that is not here.
        """
        with self._database.writing() as connection:
            add_outputs_in(connection, outputs, {})

    def get_model_outputs(self, recording: Recording) -> tuple[ModelOutput, ...]:
        """What the models heard in a recording, in the order in which it was stored."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT o.seq, o.id, o.name_model, o.created_on FROM model_output o"
                " JOIN recording r ON r.seq = o.recording WHERE r.id = ? ORDER BY o.seq",
                (recording.id.bytes,),
            ).fetchall()
            return tuple(
                ModelOutput(
                    id=UUID(bytes=identity),
                    name_model=name,
                    recording=recording,
                    created_on=instant(created_on),
                    detections=_detections(connection, seq),
                )
                for seq, identity, name, created_on in rows
            )


def add_outputs_in(
    connection: sqlite3.Connection, outputs: Iterable[ModelOutput], recordings: Mapping[UUID, int]
) -> None:
    """Store outputs within a transaction.

    Args:
        connection: In a transaction.
        outputs: What models heard.
        recordings: Rows of recordings that are known already.
    """
    tags: dict[Tag, int] = {}
    detection_rows: list[tuple[object, ...]] = []
    tag_rows: list[tuple[object, ...]] = []
    for output in outputs:
        recording = recordings.get(output.recording.id) or _recording_seq(connection, output.recording.id)
        row = connection.execute(
            "INSERT INTO model_output (id, recording, name_model, created_on) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO NOTHING RETURNING seq",
            (output.id.bytes, recording, output.name_model, micros(output.created_on)),
        ).fetchone()
        if row is None:
            continue
        seq = row[0]
        for number, detection in enumerate(output.detections):
            box = (None, None, None, None) if detection.location is None else detection.location.coordinates
            detection_rows.append(
                (seq, number, detection.id.bytes, detection.prediction_type, detection.detection_score, *box)
            )
            for place, predicted in enumerate(detection.tags):
                tag = tags.get(predicted.tag) or _tag_seq(connection, predicted.tag, tags)
                tag_rows.append((seq, number, place, tag, predicted.confidence_score))
    connection.executemany("INSERT INTO detection VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", detection_rows)
    connection.executemany("INSERT INTO predicted_tag VALUES (?, ?, ?, ?, ?)", tag_rows)


def _recording_seq(connection: sqlite3.Connection, recording_id: UUID) -> int:
    row = connection.execute("SELECT seq FROM recording WHERE id = ?", (recording_id.bytes,)).fetchone()
    if row is None:
        raise StoreError(f"recording {recording_id}: it is not stored; store it before what was heard in it")
    return int(row[0])


def _tag_seq(connection: sqlite3.Connection, tag: Tag, seen: dict[Tag, int]) -> int:
    connection.execute("INSERT INTO tag (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING", (tag.key, tag.value))
    row = connection.execute("SELECT seq FROM tag WHERE key = ? AND value = ?", (tag.key, tag.value)).fetchone()
    seen[tag] = int(row[0])
    return seen[tag]


def _detections(connection: sqlite3.Connection, output: int) -> tuple[Detection, ...]:
    tags: dict[int, list[PredictedTag]] = {}
    for number, key, value, confidence in connection.execute(
        "SELECT p.detection, t.key, t.value, p.confidence FROM predicted_tag p JOIN tag t ON t.seq = p.tag"
        " WHERE p.model_output = ? ORDER BY p.detection, p.ordinal",
        (output,),
    ):
        tags.setdefault(number, []).append(PredictedTag(tag=Tag(key=key, value=value), confidence_score=confidence))
    rows = connection.execute(
        'SELECT ordinal, id, prediction_type, score, start, low, "end", high FROM detection'
        " WHERE model_output = ? ORDER BY ordinal",
        (output,),
    )
    return tuple(
        Detection(
            id=UUID(bytes=identity),
            prediction_type=PredictionType(kind),
            detection_score=score,
            location=None if start is None else BoundingBox.from_coordinates(start, low, end, high),
            tags=tuple(tags.get(number, ())),
        )
        for number, identity, kind, score, start, low, end, high in rows
    )
