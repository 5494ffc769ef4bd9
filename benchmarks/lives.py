"""lives: short pieces of a sensor's life over one folder, with the product's own parts, for somebody to disturb.

Each is one process, which waits at a gate until somebody has come to watch it. Time is simulated: pauses of minutes
pass at once, and sound comes as fast as it is asked for.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from acoupi_runtime.audio.paths import spool_dir
from acoupi_runtime.audio.recorder import Recorder
from acoupi_runtime.audio.state import read_state
from acoupi_runtime.configuration import DeploymentConfig
from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.home import Home
from acoupi_runtime.programs.energy import EnergyConfig
from acoupi_runtime.programs.energy import Program as EnergyProgram
from acoupi_runtime.store import Store
from acoupi_runtime.system.deployments import Current
from acoupi_runtime.system.missed import Missed
from acoupi_runtime.tasks.filing import Filing
from acoupi_runtime.tasks.work import Work
from tests.audio_rig import SimulatedClock
from tests.recordings import SetClock, leave_unfinished, record, tone

logger = logging.getLogger(__name__)

RATE = 16_000
SOUND = tone(0.5, RATE, 4000, at=0.2, length=0.1)
SECONDS, SECONDS_AFTER = 7.0, 2.0
"""For which a recorder's life lasts, and the one after it: two recordings, and two that their end cuts short."""
TASKS = ("rescan", "process_backlog", "rescan", "heartbeat", "send_messages", "housekeeping")
HEALING = 2
"""Times that all tasks are run once more: what one fault holds up is done after the pauses that it causes."""
_HOUR = 3600.0
LEFT_TO_ITSELF = 1
"""Exit code of a life that raised what a worker logs, or ends for, to be started again."""
UNCLEAR = 3
"""Exit code of a life in which something else was raised than an error of ours or the disk's, or a thread died."""


@dataclass(frozen=True)
class Place:
    """Where a sensor's life is, and what it is told to do there."""

    folder: Path
    url: str
    max_size: float | None = None
    """Bytes that recordings may take."""
    memory: Path | None = None
    """A folder in memory for recordings that are not filed yet."""

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @property
    def recordings(self) -> Path:
        return self.folder / "recordings"

    @property
    def spool(self) -> Path:
        return spool_dir(self.config)

    @property
    def store(self) -> Path:
        return self.folder / "store.db"

    @property
    def microphone(self) -> Path:
        return self.folder.parent / "microphone.wav"

    @property
    def errors(self) -> Path:
        """What its processes say."""
        return self.folder.parent / "errors"

    @property
    def config(self) -> EnergyConfig:
        return EnergyConfig.model_validate(
            {
                "timezone": "UTC",
                "microphone": {"device_name": f"file:{self.microphone}", "samplerate": RATE},
                "recording": {
                    "duration": 2.5,
                    "continuous": True,
                    "schedule_start": "00:00:00",
                    "schedule_end": "00:00:00",
                },
                "paths": {
                    "recordings": str(self.recordings),
                    "db_metadata": str(self.store),
                    "tmp_audio": None if self.memory is None else str(self.memory),
                },
                "retention": {"max_size": None if self.max_size is None else self.max_size / 1e9},
                "messaging": {"http": {"base_url": self.url, "timeout": 20}},
            }
        )


def work_at(place: Place, clock: SetClock) -> Work:
    """The tasks of the program `energy`, bound as the program binds them, to a clock that is set."""
    config = place.config
    program = EnergyProgram(config, place.home)
    return Work(
        config,
        place.home,
        program.pipeline(config),
        lambda: program.model(config),
        messaging=config.messaging,
        clock=clock,
    )


class Watch:
    """Somebody who may come to watch, and disturb, a part of a life. This one never comes."""

    def begin(self) -> None:
        """From here on."""

    def end(self) -> None:
        """Up to here."""


NOBODY = Watch()


class Gates(Watch):
    """Where a life waits for whoever watches it: before the watched part, and after it.

    Semaphores and shared memory: what is asked of the kernel for them (futex) is not what is made to fail.
    """

    def __init__(self, processes: ForkServerContext, thread: str) -> None:
        self._name = thread
        self._thread = processes.RawValue("i")
        self._arrived, self._open = processes.Semaphore(0), processes.Semaphore(0)

    def begin(self) -> None:
        self._thread.value = next(each.native_id for each in threading.enumerate() if each.name == self._name)
        self.end()

    def end(self) -> None:
        self._arrived.release()
        self._open.acquire()

    def shut(self) -> None:
        """Be as before anybody came: a process that was killed has left something."""
        for each in (self._arrived, self._open):
            while each.acquire(block=False):
                pass

    def let_through(self) -> None:
        """Let the life go on."""
        self._open.release()

    def arrival(self, process: BaseProcess, patience: float) -> int | None:
        """Wait until the life has come to a gate; the id of the thread to watch, or None where it does not come."""
        end = time.monotonic() + patience
        while not self._arrived.acquire(timeout=0.05):
            if not process.is_alive() or time.monotonic() > end:
                return None
        return int(self._thread.value)


