"""energy: records, and hears what is louder than its surroundings. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field, model_validator

from acoupi_runtime.configuration import Config
from acoupi_runtime.programs.connected import ConnectedConfig, MessagingProgram

if TYPE_CHECKING:
    from acoupi_runtime.components import Model
    from acoupi_runtime.tasks.pipeline import Pipeline


class DetectionsConfig(Config):
    """What counts as heard."""

    threshold: float = Field(default=0.2, ge=0, le=1)
    """Detections with a lower score are dropped."""
    low_frequency: float = Field(default=1_000, ge=0)
    """Hz; energy below it is not looked at."""
    high_frequency: float = Field(default=150_000, gt=0)
    """Hz; energy above it is not looked at."""

    @model_validator(mode="after")
    def _the_band_has_an_inside(self) -> DetectionsConfig:
        if self.high_frequency <= self.low_frequency:
            raise ValueError("high_frequency is above low_frequency")
        return self


class EnergyConfig(ConnectedConfig):
    """The configuration of the energy program."""

    detections: DetectionsConfig = DetectionsConfig()


class Program(MessagingProgram[EnergyConfig]):
    """Record, detect, keep, and report."""

    config_schema: ClassVar[type[BaseModel]] = EnergyConfig

    def model(self, config: EnergyConfig) -> Model:
        """The detector."""
        from acoupi_runtime.components.energy import EnergyDetector

        return EnergyDetector(config.detections.low_frequency, config.detections.high_frequency)

    def pipeline(self, config: EnergyConfig) -> Pipeline:
        """What the connected program does, and what is made of detections."""
        from acoupi_runtime.components.messages import DetectionMessageBuilder, ThresholdDetectionCleaner

        return replace(
            super().pipeline(config),
            cleaners=(ThresholdDetectionCleaner(config.detections.threshold),),
            message_builders=(DetectionMessageBuilder(),),
        )
