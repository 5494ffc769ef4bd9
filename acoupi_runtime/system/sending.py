"""sending: who sends tasks: beat, and a recorder that says "look now". Never raises, never keeps a recorder waiting.

Imports no celery: a recorder takes hints before Celery is there.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from acoupi_runtime.system.beat import Entry

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

HINTED_TASK = "process_recording"
"""The task of built-in programs that is told of a new recording."""


class Sender:
    """Sends tasks from any thread, and says whether that worked; never raises."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, name: str, queue_name: str, args: Sequence[Any] = (), expires: float | None = None) -> bool:
        """Send one task; False where Redis is away."""
        try:
            self._app.send_task(name, args=list(args), queue=queue_name, expires=expires, ignore_result=True)
        except Exception as error:  # noqa: BLE001 - of kombu, redis or the kernel: it was not sent, and that is said
            logger.warning("%s is not sent, Redis is away: %s", name, error)
            return False
        return True

    def send_entry(self, entry: Entry, lifetime: float) -> bool:
        """Send what beat wants sent."""
        return self.send(entry.name, entry.queue, expires=lifetime)


class Hints:
    """Says "look now" when a recording is complete; may forget to, since the rescan finds it anyway.

    Attributes:
        forgotten: Hints that were dropped because more than `SIZE` waited.
    """

    SIZE = 100

    def __init__(self) -> None:
        self._waiting: queue.Queue[UUID] = queue.Queue(self.SIZE)
        self.forgotten = 0

    def hint(self, recording_id: UUID) -> None:
        """Note a recording. Called from any thread; never blocks, never raises."""
        try:
            self._waiting.put_nowait(recording_id)
        except queue.Full:
            self.forgotten += 1

    def start(self, sender: Sender, queue_name: str) -> None:
        """Begin to send, in a thread of its own."""
        threading.Thread(target=self._run, args=(sender, queue_name), name="hints", daemon=True).start()

    def _run(self, sender: Sender, queue_name: str) -> None:
        while True:
            sender.send(HINTED_TASK, queue_name, [str(self._waiting.get())])
