"""worker: one process of a sensor, from start to end. The table of contents of system/; owns signals and the watchdog.

    main thread       the recorder, where this worker owns the microphone; else it feeds the watchdog
    thread beside     starts the following when the microphone is open, then looks whether tasks end and queues move
    thread consumer   Celery, as a library; comes back whatever happens to Redis
    thread beat       sends what is scheduled (in one worker of the sensor)
    thread hints      tells of new recordings (beside a recorder)

The recorder needs none of the others: it listens before they start, and goes on when they cannot.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from acoupi_runtime.audio.state import read_state
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.errors import AcoupiError, ProgramNotFoundError
from acoupi_runtime.home import Home
from acoupi_runtime.programs import AcoupiProgram, AcoupiWorker
from acoupi_runtime.system import files
from acoupi_runtime.system.beat import Beat
from acoupi_runtime.system.deployments import Current
from acoupi_runtime.system.missed import Missed
from acoupi_runtime.system.revival import Revival
from acoupi_runtime.system.sending import HINTED_TASK, Hints, Sender
from acoupi_runtime.system.supervise import (
    AlreadyRunningError,
    Notifier,
    holding,
    on_end_signals,
    set_up_logging,
    settle,
)
from acoupi_runtime.system.watch import Watch

if TYPE_CHECKING:
    from acoupi_runtime.system.consumer import Consumer

logger = logging.getLogger(__name__)

EXIT_DOUBT = 70
"""The process ended itself because it could not be trusted to go on (EX_SOFTWARE)."""
LOOK = 5.0
"""Seconds between two looks at the queues, the tasks and the deployment."""
TELL = 4.0
"""Seconds between two words to systemd: each costs it, and us, some work."""
DRAIN = 20.0
"""Seconds that running tasks get at the end: less than the unit's TimeoutStopSec."""


def run_worker(name: str, home: Home | None = None) -> NoReturn:
    """Be one worker until SIGTERM, and end the process.

    Raises:
        AcoupiError: If there is no such worker, its configuration is refused, or it runs already.
    """
    home = home or Home.from_environment()
    set_up_logging(home, name, sys.stderr)
    program = files.configured_program(home)
    worker = worker_of(program, name)
    with holding(home.pid_file(name), f"worker {name!r}"):
        process = _Process(program, worker)
        on_end_signals(process.end)
        code = process.run()
    logging.shutdown()
    # All is closed. The interpreter's own end would wait for tasks that hang, and race with threads that still start.
    os._exit(code)


def run_beat(home: Home | None = None) -> int:
    """Be the beat alone until SIGTERM; the exit code.

    Raises:
        AcoupiError: If a worker or another process holds the beat, or the configuration is refused.
    """
    from acoupi_runtime.system import apps

    home = home or Home.from_environment()
    set_up_logging(home, "beat", sys.stderr)
    program = files.load_program(home)
    stop = threading.Event()
    with holding(beat_lock(home), "the beat"), holding(home.pid_file("beat"), "the beat"):
        on_end_signals(stop.set)
        notifier = Notifier()
        beat = Beat(apps.entries_of(program), Sender(apps.app_of(program)).send_entry)
        notifier.send("READY=1", f"STATUS=sends {len(apps.entries_of(program))} scheduled tasks")
        settle()
        while not stop.is_set():
            pause = beat.tick()
            notifier.send("WATCHDOG=1")
            stop.wait(pause)
        notifier.send("STOPPING=1")
    return 0


def worker_of(program: AcoupiProgram[Any], name: str) -> AcoupiWorker:
    """The program's worker of this name.

    Raises:
        ProgramNotFoundError: If it has none.
    """
    workers = program.get_worker_config(program.config)
    for worker in workers.workers:
        if worker.name == name:
            return worker
    raise ProgramNotFoundError(
        f"worker {name!r}: the program has none of this name; there are {', '.join(workers.names)}"
    )


def records(program: AcoupiProgram[Any], worker: AcoupiWorker) -> bool:
    """Whether this worker owns the microphone: the first that takes the queue `recording`, if the program records."""
    workers = program.get_worker_config(program.config).workers
    takers = [one for one in workers if not one.queues or "recording" in one.queues]
    return isinstance(program.config, BasicConfig) and takers[:1] == [worker]


def beats(program: AcoupiProgram[Any], worker: AcoupiWorker) -> bool:
    """Whether this worker holds the beat: the first that does not own the microphone, if there is such a one."""
    workers = program.get_worker_config(program.config).workers
    others = [one for one in workers if not records(program, one)]
    return (others or list(workers))[0] == worker


def beat_lock(home: Home) -> Path:
    """What whoever sends scheduled tasks holds, so that they are sent once."""
    return home.run_dir / "beat.lock"


def _nothing() -> None:
    """Look at nothing: Celery did not start."""


