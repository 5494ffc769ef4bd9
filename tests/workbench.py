"""A program's work on a bench, for tests: folders of its own, a clock that is set, parts that fail when told to."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from acoupi_runtime.components.messages import DetectionMessageBuilder
from acoupi_runtime.components.saving import DateFileManager
from acoupi_runtime.configuration import BasicConfig, MessagingConfig
from acoupi_runtime.data import Detection, Message, ModelOutput, Recording, Response, ResponseStatus
from acoupi_runtime.errors import MessageSendError
from acoupi_runtime.home import Home
from acoupi_runtime.store import State, Store
from acoupi_runtime.tasks.pipeline import Pipeline
from acoupi_runtime.tasks.work import Work
from tests.recordings import SetClock, files_below, record, spool_of

NAME = "2026/05/07/20260507_193015_{}.wav"
"""Where a recording with the facts of `tests.recordings` is filed, by its id."""


@dataclass
class Ears:
    """A model that hears one thing in each recording, unless it is told to fail."""

    name: str = "ears"
    version: str = "1"
    fails_for: set[uuid.UUID] = field(default_factory=set)
    heard: list[uuid.UUID] = field(default_factory=list)

    def run(self, recording: Recording) -> ModelOutput:
        self.heard.append(recording.id)
        if recording.id in self.fails_for:
            raise ValueError("a recording that it cannot bear")
        return ModelOutput(name_model="whatever", recording=recording, detections=(Detection(), Detection()))


@dataclass
class Letterbox:
    """A messenger that keeps what it is given, or is closed."""

    name: str
    open: bool = True
    got: list[uuid.UUID] = field(default_factory=list)
    tried: int = 0

    def send_message(self, message: Message) -> Response:
        self.tried += 1
        if not self.open:
            raise MessageSendError(f"{self.name}: closed")
        self.got.append(message.id)
        return Response(status=ResponseStatus.SUCCESS, message=message)


class DropAll:
    """A filter that keeps nothing."""

    def should_save_recording(self, recording: Recording, model_outputs: object) -> bool:
        del recording, model_outputs
        return False


@dataclass
class Bench:
    """A program's work over folders of its own."""

    config: BasicConfig
    work: Work
    clock: SetClock
    spool: Path
    recordings: Path

    @property
    def store(self) -> Store:
        return self.work.store

    def record(self, **facts: Any) -> Recording:
        """A recording that is complete, and stored."""
        recording, capture = record(self.spool, **facts)
        self.store.add_recording(recording, capture)
        return recording

    def filed(self) -> set[str]:
        return {name for name in files_below(self.recordings) if not name.startswith((".spool", "quarantine"))}

    def state(self, recording: Recording) -> State:
        return self.store.known((recording.id,))[recording.id].state


class MakeBench:
    """Makes benches in one folder: a later one finds what an earlier one left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._benches: list[Bench] = []

    def __call__(
        self, pipeline: dict[str, Any] | None = None, messaging: dict[str, Any] | None = None, **settings: Any
    ) -> Bench:
        paths = {"recordings": str(self._folder / "recordings"), "db_metadata": str(self._folder / "metadata.db")}
        config = BasicConfig(**{"paths": paths, **settings})
        recordings = Path(config.paths.recordings)
        parts = Pipeline(**({"manager": DateFileManager(recordings)} | (pipeline or {})))
        clock = SetClock()
        work = Work(
            config, Home(self._folder / "home"), parts, messaging=MessagingConfig(**(messaging or {})), clock=clock
        )
        bench = Bench(config, work, clock, Path(config.paths.tmp_audio or spool_of(config)), recordings)
        self._benches.append(bench)
        return bench

    def close(self) -> None:
        for bench in self._benches:
            bench.work.close()


def detecting(ears: Ears, *messengers: Letterbox) -> dict[str, Any]:
    return {"model": ears, "message_builders": (DetectionMessageBuilder(),), "messengers": messengers}


def kept(bench: Bench, number: int, size: int = 100_000) -> list[Recording]:
    """Kept recordings of about `size` bytes, a day apart."""
    first = datetime(2026, 5, 1, 12, tzinfo=UTC)
    frames = size // 2
    import numpy as np

    made = [bench.record(sound=np.zeros(frames), created_on=first + timedelta(days=day)) for day in range(number)]
    bench.work.process_backlog()
    bench.work.rescan()
    return made
