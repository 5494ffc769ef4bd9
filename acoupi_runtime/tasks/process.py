"""process: brings recordings that wait to a final state. Runs the models, writes the store, and moves files after it.

All of it may be repeated and may be killed anywhere. One process has a recording at a time, by a lease in the store;
should two have it all the same, what the second one decides is left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from uuid import UUID

from acoupi_runtime.configuration import ProcessingConfig
from acoupi_runtime.disk import is_there
from acoupi_runtime.errors import StoreError
from acoupi_runtime.store import Claim, Move, Order, Outcome, State, Store
from acoupi_runtime.tasks.files import follow
from acoupi_runtime.tasks.pipeline import Pipeline, quarantine_path

logger = logging.getLogger(__name__)

_LEASE = 180.0
"""Seconds: three times the usual time limit of a task. It ends earlier when its process does."""
_RETRY = 60.0
"""Seconds before the second attempt; the third waits twice as long."""
_BATCH = 256
"""Recordings that are decided on in one transaction where no model has to listen to them."""
BUDGET = 15.0
"""Seconds for which one call works on the backlog: well below a task's time limit."""


class Processing:
    """Knows the parts of the program, and works on what waits."""

    def __init__(
        self, store: Store, pipeline: Pipeline, config: ProcessingConfig, recordings: Path, reserve: float
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._config = config
        self._recordings = recordings
        self._reserve = reserve
        self._draining = Lock()
        self._behind = False
        self._last_reason = ""

    def one(self, recording_id: UUID) -> None:
        """Process one recording, if it waits and nobody works on it."""
        claim = self._store.claim(recording_id, owner=this_process(), lease=_LEASE)
        if claim is not None:
            self._process((claim,))

    def backlog(self, budget: float = BUDGET) -> int:
        """Process what waits, for some seconds; returns how many were. A second call at the same time does nothing."""
        if not self._draining.acquire(blocking=False):
            return 0
        try:
            return self._drain(time.monotonic() + budget)
        finally:
            self._draining.release()

    def _drain(self, end: float) -> int:
        done = 0
        order = self._config.order
        while time.monotonic() < end:
            done += self._give_up_excess()
            size = _BATCH if self._pipeline.model is None else 1
            claims = self._store.claim_next(size, order, owner=this_process(), lease=_LEASE)
            if not claims:
                break
            self._process(claims)
            done += len(claims)
        return done

    def _give_up_excess(self) -> int:
        """Keep unanalysed what the model will never catch up with: those that would be its last."""
        if self._pipeline.model is None:
            return 0
        excess = self._store.backlog() - self._config.max_backlog
        if excess <= 0:
            self._behind = False
            return 0
        last: Order = "newest_first" if self._config.order == "oldest_first" else "oldest_first"
        claims = self._store.claim_next(min(excess, _BATCH), last, owner=this_process(), lease=_LEASE)
        self._store.count("not_analysed", len(claims))
        if not self._behind:  # one line per change of state: it may stay so for days
            logger.warning("analysis is slower than recording: what is beyond max_backlog is kept unanalysed")
        self._behind = True
        with self._giving_back(claims):
            self._finish(
                claims, [self._pipeline.keep_or_drop(one.recording, (), "not analysed: backlog") for one in claims]
            )
        return len(claims)

    def _process(self, claims: Sequence[Claim]) -> None:
        with self._giving_back(claims):
            outcomes = [self._decide(claim) for claim in claims]
            self._finish(claims, [outcome for outcome in outcomes if outcome is not None])

    @contextlib.contextmanager
    def _giving_back(self, claims: Sequence[Claim]) -> Iterator[None]:
        """Whatever is raised past the decisions, of a disk or a store, was not the recordings' fault."""
        try:
            yield
        except Exception:
            self._store.give_back(claims)
            raise

    def _finish(self, claims: Sequence[Claim], outcomes: Sequence[Outcome]) -> None:
        try:
            moves = self._store.finish(outcomes, self._pipeline.messenger_names)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - a value that no row can hold, of a model or a filter
            self._finish_each(claims, outcomes, error)
            return
        self._follow(moves)

    def _finish_each(self, claims: Sequence[Claim], outcomes: Sequence[Outcome], error: Exception) -> None:
        """Find the outcome that cannot be stored: it is a failure of its own recording, and not of those beside it."""
        by_id = {claim.recording.id: claim for claim in claims}
        for outcome in outcomes:
            claim = by_id[outcome.recording.id]
            if len(outcomes) > 1:
                self._finish((claim,), (outcome,))
            elif (instead := self._failed(claim, error)) is not None:
                self._follow(self._store.finish((instead,), ()))

    def _follow(self, moves: Sequence[Move]) -> None:
        # The rescan moves what cannot follow now, and sees that all of it lasts.
        follow(moves, durable=False, reserve=self._reserve)

    def _decide(self, claim: Claim) -> Outcome | None:
        """What becomes of a recording, or None if it is tried again later.

        Raises:
            OSError: If its folder cannot be read.
            ImportError: If a part of the program is not there, or cannot be read now.
        """
        recording = claim.recording
        if claim.attempts > self._config.max_attempts:
            return self._quarantine(claim, "it ended the process that worked on it, every time")
        if recording.path is None or not self._is_there(claim, recording.path):
            return Outcome(recording, State.MISSING, None, "its file is not there")
        try:
            return self._pipeline.decide(recording)
        except ImportError:
            # The program's trouble, such as a library that the card does not give now: no recording is given up for it.
            self._store.give_back((claim,), pause=_RETRY)
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it concerns this recording alone
            return self._failed(claim, error)

    def _is_there(self, claim: Claim, path: Path) -> bool:
        """Whether a recording's file is there; where nobody can say, it waits, and those behind it come first."""
        try:
            return is_there(path)
        except OSError as error:
            self._store.give_back((claim,), pause=_RETRY)
            # The folder is named, not the file: else each recording in it would be another trouble to be said.
            raise OSError(error.errno, error.strerror, str(path.parent)) from error

    def _failed(self, claim: Claim, error: Exception) -> Outcome | None:
        """Let a recording be tried again later, or give it up."""
        reason = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        if claim.attempts >= self._config.max_attempts:
            return self._quarantine(claim, reason)
        self._tell(logging.WARNING, f"{claim.recording.path}: failed, and is tried again", reason)
        self._store.failed(claim.recording.id, reason, pause=_RETRY * claim.attempts)
        return None

    def _quarantine(self, claim: Claim, reason: str) -> Outcome:
        path = quarantine_path(self._recordings, claim.recording)
        self._tell(logging.ERROR, f"{claim.recording.path}: goes to {path}", reason)
        return Outcome(claim.recording, State.QUARANTINED, path, reason)

    def _tell(self, level: int, what: str, reason: str) -> None:
        """Log what fails; not each recording, where all fail for the same reason."""
        logger.log(level if reason != self._last_reason else logging.DEBUG, "%s: %s", what, reason)
        self._last_reason = reason


def this_process() -> str:
    """A name for this process that no other has had since boot: its number, and when it began."""
    return _name_of(os.getpid()) or f"{os.getpid()}:"


def is_alive(owner: str) -> bool:
    """Whether the process of this name still runs."""
    pid, _, began = owner.partition(":")
    if not began:
        return Path("/proc", pid).exists()
    return _name_of(int(pid)) == owner


def _name_of(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # proc(5): field 22 is the start; the second one, in brackets, may hold anything.
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}"
