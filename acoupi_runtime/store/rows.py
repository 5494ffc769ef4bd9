"""rows: from nouns to rows and back, and the few values that only the store and the tasks exchange. Touches nothing."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from acoupi_runtime.data import Capture, Deployment, Message, ModelOutput, Recording

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class State(enum.StrEnum):
    """Where a recording is on its way; all but the first are final."""

    RECORDED = "recorded"
    """Complete, and nothing is decided yet."""
    KEPT = "kept"
    DROPPED = "dropped"
    QUARANTINED = "quarantined"
    """It could not be processed, after several attempts; its file is kept apart."""
    MISSING = "missing"
    """Its file was not there when it was wanted."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A recording that the caller may work on until its lease ends.

    Attributes:
        recording: The recording, where its file is now.
        capture: How it came about.
        attempts: How often it has been claimed, this time included.
    """

    recording: Recording
    capture: Capture
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided about a recording, all of which is stored at once or not at all.

    Attributes:
        recording: The recording, where its file is now.
        state: A final state.
        path: Where the file belongs; None deletes it.
        reason: Why, where that is not obvious.
        outputs: What the models heard.
        messages: What is to be sent.
    """

    recording: Recording
    state: State
    path: Path | None = None
    reason: str | None = None
    outputs: tuple[ModelOutput, ...] = ()
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """A file that has to follow a stored decision.

    Attributes:
        id: The recording.
        source: Where the file may still be.
        target: Where it belongs; None: nowhere, it goes.
    """

    id: UUID
    source: Path
    target: Path | None


@dataclass(frozen=True, slots=True)
class Unsynced:
    """A recording that has the time of a clock which was not right.

    Attributes:
        recording: The recording.
        state: Where it is on its way.
        boottime: CLOCK_BOOTTIME of its first frame.
    """

    recording: Recording
    state: State
    boottime: float


@dataclass(frozen=True, slots=True)
class Correction:
    """What is stored when a recording's time is known better.

    Attributes:
        recording_id: The recording.
        created_on: The right instant of its first frame.
        path: Where a kept file belongs, by that time.
        messages: Its messages, by that time; those that somebody acknowledged stay as they were.
    """

    recording_id: UUID
    created_on: datetime
    path: Path | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows of a recording's file."""

    state: State
    path: Path | None
    moving: bool


def micros(instant: datetime) -> int:
    """An instant as the store keeps it."""
    return (instant - _EPOCH) // _MICROSECOND


def instant(stored: int) -> datetime:
    """An instant from how the store keeps it."""
    return _EPOCH + timedelta(microseconds=stored)


def optional_path(text: str | None) -> Path | None:
    """A path from a column that may be NULL."""
    return None if text is None else Path(text)


DEPLOYMENT = "d.id, d.name, d.latitude, d.longitude, d.started_on, d.ended_on"
"""The columns that `deployment_from` reads, of a table called d."""


def deployment_from(row: tuple[Any, ...]) -> Deployment:
    """A deployment from the columns DEPLOYMENT."""
    identity, name, latitude, longitude, started_on, ended_on = row
    return Deployment(
        id=UUID(bytes=identity),
        name=name,
        latitude=latitude,
        longitude=longitude,
        started_on=instant(started_on),
        ended_on=None if ended_on is None else instant(ended_on),
    )


RECORDING = "r.id, r.created_on, r.duration, r.samplerate, r.audio_channels, r.time_expansion, r.path"
"""The columns that `recording_from` reads, of a table called r."""


def recording_from(row: tuple[Any, ...], deployment: Deployment) -> Recording:
    """A recording from the columns RECORDING."""
    identity, created_on, duration, samplerate, audio_channels, time_expansion, path = row
    return Recording(
        id=UUID(bytes=identity),
        created_on=instant(created_on),
        duration=duration,
        samplerate=samplerate,
        audio_channels=audio_channels,
        time_expansion=time_expansion,
        deployment=deployment,
        path=optional_path(path),
    )
