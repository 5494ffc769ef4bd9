"""data: the nouns of a sensor's life, as everything else passes them on. Touches nothing; imports only pydantic.

Instants are aware and in UTC. A naive one is taken as UTC, as older data has it.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID, uuid4, uuid5

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _aware(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def now() -> datetime:
    """The wall clock, aware, in UTC."""
    return datetime.now(UTC)


Instant = Annotated[datetime, AfterValidator(_aware)]


class Noun(BaseModel):
    """What all nouns share: they are values, and a field that nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Deployment(Noun):
    """A stay of one sensor at one place."""

    id: UUID = Field(default_factory=uuid4)
    name: str
    latitude: float | None = Field(default=None, ge=-90, le=90)
    longitude: float | None = Field(default=None, ge=-180, le=180)
    started_on: Instant = Field(default_factory=now)
    ended_on: Instant | None = None


class Recording(Noun):
    """One completed recording.

    `samplerate` is the rate of the microphone in Hz; a file with time expansion is marked with the rate divided by it.
    """

    id: UUID = Field(default_factory=uuid4)
    created_on: Instant = Field(default_factory=now)
    """The instant of the first frame."""
    duration: float = Field(gt=0)
    """Seconds of real time."""
    samplerate: int = Field(gt=0)
    audio_channels: int = Field(default=1, ge=1)
    time_expansion: float = Field(default=1.0, gt=0)
    deployment: Deployment
    path: Path | None = None


class Capture(Noun):
    """How a recording came about: what its file and its row carry beside the sound."""

    frames: int = Field(ge=0)
    """Frames in the file."""
    stream: str
    """The opening of the microphone that it was cut from: recordings of one stream meet at the frame."""
    first_frame: int = Field(ge=0)
    """Number of the first frame, counted from the opening of the stream."""
    boot_id: str
    boottime: float
    """CLOCK_BOOTTIME of the first frame, in s: with `boot_id`, the time that no clock step can change."""
    clock_synced: bool
    """Whether the wall clock was synchronised when `created_on` was computed."""
    true_samplerate: float | None = None
    """Hz, as measured against the clock; None until it has been measured."""
    overflows: tuple[tuple[int, int], ...] = ()
    """Frame of the file before which sound is missing, and how many frames are (0: unknown)."""
    peak: float | None = None
    """dBFS."""
    rms: float | None = None
    """dBFS."""
    silent: bool = False
    """At most 2 steps of the converter from peak to peak, or an RMS below -90 dBFS."""
    clipped: int = 0
    """Frames at full scale."""
    trigger: Literal["schedule", "level", "detector"] = "schedule"
    truncated: bool = False
    """It was cut short by a crash or a power cut, and repaired."""


class Tag(Noun):
    """A key and a value, such as species and Parus major."""

    key: str
    value: str


class PredictedTag(Noun):
    """A tag and how sure the model is of it, from 0 to 1."""

    tag: Tag
    confidence_score: float = 1.0


class BoundingBox(Noun):
    """A region in time (s from the recording's start) and frequency (Hz)."""

    type: Literal["BoundingBox"] = "BoundingBox"
    coordinates: tuple[float, float, float, float]
    """Start in s, lowest frequency in Hz, end in s, highest frequency in Hz."""

    @model_validator(mode="after")
    def _has_an_inside(self) -> BoundingBox:
        start, low, end, high = self.coordinates
        if not (end > start and high > low):
            raise ValueError("a bounding box ends after it starts, and its high frequency is above its low one")
        return self

    @classmethod
    def from_coordinates(cls, start: float, low: float, end: float, high: float) -> BoundingBox:
        """A box from its four sides, in s and Hz."""
        return cls(coordinates=(start, low, end, high))


class PredictionType(enum.StrEnum):
    """What a detection's region means."""

    PRESENCE = "presence"
    SEQUENCE = "sequence"
    EVENT = "event"


class Detection(Noun):
    """Something that a model heard."""

    id: UUID = Field(default_factory=uuid4)
    prediction_type: PredictionType = PredictionType.EVENT
    location: BoundingBox | None = None
    detection_score: float = Field(default=1.0, ge=0, le=1)
    tags: tuple[PredictedTag, ...] = ()


class ModelOutput(Noun):
    """What one model heard in one recording."""

    id: UUID = Field(default_factory=uuid4)
    name_model: str
    recording: Recording
    detections: tuple[Detection, ...] = ()
    created_on: Instant = Field(default_factory=now)


class Message(Noun):
    """Something to be sent: JSON text, usually. The receiver's key is the id, so that sending twice changes nothing."""

    id: UUID = Field(default_factory=uuid4)
    content: str
    created_on: Instant = Field(default_factory=now)


class ResponseStatus(enum.IntEnum):
    """How a message fared."""

    SUCCESS = 0
    FAILED = 1
    ERROR = 2
    TIMEOUT = 3


class Response(Noun):
    """What the other side said to a message."""

    status: ResponseStatus
    message: Message
    content: str | None = None
    received_on: Instant = Field(default_factory=now)


class TimeInterval(Noun):
    """A window of the day, as two `HH:MM:SS` times; start after end crosses midnight, start equal to end is all day."""

    start: str
    end: str


class Metric(Noun):
    """One figure of a heartbeat."""

    name: str
    value: float
    unit: str
    captured_on: Instant = Field(default_factory=now)


def derived_id(recording_id: UUID, *parts: object) -> UUID:
    """The id of something made from a recording: made twice, it has the same id.

    Args:
        recording_id: The recording, used as the namespace of uuid5 (RFC 9562, section 5.5).
        parts: What tells it from its siblings, such as model@version, window, start, end, low, high, label, ordinal.
    """
    return uuid5(recording_id, "\x1f".join(str(part) for part in parts))
