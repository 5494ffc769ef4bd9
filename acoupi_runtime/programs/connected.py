"""connected: the default program that also reports. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

from datetime import time
from typing import ClassVar

from pydantic import BaseModel

from acoupi_runtime.configuration import MessagingConfig, SavingConfig, TimeOfDay
from acoupi_runtime.programs.basic import BasicProgram
from acoupi_runtime.programs.default import DefaultConfig


class ConnectedSavingConfig(SavingConfig):
    """As the default program's, with another start."""

    starttime: TimeOfDay = time(18, 30)


class ConnectedConfig(DefaultConfig):
    """The configuration of the connected program."""

    recording_saving: ConnectedSavingConfig | None = None
    messaging: MessagingConfig = MessagingConfig()


class Program(BasicProgram[ConnectedConfig]):
    """Record, keep, and report."""

    config_schema: ClassVar[type[BaseModel]] = ConnectedConfig
