"""base: AcoupiProgram, and the workers it asks for. Imports no celery, numpy or sounddevice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.data import Deployment
from acoupi_runtime.errors import InvalidProgramError
from acoupi_runtime.home import Home

C = TypeVar("C", bound=BaseModel)

_WORKER_NAME = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class AcoupiWorker:
    """One process that works on some queues.

    Attributes:
        name: Also the instance name of its unit: `acoupi-worker@NAME.service`.
        queues: The queues it takes tasks from; none means all.
        concurrency: Tasks that it works on at once; None means as many as there are cores.
    """

    name: str
    queues: tuple[str, ...] = ()
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if not _WORKER_NAME.fullmatch(self.name):
            raise InvalidProgramError(f"worker {self.name!r}: a name is made of a-z, 0-9, _ and -; rename it")
        if "recording" in self.queues and self.concurrency not in (None, 1):
            # The queue `recording` is worked on by the one process that owns the microphone.
            raise InvalidProgramError(
                f"worker {self.name!r}: the queue 'recording' allows one task at a time; set concurrency=1"
            )


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The processes of a program."""

    workers: tuple[AcoupiWorker, ...]

    def __post_init__(self) -> None:
        names = [worker.name for worker in self.workers]
        if not names:
            raise InvalidProgramError("a program has at least one worker; leave worker_config out for the usual one")
        if len(set(names)) != len(names):
            raise InvalidProgramError(f"workers {', '.join(names)}: each needs a name of its own; rename one")

    @property
    def names(self) -> tuple[str, ...]:
        """The workers' names, in order."""
        return tuple(worker.name for worker in self.workers)


ONE_WORKER = WorkerConfig((AcoupiWorker("default", (), 1),))
"""Of a program that declares nothing: one process for all queues."""


@dataclass(frozen=True, slots=True)
class ProgramTask:
    """Something that a program does, and when.

    Attributes:
        name: The task's name, by which `task run` finds it.
        function: What is called. Its result, if not None, is handed to each callback, as JSON through the broker.
        schedule: Seconds between two starts by the monotonic clock, a Celery schedule (crontab), or None.
        queue: The queue it waits in; None means Celery's default one.
        callbacks: Functions that are called with the result.
        callback_queue: The queue that callbacks wait in.
        prepare: Called once in each worker that takes the queue, before the first call: loads what is heavy.
    """

    name: str
    function: Callable[..., Any]
    schedule: Any = None
    queue: str | None = None
    callbacks: tuple[Callable[..., Any], ...] = ()
    callback_queue: str | None = None
    prepare: Callable[[], None] | None = None


class AcoupiProgram(Generic[C]):
    """What a sensor does. Subclass it, name a `config_schema`, and add tasks in `setup`.

    Attributes:
        config_schema: The model of this program's program.json.
        worker_config: The processes it wants; None means one that takes all queues.
        config: The validated configuration.
        home: ACOUPI_HOME.
        tasks: What `setup` added, by name.
    """

    config_schema: ClassVar[type[BaseModel]] = BasicConfig
    worker_config: ClassVar[WorkerConfig | None] = None

    def __init__(self, config: C, home: Home) -> None:
        self.config = config
        self.home = home
        self.tasks: dict[str, ProgramTask] = {}

    @classmethod
    def get_worker_config(cls, config: Any) -> WorkerConfig:
        """The processes of this program under this configuration."""
        del config  # a program may let its configuration decide; this one does not
        return cls.worker_config or ONE_WORKER

    def setup(self, config: C) -> None:
        """Add the program's tasks. Called once in each worker; what takes memory belongs into a task's `prepare`."""

    def check(self, config: C) -> None:
        """Look whether everything that the program needs is there.

        Raises:
            HealthCheckError: If something is not.
        """

    def on_start(self, deployment: Deployment) -> None:
        """Called when a deployment has started."""

    def on_end(self, deployment: Deployment) -> None:
        """Called when a deployment has ended."""

    def add_task(
        self,
        function: Callable[..., Any],
        callbacks: Sequence[Callable[..., Any]] = (),
        schedule: float | timedelta | Any = None,
        queue: str | None = None,
        callback_queue: str | None = None,
        name: str | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Add a task.

        Args:
            function: What is called.
            callbacks: Called with the result, each as a task of its own, when it is not None.
            schedule: Seconds or a timedelta between two starts, a Celery schedule, or None for on demand only.
            queue: The queue it waits in.
            callback_queue: The queue that the callbacks wait in; `queue` when left out.
            name: The task's name; the function's own when left out.
            prepare: Called once in each worker that takes the queue, before the first call.

        Raises:
            InvalidProgramError: If the name is taken or no worker takes the queue.
        """
        name = name or function.__name__
        if name in self.tasks:
            raise InvalidProgramError(f"task {name!r} exists already; give one of them another name")
        workers = self.get_worker_config(self.config).workers
        for wanted in (queue, callback_queue):
            if wanted is not None and not any(not worker.queues or wanted in worker.queues for worker in workers):
                raise InvalidProgramError(
                    f"task {name!r}: no worker takes queue {wanted!r}; declare it in worker_config"
                )
        seconds = schedule.total_seconds() if isinstance(schedule, timedelta) else schedule
        self.tasks[name] = ProgramTask(
            name, function, seconds, queue, tuple(callbacks), callback_queue or queue, prepare
        )
