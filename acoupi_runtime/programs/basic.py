"""basic: what all programs that record have in common. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel

from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.programs.base import AcoupiProgram, AcoupiWorker, WorkerConfig

if TYPE_CHECKING:
    from acoupi_runtime.components import Model
    from acoupi_runtime.tasks.pipeline import Pipeline
    from acoupi_runtime.tasks.work import Work

B = TypeVar("B", bound=BasicConfig)

SEPARATE = WorkerConfig(
    (AcoupiWorker("recording", ("recording",), 1), AcoupiWorker("processing", ("celery", "detection", "messaging"), 2))
)
"""What crashes while processing never stops the microphone."""

SHARED = WorkerConfig((AcoupiWorker("recording", (), 1),))
"""One process for all, for devices with little memory."""


RESCAN = 60.0
"""Seconds between two looks for what was left unfinished, and for room on the card."""
BACKLOG = 20.0
"""Seconds between two looks for recordings that wait: each hint may be lost."""


class BasicProgram(AcoupiProgram[B]):
    """Records on a schedule. The recorder reads the configuration; what follows a recording is up to subclasses.

    Attributes:
        work: The tasks' functions, after `setup`.
    """

    config_schema: ClassVar[type[BaseModel]] = BasicConfig
    work: Work

    def model(self, config: B) -> Model | None:
        """What listens to recordings; override it. Made by the worker that listens only: weights may be large."""
        del config
        return None

    def pipeline(self, config: B) -> Pipeline:
        """The other parts that follow a recording; override it, and replace some. This one keeps every file."""
        from acoupi_runtime.audio.paths import expand
        from acoupi_runtime.components.saving import DateFileManager
        from acoupi_runtime.tasks.pipeline import Pipeline

        return Pipeline(manager=DateFileManager(expand(config.paths.recordings)))

    def setup(self, config: B) -> None:
        """Add the tasks that bring each recording to its end."""
        from acoupi_runtime.configuration import MessagingConfig
        from acoupi_runtime.tasks.work import Work

        pipeline = self.pipeline(config)
        messaging = getattr(config, "messaging", None) or MessagingConfig()
        work = self.work = Work(config, self.home, pipeline, lambda: self.model(config), messaging=messaging)
        detection = self._queue("detection")
        self.add_task(work.process_recording, queue=detection, prepare=work.load_model)
        self.add_task(work.process_backlog, schedule=BACKLOG, queue=detection)
        self.add_task(work.rescan, schedule=RESCAN)
        self.add_task(work.housekeeping, schedule=RESCAN)
        if pipeline.messengers:
            queue = self._queue("messaging")
            # Often, since each messenger keeps its own pace: its interval, or a pause after a failure.
            self.add_task(work.send_messages, schedule=min(messaging.message_send_interval, 15.0), queue=queue)
            self.add_task(work.heartbeat, schedule=messaging.heartbeat_interval, queue=queue)

    def check(self, config: B) -> None:
        """Look whether the store is ours and can be opened.

        Raises:
            HealthCheckError: If it is another program's, or cannot.
        """
        from acoupi_runtime.audio.paths import expand
        from acoupi_runtime.errors import HealthCheckError, StoreError
        from acoupi_runtime.store import Store

        try:
            Store.open(expand(config.paths.db_metadata)).close()
        except StoreError as error:
            raise HealthCheckError(str(error)) from error

    def _queue(self, name: str) -> str | None:
        """A queue, or Celery's default one where no worker of the program takes it."""
        workers = self.get_worker_config(self.config).workers
        return name if any(not worker.queues or name in worker.queues for worker in workers) else None

    @classmethod
    def get_worker_config(cls, config: Any) -> WorkerConfig:
        """Two processes, or one where `isolation` is `shared`."""
        if cls.worker_config is not None:
            return cls.worker_config
        return SHARED if config.isolation == "shared" else SEPARATE
