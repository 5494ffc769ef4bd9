"""default: records on a schedule and files what is to be kept. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import BaseModel

from acoupi_runtime.configuration import BasicConfig, SavingConfig
from acoupi_runtime.programs.basic import BasicProgram

if TYPE_CHECKING:
    from acoupi_runtime.tasks.pipeline import Pipeline


class DefaultConfig(BasicConfig):
    """The configuration of the default program."""

    recording_saving: SavingConfig | None = None
    """Which recordings are kept; without it, all."""


D = TypeVar("D", bound=DefaultConfig)


class SavingProgram(BasicProgram[D]):
    """Keeps what its filters keep."""

    def pipeline(self, config: D) -> Pipeline:
        """What the basic program does, and the filters that the configuration asks for."""
        from acoupi_runtime.components.saving import saving_filters

        return replace(
            super().pipeline(config), saving_filters=saving_filters(config.recording_saving, config.timezone)
        )


class Program(SavingProgram[DefaultConfig]):
    """Record, and keep."""

    config_schema: ClassVar[type[BaseModel]] = DefaultConfig
