"""saving: which recordings are kept, and where. Reads no file and no clock: a recording's own time and place decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from acoupi_runtime.components.types import RecordingSavingFilter
from acoupi_runtime.configuration import SavingConfig
from acoupi_runtime.data import ModelOutput, Recording

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - local time is counted, so that periods begin at local midnight


@dataclass(frozen=True, slots=True)
class SaveIfInInterval:
    """Keeps what is recorded in a window of the local day; start after end crosses midnight, equal is all day."""

    start: time
    end: time
    timezone: str

    def should_save_recording(self, recording: Recording, model_outputs: Sequence[ModelOutput]) -> bool:
        """Whether the recording began in the window."""
        del model_outputs
        moment = recording.created_on.astimezone(ZoneInfo(self.timezone)).time()
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end


@dataclass(frozen=True, slots=True)
class FrequencySchedule:
    """Keeps the first minutes of each period; periods that divide a day begin at local midnight.

    Attributes:
        duration: Minutes that are kept.
        frequency: Minutes from one period to the next.
        timezone: Whose midnight.
    """

    duration: float
    frequency: float
    timezone: str

    def should_save_recording(self, recording: Recording, model_outputs: Sequence[ModelOutput]) -> bool:
        """Whether the recording began in the first minutes of a period."""
        del model_outputs
        local = recording.created_on.astimezone(ZoneInfo(self.timezone)).replace(tzinfo=None)
        return (local - _EPOCH) % timedelta(minutes=self.frequency) < timedelta(minutes=self.duration)


@dataclass(frozen=True, slots=True)
class DawnDuskTimeInterval:
    """Keeps what is recorded within some minutes before or after dawn and dusk, at the deployment's place.

    Civil dawn and dusk: the sun is 6 degrees below the horizon. Without a place, and on days without them (in the polar
    summer and winter), nothing is kept by this rule.
    """

    duration: float
    side: Literal["before", "after"]

    def should_save_recording(self, recording: Recording, model_outputs: Sequence[ModelOutput]) -> bool:
        """Whether the recording began near dawn or dusk."""
        del model_outputs
        place = recording.deployment
        if place.latitude is None or place.longitude is None:
            return False
        width = timedelta(minutes=self.duration)
        today = recording.created_on.date()
        for day in (today - timedelta(days=1), today, today + timedelta(days=1)):
            for instant in dawn_and_dusk(place.latitude, place.longitude, day):
                since = recording.created_on - instant
                if (-width <= since < timedelta(0)) if self.side == "before" else (timedelta(0) <= since < width):
                    return True
        return False


@lru_cache(maxsize=16)
def dawn_and_dusk(latitude: float, longitude: float, day: date) -> tuple[datetime, ...]:
    """Civil dawn and dusk of a day, those that there are."""
    from astral import Observer
    from astral.sun import dawn, dusk

    found = []
    for which in (dawn, dusk):
        try:
            found.append(which(Observer(latitude, longitude), day, tzinfo=UTC))
        except ValueError:  # the sun does not get there on this day
            continue
    return tuple(found)


def saving_filters(config: SavingConfig | None, timezone: str) -> tuple[RecordingSavingFilter, ...]:
    """The filters that a configuration asks for; none, and so everything is kept, where there is no configuration."""
    if config is None:
        return ()
    filters: list[RecordingSavingFilter] = [SaveIfInInterval(config.starttime, config.endtime, timezone)]
    if config.before_dawndusk_duration:
        filters.append(DawnDuskTimeInterval(config.before_dawndusk_duration, "before"))
    if config.after_dawndusk_duration:
        filters.append(DawnDuskTimeInterval(config.after_dawndusk_duration, "after"))
    if config.frequency_duration and config.frequency_interval:
        filters.append(FrequencySchedule(config.frequency_duration, config.frequency_interval, timezone))
    return tuple(filters)


@dataclass(frozen=True, slots=True)
class DateFileManager:
    """Files recordings by their day: `YYYY/MM/DD/YYYYmmdd_HHMMSS_<id>.wav`, in UTC; the id keeps names apart."""

    directory: Path

    def save_recording(self, recording: Recording, model_outputs: Sequence[ModelOutput] = ()) -> Path:
        """Where the recording belongs."""
        del model_outputs
        suffix = ".wav" if recording.path is None else recording.path.suffix
        made = recording.created_on
        # Not strftime: it writes the year 1 without its zeros.
        day = Path(f"{made.year:04d}", f"{made.month:02d}", f"{made.day:02d}")
        name = f"{made.year:04d}{made.month:02d}{made.day:02d}_{made.hour:02d}{made.minute:02d}{made.second:02d}"
        return self.directory / day / f"{name}_{recording.id}{suffix}"
