"""pipeline: what a program does with each recording, as parts, and how they decide. Moves and stores nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from acoupi_runtime.components import (
    MessageBuilder,
    Messenger,
    Model,
    ModelOutputCleaner,
    ProcessingFilter,
    RecordingSavingFilter,
    RecordingSavingManager,
)
from acoupi_runtime.data import Message, ModelOutput, Recording, derived_id
from acoupi_runtime.store import Outcome, State


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The parts of a program that follow a recording.

    Attributes:
        manager: Where kept files belong.
        saving_filters: One that says yes keeps a recording; none at all keeps everything.
        model: What listens; None: nothing does.
        processing_filters: All must agree before the model runs.
        cleaners: Applied to the model's output, in order.
        message_builders: What is reported of it.
        messengers: Who brings messages to others.
    """

    manager: RecordingSavingManager
    saving_filters: tuple[RecordingSavingFilter, ...] = ()
    model: Model | None = None
    processing_filters: tuple[ProcessingFilter, ...] = ()
    cleaners: tuple[ModelOutputCleaner, ...] = ()
    message_builders: tuple[MessageBuilder, ...] = ()
    messengers: tuple[Messenger, ...] = field(default=())

    @property
    def messenger_names(self) -> tuple[str, ...]:
        """The names under which deliveries are stored."""
        return tuple(messenger.name for messenger in self.messengers)

    def decide(self, recording: Recording) -> Outcome:
        """Listen, and decide: the same recording always gives the same, ids included."""
        outputs: tuple[ModelOutput, ...] = ()
        if self.model is not None and all(one.should_process_recording(recording) for one in self.processing_filters):
            outputs = (self._listen(self.model, recording),)
        return self.keep_or_drop(recording, outputs, None)

    def keep_or_drop(self, recording: Recording, outputs: tuple[ModelOutput, ...], reason: str | None) -> Outcome:
        """Decide what becomes of a recording in which `outputs` were heard."""
        kept = not self.saving_filters or any(
            one.should_save_recording(recording, outputs) for one in self.saving_filters
        )
        path = self.manager.save_recording(recording, outputs) if kept else None
        return Outcome(
            recording,
            State.DROPPED if path is None else State.KEPT,
            path,
            reason,
            outputs,
            self.messages(outputs),
        )

    def messages(self, outputs: Iterable[ModelOutput]) -> tuple[Message, ...]:
        """What is reported of outputs; nothing where there is nobody to bring it to."""
        if not self.messengers:
            return ()
        built = (builder.build_message(output) for output in outputs for builder in self.message_builders)
        return tuple(message for message in built if message is not None)

    def _listen(self, model: Model, recording: Recording) -> ModelOutput:
        output = identified(model, recording, model.run(recording))
        for cleaner in self.cleaners:
            output = cleaner.clean(output)
        return output


def identified(model: Model, recording: Recording, output: ModelOutput) -> ModelOutput:
    """An output with ids that follow from the recording and what was heard: heard again, it is the same."""
    by = f"{model.name}@{model.version}"
    ordinals: Counter[tuple[object, ...]] = Counter()
    detections = []
    for detection in output.detections:
        start, low, end, high = (None,) * 4 if detection.location is None else detection.location.coordinates
        window = (0.0, recording.duration)  # a model hears the whole recording
        label = ",".join(sorted(f"{predicted.tag.key}={predicted.tag.value}" for predicted in detection.tags))
        what = (by, *window, start, end, low, high, label)
        detections.append(
            detection.model_copy(update={"id": derived_id(recording.id, *what, ordinals[what])}),
        )
        ordinals[what] += 1
    return output.model_copy(
        update={
            "id": derived_id(recording.id, by),
            "name_model": model.name,
            "recording": recording,
            "detections": tuple(detections),
        }
    )


def quarantine_path(recordings: Path, recording: Recording) -> Path:
    """Where the file of a recording goes that could not be processed."""
    suffix = ".wav" if recording.path is None else recording.path.suffix
    return recordings / "quarantine" / f"{recording.id}{suffix}"
