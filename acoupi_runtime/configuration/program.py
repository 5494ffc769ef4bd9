"""program: the models that program.json of the built-in programs is made of. Touches nothing.

Names and defaults follow the reference system, so that a program.json written for it is read here unchanged.
A path may begin with `~`: it is expanded on the device only, for the user that runs the services.
"""

from __future__ import annotations

from datetime import time
from typing import Any, Literal

from pydantic import Field, model_validator

from acoupi_runtime.configuration.fields import Config, Line, Secret, TimeOfDay, TimeZone


class MicrophoneConfig(Config):
    """Which microphone, and how it is asked to listen."""

    device_name: Line | None = None
    """Part of the device's name; without it, the only capture device. `file:/path.wav` plays that file in a loop."""
    samplerate: int = Field(default=48_000, ge=8_000, le=384_000)
    """Hz."""
    audio_channels: int = Field(default=1, ge=1, le=32)
    time_expansion: float = Field(default=1.0, gt=0)
    """A file is marked with the samplerate divided by this, so that ultrasound is heard slowed down."""


class TriggerConfig(Config):
    """Recordings made beside the schedule, when it becomes loud."""

    level: float = Field(default=-30, le=0, ge=-120)
    """dBFS, RMS over 50 ms, at which a recording starts."""
    pre_roll: float = Field(default=1, ge=0, le=60)
    """Seconds kept from before the trigger."""
    post_roll: float = Field(default=2, ge=0, le=600)
    """Seconds that must be quiet before the recording ends."""
    max_duration: float = Field(default=60, gt=0)
    """Seconds after which it ends however loud it is."""


class RecordingConfig(Config):
    """When, how long and in which form recordings are made."""

    duration: float = Field(default=3, gt=0, le=86_400)
    """Seconds."""
    interval: float = Field(default=10, gt=0)
    """Seconds from the start of one recording to the start of the next, by the monotonic clock."""
    continuous: bool = False
    """Recordings follow each other without a gap: the interval is the duration."""
    chunksize: int = Field(default=8192, ge=64)
    """Frames that are asked of the sound card at once."""
    schedule_start: TimeOfDay = time(6, 0)
    """Local time of day at which recording begins; equal to the end means all day."""
    schedule_end: TimeOfDay = time(22, 30)
    """Local time of day at which recording ends; earlier than the start crosses midnight."""
    format: Literal["wav", "flac"] = "wav"
    bits: Literal[16, 24] = 16
    pre_roll: float = Field(default=0, ge=0, le=60)
    """Seconds of sound from before the planned start that are put in front of each recording."""
    buffer: float = Field(default=10, ge=2, le=120)
    """Seconds of sound that are kept in memory while the card, the disk or Python stalls."""
    trigger: TriggerConfig | None = None

    @model_validator(mode="after")
    def _recordings_do_not_overlap(self) -> RecordingConfig:
        if not self.continuous and self.interval < self.duration:
            raise ValueError(
                f"interval ({self.interval:g} s) is shorter than duration ({self.duration:g} s); "
                "make it at least as long, or set continuous=true"
            )
        return self

    @property
    def period(self) -> float:
        """Seconds from the start of one recording to the start of the next."""
        return self.duration if self.continuous else self.interval


class PathsConfig(Config):
    """Where recordings and what is known of them are kept."""

    tmp_audio: Line | None = None
    """Unset, unfinished recordings are written beside the finished ones. In memory, a power cut takes them."""
    recordings: Line = "~/storages/recordings"
    db_metadata: Line = "~/storages/metadata.db"


class RetentionConfig(Config):
    """What keeps the card from filling. What was uploaded, or not kept by the filters, goes first."""

    max_age: float | None = Field(default=None, gt=0)
    """Days after which a recording is deleted."""
    max_size: float | None = Field(default=None, gt=0)
    """Gigabytes (10^9 bytes) that recordings may take."""
    high_watermark: float = Field(default=0.85, gt=0, lt=1)
    """Share of the file system at which room is made."""
    low_watermark: float = Field(default=0.75, gt=0, lt=1)
    """Share of the file system down to which room is made."""
    reserve: float = Field(default=64, ge=16)
    """Megabytes (10^6 bytes) that are kept free for the store, whatever happens."""
    when_full: Literal["stop", "drop_oldest"] = "stop"
    """When nothing may be deleted: pause recording and say so, or delete the oldest that nobody has seen."""
    max_history: float = Field(default=365, gt=0)
    """Days for which rows of deleted recordings are kept; the newest 250,000 of them at most."""

    @model_validator(mode="after")
    def _watermarks_are_in_order(self) -> RetentionConfig:
        if self.low_watermark >= self.high_watermark:
            raise ValueError("low_watermark is below high_watermark")
        return self


class SavingConfig(Config):
    """Which recordings are kept: those that any of these keeps. Without it, all are."""

    starttime: TimeOfDay = time(18, 0)
    endtime: TimeOfDay = time(20, 0)
    before_dawndusk_duration: float = Field(default=10, ge=0)
    """Minutes before dawn and before dusk."""
    after_dawndusk_duration: float = Field(default=10, ge=0)
    """Minutes after dawn and after dusk."""
    frequency_duration: float = Field(default=5, ge=0)
    """Minutes that are kept out of each `frequency_interval`."""
    frequency_interval: float = Field(default=30, ge=0)
    """Minutes; 0 keeps nothing by this rule."""


class ProcessingConfig(Config):
    """What happens when analysis is slower than recording."""

    order: Literal["oldest_first", "newest_first"] = "oldest_first"
    max_backlog: int = Field(default=10_000, ge=1)
    """Recordings that may wait to be analysed; what is beyond it is kept unanalysed, and counted."""
    max_attempts: int = Field(default=3, ge=1)
    """Times that one recording is tried before it is put in quarantine."""


class HTTPConfig(Config):
    """An HTTP receiver of messages."""

    base_url: Line = Field(pattern=r"^https?://")
    content_type: Line = "application/json"
    timeout: float = Field(default=5, gt=0)
    """Seconds."""
    method: Literal["POST", "PUT"] = "POST"
    token: Secret | None = None
    """Sent as `Authorization: Bearer ...`."""


class MessagingConfig(Config):
    """When and to whom messages are sent."""

    messages_db: Line | None = None
    """Accepted and unused: there is one store."""
    message_send_interval: float = Field(default=120, gt=0)
    """Seconds."""
    max_messages: int | None = Field(default=None, ge=1)
    """Messages sent in one go; without it, all that wait, in batches."""
    message_order: Literal["oldest_first", "newest_first"] = "oldest_first"
    heartbeat_interval: float = Field(default=3600, gt=0)
    """Seconds."""
    http: HTTPConfig | None = None


class BasicConfig(Config):
    """What every program that records has in common."""

    timezone: TimeZone = "Europe/London"
    microphone: MicrophoneConfig = MicrophoneConfig()
    recording: RecordingConfig = RecordingConfig()
    paths: PathsConfig = PathsConfig()
    retention: RetentionConfig = RetentionConfig()
    processing: ProcessingConfig = ProcessingConfig()
    isolation: Literal["separate", "shared"] = "separate"
    """`separate`: what crashes while processing never stops the microphone. `shared`: one process, less memory."""
    recovery: Literal["restart", "usb-reset", "reboot"] = "restart"
    """How far a microphone that stays dead may be revived: by new processes, its USB port, the whole device."""

    @model_validator(mode="before")
    @classmethod
    def _none_means_default(cls, values: Any) -> Any:
        # The reference system writes null for sections that nobody filled in.
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values