class _Process:
    """A worker while it runs."""

    def __init__(self, program: AcoupiProgram[Any], worker: AcoupiWorker) -> None:
        self._program, self._worker, self._home = program, worker, program.home
        self._celery = files.celery_config(program.home)
        self._watch = Watch(soft=self._celery.task_soft_time_limit, hard=self._celery.task_time_limit)
        self._notifier = Notifier()
        self._records = records(program, worker)
        self._stop = threading.Event()
        self._pause = threading.Event()
        """Makes the recorder return: at the end, or when the deployment is stopped."""
        self._open = threading.Event()
        """Set once the microphone is open, or known to be missing."""
        self._beside = threading.Thread(target=self._start_and_look, name="beside", daemon=True)
        self._hints = Hints()
        self._consumer: Consumer | None = None
        self._current: Current | None = None
        self._missed: Missed | None = None
        self._revival = Revival(program.config, program.home) if self._records else None
        self._told = float("-inf")
        self._code = 0

    def end(self) -> None:
        """Make `run` come to its end. Called by a signal handler, too: it only sets what threads wait for."""
        self._stop.set()
        self._pause.set()

    def run(self) -> int:
        """Work until `end` is called."""
        self._beside.start()
        if self._records:
            self._record(self._program.config)
        while not self._stop.is_set():
            self._alive("working" if self._consumer is not None else "starting")
            self._stop.wait(LOOK)
        self._notifier.send("STOPPING=1", "STATUS=finishing what runs")
        if self._consumer is not None:
            drained = self._consumer.stop(1 if self._code == EXIT_DOUBT else DRAIN)
            work = getattr(self._program, "work", None)
            if drained and work is not None:
                work.close()  # the last one out folds the store's log into its file
        return self._code

    def _alive(self, status: str) -> None:
        """Tell systemd that this process works, unless that is in doubt. Called every few seconds, by one thread."""
        doubt = self._watch.doubt() or (None if self._beside.is_alive() else "nobody looks at the queues any more")
        if doubt is None:
            now = time.monotonic()
            if now - self._told >= TELL:
                self._told = now
                self._notifier.send("WATCHDOG=1" if self._open.is_set() else "READY=1", f"STATUS={status}")
            self._open.set()
        elif not self._stop.is_set():
            # Not fed any more, the watchdog would end this process. To go by oneself is quicker, and closes the file.
            logger.error("this worker ends, to be started again: %s", doubt)
            self._notifier.send(f"STATUS={doubt}")
            self._code = EXIT_DOUBT
            self.end()

    def _record(self, config: BasicConfig) -> None:
        """Own the microphone until the end."""
        from acoupi_runtime.audio.recorder import AlreadyRecordingError, Recorder, RestartNeededError
        from acoupi_runtime.store import Store
        from acoupi_runtime.tasks.filing import Filing

        with (
            # Not `Store.open`: a file that cannot be opened now stops no recording.
            contextlib.closing(Store.at(files.store_path(config))) as store,
            contextlib.closing(Filing(store, hint=self._hints.hint)) as filing,
            contextlib.closing(Missed(store, lambda: read_state(self._home))) as missed,
        ):
            current = Current(store, files.wanted_deployment(self._home), self._program)
            current.begin()
            self._current = current
            self._missed = missed
            recorder = Recorder(config, self._home, deployment=current, sink=filing, alive=self._alive)
            while not self._stop.is_set():
                if current.running():
                    self._pause.clear()
                    if not self._stop.is_set():  # set after the clear, it would have been lost
                        try:
                            recorder.run(self._pause)
                        except AlreadyRecordingError as error:
                            raise AlreadyRunningError(str(error)) from error
                        except RestartNeededError:
                            # On a slow device this process has ended before the thread beside looks for the first time.
                            if self._revival is not None:
                                with contextlib.suppress(OSError):
                                    self._revival.look()
                            missed.look()
                            raise
                else:
                    self._alive("no deployment is running: it was stopped by hand")
                    self._stop.wait(LOOK / 2)

    def _start_and_look(self) -> None:
        """The thread `beside`."""
        self._open.wait()
        look: Callable[[], None] = _nothing
        try:
            look = self._start()
        except Exception as error:
            if isinstance(error, AcoupiError):
                logger.error("%s", error)  # noqa: TRY400 - its text says where and what to do
            else:
                logger.exception("the program could not be set up")
            if not self._records:
                self._code = 1
                self.end()
            # A recorder goes on: what it records is processed when the program has been mended.
        settle()
        while not self._stop.wait(LOOK):
            look()
            if self._revival is not None:
                self._revival.look()
            if self._missed is not None:
                self._missed.look()
            if self._current is not None and not self._current.running():
                self._pause.set()

    def _start(self) -> Callable[[], None]:
        """Start everything that needs Celery; what is returned looks at the queues that this worker takes."""
        from acoupi_runtime.system import apps
        from acoupi_runtime.system.consumer import Consumer, RedisQueues

        self._program.setup(self._program.config)
        app = apps.app_of(self._program)
        names = self._worker.queues or apps.queues_of(self._program)
        for task in self._program.tasks.values():
            if task.prepare is not None and (task.queue or apps.DEFAULT_QUEUE) in names:
                task.prepare()
        consumer = Consumer(app, self._worker.name, names, self._worker.concurrency, self._watch)
        consumer.start()
        self._consumer = consumer
        sender = Sender(app)
        hinted = self._program.tasks.get(HINTED_TASK)
        if self._records and hinted is not None:
            self._hints.start(sender, hinted.queue or apps.DEFAULT_QUEUE)
        if self._celery.beat == "thread" and beats(self._program, self._worker):
            beat = Beat(apps.entries_of(self._program), sender.send_entry)
            threading.Thread(target=self._beat, args=(beat,), name="beat", daemon=True).start()
        queues = RedisQueues(self._home)
        return lambda: self._watch.look(queues, names)

    def _beat(self, beat: Beat) -> None:
        """The thread `beat`: waits until nobody else holds it."""
        while not self._stop.is_set():
            try:
                with holding(beat_lock(self._home), "the beat"):
                    beat.run(self._stop)
            except AlreadyRunningError as error:
                logger.info("%s", error)
                self._stop.wait(LOOK)