def work_off(place: Place, watch: Watch = NOBODY, begin: float = 0.0) -> bool:
    """Do all that there is to do, watched, and see after that to what was held up; whether each task could do it."""
    clock = SetClock(since_boot=100.0 + begin)
    work = work_at(place, clock)
    work.load_model()  # a worker does so before its first task
    watch.begin()
    good = [_run(work, task) for task in TASKS]
    work.close()
    watch.end()
    for _ in range(HEALING):
        clock.since_boot += _HOUR
        good += [_run(work, task) for task in TASKS]
    work.close()
    return all(good)


def _run(work: Work, task: str) -> bool:
    try:
        getattr(work, task)()
    except (AcoupiError, OSError):  # a worker logs it, and goes on
        logger.exception("%s failed", task)
        return False
    return True


def listen(place: Place, watch: Watch = NOBODY, seconds: float = SECONDS) -> bool:
    """Record, as the worker that owns the microphone does."""
    config, home = place.config, place.home
    clock = SimulatedClock()
    clock.is_synced = True
    clock.end = clock.now + seconds
    program = EnergyProgram(config, home)
    with (
        closing(Store.at(place.store, clock)) as store,
        closing(Filing(store, hint=lambda _: None)) as filing,
        closing(Missed(store, lambda: read_state(home))) as missed,
    ):
        current = Current(store, DeploymentConfig(name="meadow"), program)
        watch.begin()
        current.begin()
        missed.look()
        Recorder(config, home, deployment=current, sink=filing, alive=lambda _: None, clock=clock).run(
            threading.Event()
        )
    return True


# What is there before it begins.


def nothing(place: Place) -> None:
    """A card with a home on it, and a store that has been opened before."""
    place.home.run_dir.mkdir(parents=True)
    place.recordings.mkdir()
    work_off(place)


def two_that_wait(place: Place) -> None:
    """One that is stored and one that is not."""
    nothing(place)
    with closing(Store.open(place.store)) as store:
        store.add_recording(*record(place.spool, SOUND, RATE))
    record(place.spool, SOUND, RATE)


def no_store(place: Place) -> None:
    """A card without a store, with a recording on it, and one that was cut short."""
    place.home.run_dir.mkdir(parents=True)
    record(place.spool, SOUND, RATE)
    leave_unfinished(place.spool, SOUND, RATE)


def a_corrupt_store(place: Place) -> None:
    """A store that is none any more, beside a recording that was filed and one that was not."""
    nothing(place)
    record(place.spool, SOUND, RATE)
    work_off(place)
    record(place.spool, SOUND, RATE)
    place.store.write_bytes(b"\xaa" * place.store.stat().st_size)


def too_many(place: Place) -> None:
    """Four recordings that were filed and uploaded, and one that waits, where there is room for three."""
    nothing(place)
    for _ in range(4):
        record(place.spool, SOUND, RATE)
    work_off(Place(place.folder, place.url))
    record(place.spool, SOUND, RATE)


@dataclass(frozen=True)
class Life:
    """One kind of life.

    Attributes:
        prepare: What is there before.
        thread: The thread that is watched.
        run: Lives it; whether nothing was raised.
        after: Lived after a kill, undisturbed: whatever was held up is done then.
        records: Whether recordings come about in it.
        rebuilds: How often the store is to be rebuilt in it.
    """

    prepare: Callable[[Place], None]
    run: Callable[[Place, Watch], bool]
    after: Callable[[Place], bool]
    max_size: float | None = None
    in_memory: bool = False
    thread: str = "MainThread"
    records: bool = False
    rebuilds: int = 0


def _later(place: Place) -> bool:
    return work_off(place, begin=10 * _HOUR)


def _listen_again(place: Place) -> bool:
    return listen(place, seconds=SECONDS_AFTER) and _later(place)


SIZE = 4096 + 2 * len(SOUND)
LIVES = {
    "recording": Life(nothing, listen, _listen_again, records=True),
    "storing": Life(nothing, listen, _listen_again, thread="filing", records=True),
    "processing": Life(two_that_wait, work_off, _later),
    "beginning": Life(no_store, work_off, _later),
    "rebuilding": Life(a_corrupt_store, work_off, _later, rebuilds=1),
    "copying": Life(two_that_wait, work_off, _later, in_memory=True),
    "making room": Life(too_many, work_off, _later, max_size=3.5 * SIZE),
}


def live(name: str, place: Place, watch: Watch | None) -> NoReturn:
    """Be the process of one life, and end it; the one after it, where nobody watches."""
    life = LIVES[name]
    os.dup2(os.open(place.errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(level=logging.WARNING, force=True, format="%(message)s")
    threading.excepthook = _thread_died
    code = UNCLEAR
    try:
        good = life.after(place) if watch is None else life.run(place, watch)
        code = 0 if good else LEFT_TO_ITSELF
    except (AcoupiError, OSError, ImportError):
        traceback.print_exc()
        code = LEFT_TO_ITSELF
    except Exception:  # noqa: BLE001 - whatever it is, the exit code says so
        traceback.print_exc()
    os._exit(code)


def _thread_died(what: Any) -> None:
    traceback.print_exception(what.exc_type, what.exc_value, what.exc_traceback)
    os._exit(UNCLEAR)
