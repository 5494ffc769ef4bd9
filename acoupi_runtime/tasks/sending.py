"""sending: works the outbox off. Uses the messengers; writes the store.

Each messenger has its own pace: one that cannot be reached is left alone for a while, longer each time, by the
monotonic clock and with some chance, so that a fleet does not come back all at once. The others go on.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from threading import Lock

from acoupi_runtime.clock import Clock
from acoupi_runtime.components import Messenger
from acoupi_runtime.configuration import MessagingConfig
from acoupi_runtime.data import Message, Response, ResponseStatus
from acoupi_runtime.errors import MessageSendError
from acoupi_runtime.store import Attempt, Store

logger = logging.getLogger(__name__)

BUDGET = 20.0
"""Seconds for which one call sends: well below a task's time limit."""
_BATCH = 100
"""Messages in memory at a time, and in one transaction; so many may be sent twice after a crash."""
_FIRST_PAUSE = 15.0
_LONGEST_PAUSE = 1800.0
_HOLD = 600.0
"""Seconds since boot for which what has a doubtful time waits for the clock to be synchronised: where there is a
network to send over, that comes before."""


@dataclass(slots=True)
class _Pace:
    """When a messenger is asked again."""

    due: float = float("-inf")
    failures: int = 0
    busy: Lock = field(default_factory=Lock)


class Sending:
    """Knows the messengers, and how they have fared since this process began."""

    def __init__(
        self,
        store: Store,
        messengers: tuple[Messenger, ...],
        config: MessagingConfig,
        clock: Clock,
    ) -> None:
        self._store = store
        self._messengers = messengers
        self._config = config
        self._clock = clock
        self._paces = {messenger.name: _Pace() for messenger in messengers}

    def run(self) -> None:
        """Send what waits, with each messenger whose time has come."""
        for messenger in self._messengers:
            pace = self._paces[messenger.name]
            if pace.due > self._clock.steady() or not pace.busy.acquire(blocking=False):
                continue
            try:
                self._work_off(messenger, pace)
            finally:
                pace.busy.release()

    def _work_off(self, messenger: Messenger, pace: _Pace) -> None:
        end = self._clock.steady() + BUDGET
        left = self._config.max_messages
        while left is None or left > 0:
            limit = _BATCH if left is None else min(_BATCH, left)
            attempts, error = self._send_batch(messenger, limit, end)
            self._store.attempted(messenger.name, attempts)
            if error is not None:
                self._rest(messenger, pace, error)
                return
            if pace.failures:
                logger.warning("%s: messages go out again", messenger.name)
            pace.failures = 0
            if len(attempts) < limit:
                break
            left = None if left is None else left - len(attempts)
        # Stopped by the budget, there is more: then the next call goes on at once.
        pace.due = (
            self._clock.steady() + self._config.message_send_interval
            if self._clock.steady() < end
            else self._clock.steady()
        )

    def _send_batch(
        self, messenger: Messenger, limit: int, end: float
    ) -> tuple[list[Attempt], MessageSendError | None]:
        hold = self._clock.boot_id if self._clock_may_become_right() else None
        waiting = self._store.waiting_messages(messenger.name, limit, self._config.message_order, hold=hold)
        attempts: list[Attempt] = []
        for one in waiting:
            if self._clock.steady() > end:
                break
            try:
                response = messenger.send_message(one.message)
            except MessageSendError as error:
                failed = Response(status=ResponseStatus.FAILED, message=one.message, content=str(error))
                attempts.append(Attempt(failed))
                return attempts, error
            except Exception as error:  # noqa: BLE001 - a messenger's mistake concerns this message, not those behind it
                response = _refused(one.message, error)
            attempts.append(Attempt(response, pause_after(one.attempts)))
        return attempts, None

    def _clock_may_become_right(self) -> bool:
        return not self._clock.synced() and self._clock.will_sync() and self._clock.steady() < _HOLD

    def _rest(self, messenger: Messenger, pace: _Pace, error: MessageSendError) -> None:
        if not pace.failures:  # one line per change of state
            logger.warning("%s: nothing goes out now, it is tried again: %s", messenger.name, error)
        pace.due = self._clock.steady() + pause_after(pace.failures)
        pace.failures += 1


def pause_after(failures: int) -> float:
    """Seconds before the next attempt: twice as long each time up to half an hour, and half of it by chance."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures, 16))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads a fleet's calls, and protects nothing


def _refused(message: Message, error: Exception) -> Response:
    content = f"{type(error).__name__}: {error}"
    logger.warning("message %s was not sent: %s", message.id, content)
    return Response(status=ResponseStatus.ERROR, message=message, content=content)
