"""filing: takes completed recordings from the recorder, and stores their rows in a thread of its own. Writes the store.

The recorder never waits for the store, and the store may fail: a completed file says all that its row needs, and the
rescan finds it within a minute.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from uuid import UUID

from acoupi_runtime.data import Capture, Recording
from acoupi_runtime.errors import StoreError
from acoupi_runtime.store import Store

logger = logging.getLogger(__name__)

_IDLE = 30.0
"""Seconds without a recording after which a connection to a store that is to be replaced is given up."""
_BATCH = 256


class Filing:
    """The recorder's sink.

    Args:
        store: Where the rows go.
        hint: Called with the id of each new recording; it returns at once, and does not raise.
    """

    def __init__(self, store: Store, *, hint: Callable[[UUID], None]) -> None:
        self._store = store
        self._hint = hint
        self._queue: queue.SimpleQueue[tuple[Recording, Capture] | None] = queue.SimpleQueue()
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="filing", daemon=True)
        self._thread.start()

    def completed(self, recording: Recording, capture: Capture) -> None:
        """Take a recording that is complete; returns at once. Called by the recorder's thread."""
        self._queue.put((recording, capture))

    def close(self, timeout: float = 20.0) -> None:
        """Store what was taken, and end; what takes longer than `timeout` seconds is left to the rescan."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            batch: list[tuple[Recording, Capture]] = []
            try:
                item = self._queue.get(timeout=_IDLE)
                while item is not None:
                    batch.append(item)
                    if len(batch) == _BATCH:
                        break
                    item = self._queue.get_nowait()
                ends = item is None
            except queue.Empty:
                ends = False
            if batch:
                self._store_batch(batch)
            else:
                self._store.let_go_if_suspect()
            if ends:
                return

    def _store_batch(self, batch: list[tuple[Recording, Capture]]) -> None:
        try:
            self._store.add_recordings(batch)
        except StoreError as error:
            if not self._failing:  # one line per change of state: a full card lasts for days
                logger.error("recordings are complete, but not stored yet; the rescan will: %s", error)  # noqa: TRY400
            self._failing = True
            return
        except Exception:  # whatever it is, those that follow are to be stored
            logger.exception("recordings are complete, but cannot be stored")
            return
        if self._failing:
            logger.warning("recordings are stored again")
        self._failing = False
        for recording, _ in batch:
            self._hint(recording.id)
