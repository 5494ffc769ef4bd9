"""celery: the model of celery.json. Imports no Celery."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from acoupi_runtime.configuration.fields import Config, TimeZone


class CeleryConfig(Config):
    """How tasks travel and how long they may take.

    The broker is always the home's own Redis socket, and everything through it is JSON: neither is a choice.
    """

    timezone: TimeZone = "UTC"
    """Of crontab schedules."""
    task_soft_time_limit: float = Field(default=30, gt=0)
    """Seconds after which a task is told to end."""
    task_time_limit: float = Field(default=60, gt=0)
    """Seconds after which its worker is restarted."""
    worker_prefetch_multiplier: int = Field(default=1, ge=1)
    result_expires: float = Field(default=3600, gt=0)
    """Seconds for which a result is kept in Redis."""
    beat: Literal["thread", "unit"] = "thread"
    """Beat runs as a thread of the processing worker, or as a unit of its own."""
