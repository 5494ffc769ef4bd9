"""consumer: Celery's part of a worker, as one thread. The only module that runs Celery.

Celery is used as a library: its command line costs 9 MiB and a second, and takes over signals and logging. Here it
consumes in a thread that comes back by itself, whatever happens to Redis or to Celery.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery, signals
from celery.worker import WorkController, state
from kombu.asynchronous import get_event_loop

from acoupi_runtime.home import Home
from acoupi_runtime.system.apps import SOCKET_TIMEOUT
from acoupi_runtime.system.files import node
from acoupi_runtime.system.watch import Watch

logger = logging.getLogger(__name__)

AGAIN = 5.0
"""Seconds until a consumer that has ended is started again."""
IDLE_POLL = 5.0
"""Seconds for which Redis holds a request for the next task. What is sent arrives at once; this is for how often an
idle worker wakes up. A worker that ends waits for the answer, so it is not longer than that."""


class Consumer:
    """Takes tasks from queues and runs them, in threads."""

    def __init__(self, app: Celery, name: str, queues: Sequence[str], concurrency: int | None, watch: Watch) -> None:
        self._app, self._name, self._queues, self._concurrency = app, name, tuple(queues), concurrency
        self._watch = watch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)
        self.ready = threading.Event()
        """Set once the first connection to Redis stands."""

    def start(self) -> None:
        """Begin to consume; returns at once."""
        # Ids of requests are Celery's; the watch only needs to tell them apart.
        signals.task_prerun.connect(self._begins, weak=False)
        signals.task_postrun.connect(self._ends, weak=False)
        self._thread.start()

    def stop(self, patience: float) -> bool:
        """Finish what runs and take nothing new; whether all had ended in time."""
        self._stop.set()
        _tell_celery(0)
        loop = get_event_loop()
        if loop is not None:
            loop.call_soon(lambda: None)  # it looks at `should_stop` when it wakes up
        if self._thread.is_alive():
            self._thread.join(patience)
        return not self._thread.is_alive()

    def _begins(self, task_id: str, task: Any, **_: object) -> None:
        self._watch.begins(task_id, task.name)

    def _ends(self, task_id: str, **_: object) -> None:
        self._watch.ends(task_id)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._controller().start()
            except Exception:
                logger.exception("Celery gave up")
            if self._stop.is_set():
                return
            logger.warning("Celery has ended; it is started again in %g s", AGAIN)
            self._stop.wait(AGAIN)
            if not self._stop.is_set():
                _tell_celery(None)

    def _controller(self) -> WorkController:
        self._app.conf.broker_transport_options["polling_interval"] = IDLE_POLL
        return WorkController(
            app=self._app,
            hostname=node(self._name),
            queues=list(self._queues),
            concurrency=self._concurrency,
            pool_cls="threads",
            loglevel=logging.INFO,
            ready_callback=lambda _: self.ready.set(),
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )


class RedisQueues:
    """How many tasks wait, asked over a connection of its own, so that Celery's being stuck does not matter."""

    def __init__(self, home: Home) -> None:
        self._client = redis.Redis(unix_socket_path=str(home.redis_socket), socket_timeout=SOCKET_TIMEOUT)

    def waiting(self, queues: Sequence[str]) -> int:
        """How many tasks wait in these queues."""
        return sum(int(str(self._client.llen(name))) for name in queues)


def _tell_celery(exit_code: int | None) -> None:
    """Make Celery's loop come to its end, or not; it looks at this each time it wakes up."""
    state.__dict__.update(should_stop=exit_code, should_terminate=None)
