"""default: records on a schedule and files what is to be kept. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel

from acoupi_runtime.configuration import BasicConfig, SavingConfig
from acoupi_runtime.programs.basic import BasicProgram


class DefaultConfig(BasicConfig):
    """The configuration of the default program."""

    recording_saving: SavingConfig | None = None
    """Which recordings are kept; without it, all."""


class Program(BasicProgram[DefaultConfig]):
    """Record, and keep."""

    config_schema: ClassVar[type[BaseModel]] = DefaultConfig
