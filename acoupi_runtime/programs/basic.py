"""basic: what all programs that record have in common. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel

from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.programs.base import AcoupiProgram, AcoupiWorker, WorkerConfig

B = TypeVar("B", bound=BasicConfig)

SEPARATE = WorkerConfig(
    (AcoupiWorker("recording", ("recording",), 1), AcoupiWorker("processing", ("celery", "detection", "messaging"), 2))
)
"""What crashes while processing never stops the microphone."""

SHARED = WorkerConfig((AcoupiWorker("recording", (), 1),))
"""One process for all, for devices with little memory."""


class BasicProgram(AcoupiProgram[B]):
    """Records on a schedule. The recorder reads the configuration; what follows a recording is up to subclasses."""

    config_schema: ClassVar[type[BaseModel]] = BasicConfig

    @classmethod
    def get_worker_config(cls, config: Any) -> WorkerConfig:
        """Two processes, or one where `isolation` is `shared`."""
        if cls.worker_config is not None:
            return cls.worker_config
        return SHARED if config.isolation == "shared" else SEPARATE
