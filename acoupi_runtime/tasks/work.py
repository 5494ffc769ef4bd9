"""work: the tasks of a program, by name. The table of contents of tasks/; may not touch celery.

Programs add these methods as tasks. Each may be called at any time, from any thread and process, more often than
needed, and be killed anywhere. What they work on is opened when it is needed first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from threading import Lock
from typing import Concatenate, ParamSpec
from uuid import UUID

from acoupi_runtime.audio.paths import expand, spool_dir
from acoupi_runtime.clock import Clock, SystemClock
from acoupi_runtime.components import Model
from acoupi_runtime.configuration import BasicConfig, MessagingConfig
from acoupi_runtime.errors import AcoupiError, MessageSendError, StoreError
from acoupi_runtime.home import Home
from acoupi_runtime.store import Store
from acoupi_runtime.tasks.heartbeat import heartbeat
from acoupi_runtime.tasks.pipeline import Pipeline
from acoupi_runtime.tasks.process import Processing
from acoupi_runtime.tasks.rescan import Rescan
from acoupi_runtime.tasks.retention import Retention
from acoupi_runtime.tasks.sending import Sending
from acoupi_runtime.tasks.times import correct_times

logger = logging.getLogger(__name__)

P = ParamSpec("P")


def _said_once(method: Callable[Concatenate[Work, P], None]) -> Callable[Concatenate[Work, P], None]:
    """A task that raises what is wrong when it begins, and not again while it stays so: a full card lasts for days."""

    @wraps(method)
    def task(self: Work, /, *args: P.args, **kwargs: P.kwargs) -> None:
        name = method.__name__
        try:
            method(self, *args, **kwargs)
        except (AcoupiError, OSError) as error:
            if self.troubles.get(name) != str(error):
                self.troubles[name] = str(error)
                raise
        else:
            if self.troubles.pop(name, None) is not None:
                logger.warning("%s: works again", name)

    return task


@dataclass(frozen=True, slots=True)
class _Desk:
    """What is open."""

    store: Store
    rescan: Rescan
    sending: Sending
    retention: Retention


class Work:
    """What a program does with recordings and messages, bound to its configuration and parts.

    Args:
        config: The program's configuration.
        home: ACOUPI_HOME.
        pipeline: The program's parts.
        make_model: Makes its model, when it is needed first; without it, the pipeline has one or needs none.
        messaging: When messages are sent, where there are messengers.
        clock: What time it is.

    Attributes:
        troubles: What is wrong now, by the name of the task that met it.
    """

    def __init__(
        self,
        config: BasicConfig,
        home: Home,
        pipeline: Pipeline,
        make_model: Callable[[], Model | None] | None = None,
        *,
        messaging: MessagingConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._home = home
        self._pipeline = pipeline
        self._make_model = make_model
        self._messaging = messaging or MessagingConfig()
        self._clock = clock or SystemClock()
        self._recordings = expand(config.paths.recordings)
        self._reserve = config.retention.reserve * 1e6
        self.troubles: dict[str, str] = {}
        self._opening, self._loading = Lock(), Lock()
        self._opened: _Desk | None = None
        self._listening: Processing | None = None

    @property
    def _desk(self) -> _Desk:
        with self._opening:
            if self._opened is None:
                store = Store.open(expand(self._config.paths.db_metadata), self._clock)
                self._opened = _Desk(
                    store,
                    Rescan(store, spool_dir(self._config), self._recordings, self._clock, self._reserve),
                    Sending(store, self._pipeline.messengers, self._messaging, self._clock),
                    Retention(store, self._config.retention, self._recordings, self._clock, self._home.full_file),
                )
            return self._opened

    @property
    def store(self) -> Store:
        """The program's store."""
        return self._desk.store

    @property
    def _processing(self) -> Processing:
        store = self.store
        self.load_model()
        with self._opening:
            if self._listening is None:
                self._listening = Processing(
                    store, self._pipeline, self._config.processing, self._recordings, self._reserve
                )
            return self._listening

    def load_model(self) -> None:
        """Make the model, if that is still to be done: before the first recording waits for it."""
        with self._loading:
            if self._make_model is not None:
                self._pipeline = replace(self._pipeline, model=self._make_model())
                self._make_model = None

    @_said_once
    def process_recording(self, recording_id: str) -> None:
        """Bring one recording to its final state, if that is still to be done."""
        self._processing.one(UUID(recording_id))

    @_said_once
    def process_backlog(self) -> None:
        """Work for some seconds on what waits; at once back where nothing does."""
        self._processing.backlog()

    @_said_once
    def rescan(self) -> None:
        """Find what is unfinished, and correct the times of what was recorded before the clock was right."""
        self._desk.rescan.run()
        self.correct_times()

    def correct_times(self) -> None:
        """Correct the times of this boot's recordings if the clock is right by now."""
        correct_times(self._desk.store, self._pipeline, self._clock)

    @_said_once
    def send_messages(self) -> None:
        """Send what waits, after its times have been corrected."""
        self.correct_times()
        self._desk.sending.run()

    @_said_once
    def heartbeat(self) -> None:
        """Put a heartbeat into the outbox; a store that takes nothing is reported past it."""
        reserve = self._config.retention.reserve
        try:
            message = heartbeat(self.store, self._home, self._recordings, reserve, self._clock)
            self.store.put_messages((message,), self._pipeline.messenger_names)
        except StoreError as error:
            alarm = heartbeat(None, self._home, self._recordings, reserve, self._clock, trouble=str(error))
            for messenger in self._pipeline.messengers:
                with contextlib.suppress(MessageSendError):
                    messenger.send_message(alarm)
            raise

    @_said_once
    def housekeeping(self) -> None:
        """Make room on the card, and forget rows that nobody needs."""
        self._desk.retention.run(self._pipeline.messenger_names)

    def close(self) -> None:
        """Close the store; the next call opens it again."""
        with self._opening:
            if self._opened is not None:
                self._opened.store.close()
