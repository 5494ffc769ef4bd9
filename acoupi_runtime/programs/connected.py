"""connected: the default program that also reports. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

from dataclasses import replace
from datetime import time
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import BaseModel

from acoupi_runtime.configuration import MessagingConfig, SavingConfig, TimeOfDay
from acoupi_runtime.programs.default import DefaultConfig, SavingProgram

if TYPE_CHECKING:
    from acoupi_runtime.tasks.pipeline import Pipeline


class ConnectedSavingConfig(SavingConfig):
    """As the default program's, with another start."""

    starttime: TimeOfDay = time(18, 30)


class ConnectedConfig(DefaultConfig):
    """The configuration of the connected program."""

    recording_saving: ConnectedSavingConfig | None = None
    messaging: MessagingConfig = MessagingConfig()


N = TypeVar("N", bound=ConnectedConfig)


class MessagingProgram(SavingProgram[N]):
    """Reports to those that the configuration names; where it names none, nothing waits to be sent."""

    def pipeline(self, config: N) -> Pipeline:
        """What the default program does, and the messengers."""
        pipeline = super().pipeline(config)
        if config.messaging.http is None:
            return pipeline
        from acoupi_runtime.components.http import HTTPMessenger

        return replace(pipeline, messengers=(HTTPMessenger(config.messaging.http),))


class Program(MessagingProgram[ConnectedConfig]):
    """Record, keep, and report."""

    config_schema: ClassVar[type[BaseModel]] = ConnectedConfig
