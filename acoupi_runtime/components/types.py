"""types: what the parts of a program look like to the tasks. Touches nothing.

All are called in worker threads, possibly several at once, and may take their time; what one raises concerns only the
recording or message at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from acoupi_runtime.data import Message, ModelOutput, Recording, Response


class ProcessingFilter(Protocol):
    """Decides whether the model looks at a recording; all must agree."""

    def should_process_recording(self, recording: Recording) -> bool:
        """Whether the model is to run."""


class Model(Protocol):
    """Something that hears.

    The same recording and version give the same detections, in the same order: their ids follow from them.
    """

    name: str
    version: str

    def run(self, recording: Recording) -> ModelOutput:
        """What is heard in a recording; its file is at `recording.path`."""


class ModelOutputCleaner(Protocol):
    """Leaves out, or corrects, what a model said, before it is stored."""

    def clean(self, model_output: ModelOutput) -> ModelOutput:
        """What is left."""


class RecordingSavingFilter(Protocol):
    """Decides whether a recording is kept; one that says yes is enough, and without any all are kept."""

    def should_save_recording(self, recording: Recording, model_outputs: Sequence[ModelOutput]) -> bool:
        """Whether it is to be kept."""


class RecordingSavingManager(Protocol):
    """Decides where a kept recording belongs."""

    def save_recording(self, recording: Recording, model_outputs: Sequence[ModelOutput]) -> Path | None:
        """Where its file belongs, or None if it is not kept. Moves nothing: the file follows when this is stored."""


class MessageBuilder(Protocol):
    """Says what is to be reported of a recording.

    It is asked again when the recording's time is corrected, so its messages' ids follow from the output's.
    """

    def build_message(self, model_output: ModelOutput) -> Message | None:
        """A message, or None if there is nothing to say."""


class Messenger(Protocol):
    """Brings messages to another side."""

    name: str
    """Stable: what it has delivered is stored under it."""

    def send_message(self, message: Message) -> Response:
        """Send one message; SUCCESS only if the other side has acknowledged it.

        An answer other than SUCCESS is about this message: others are tried.

        Raises:
            MessageSendError: If the other side cannot be reached or takes nothing now; all messages wait then.
        """
