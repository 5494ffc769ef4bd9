"""messages: what is left of a model's output, and what is reported of it. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass

from acoupi_runtime.data import Message, ModelOutput, derived_id


@dataclass(frozen=True, slots=True)
class ThresholdDetectionCleaner:
    """Drops detections, and tags of detections, whose score is below a threshold."""

    detection_threshold: float

    def clean(self, model_output: ModelOutput) -> ModelOutput:
        """The output without what is too unsure."""
        kept = tuple(
            detection.model_copy(
                update={
                    "tags": tuple(tag for tag in detection.tags if tag.confidence_score >= self.detection_threshold)
                }
            )
            for detection in model_output.detections
            if detection.detection_score >= self.detection_threshold
        )
        return model_output.model_copy(update={"detections": kept})


@dataclass(frozen=True, slots=True)
class DetectionMessageBuilder:
    """Reports an output as JSON, if anything was heard."""

    def build_message(self, model_output: ModelOutput) -> Message | None:
        """A message about all detections of a recording, or None if there are none."""
        if not model_output.detections:
            return None
        return Message(
            id=derived_id(model_output.recording.id, "message", model_output.id),
            content=model_output.model_dump_json(),
        )
