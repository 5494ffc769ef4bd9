"""rescan: finds what a crash, a lost hint or a new store left unfinished. Reads folders; writes the store, moves files.

Files are the truth about sound, the store about decisions. Each step is bounded, may be repeated, and may be killed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from uuid import UUID

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.audio.paths import in_memory
from acoupi_runtime.audio.repair import repair_parts
from acoupi_runtime.clock import Clock, wall_offset
from acoupi_runtime.data import Capture, Recording
from acoupi_runtime.disk import is_there, sync_dir
from acoupi_runtime.store import State, Store
from acoupi_runtime.tasks.files import follow
from acoupi_runtime.tasks.process import is_alive

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".wav", ".flac"})
_BATCH = 500
_BUDGET = 20.0
"""Seconds for which one rescan reads files that the store does not know; the next one goes on."""
_STEP = 1.0
"""Seconds by which the wall clock must have moved to count as a step; slewing moves it by 0.03 in a minute at most."""


class Rescan:
    """Knows where recordings are, and compares that with the store."""

    def __init__(self, store: Store, spool: Path, recordings: Path, clock: Clock, reserve: float) -> None:
        self._store = store
        self._spool = spool
        self._recordings = recordings
        self._clock = clock
        self._reserve = reserve
        self._offset = wall_offset(clock)
        self._no_recordings: set[Path] = set()
        """Files in the spool, or filed, that nobody can make anything of."""
        self._unread: set[Path] = set()
        """Files that could not be read the last time."""
        self._walked = False
        """Whether, of the filed recordings, only those that could not be read are to be looked at for a new store."""

    def run(self) -> None:
        """Look once at everything."""
        if not self._store.verify():
            logger.error("%s: it is corrupt; it is moved aside and rebuilt from the files", self._store.path)
            return
        self._notice_clock_step()
        for owner in self._store.lease_owners():
            if not is_alive(owner):
                self._store.release_leases(owner)
        self.settle()
        self._adopt_spool()
        if self._store.rebuilding:
            self._adopt_recordings()

    def settle(self) -> None:
        """Let files follow that did not when it was decided.

        Raises:
            OSError: If some cannot, such as on a card that has become read-only; the others have.
        """
        while moves := self._store.moves(_BATCH):
            followed = follow(moves, reserve=self._reserve)
            self._store.settled(followed.done, followed.lost)
            if followed.error is not None:
                raise followed.error
            if len(moves) < _BATCH:
                return

    def _notice_clock_step(self) -> None:
        offset = wall_offset(self._clock)
        step = offset - self._offset
        if abs(step) >= _STEP:
            logger.warning("the wall clock was moved by %+.1f s", step)
            self._store.add_clock_step(step)
        self._offset = offset

    def _adopt_spool(self) -> None:
        if not is_there(self._spool):
            return
        repair_parts(self._spool)
        for paths in _batches(path for path in self._spool.iterdir() if path.suffix in SUFFIXES):
            known = self._store.known(identity for identity in map(_id_of, paths) if identity is not None)
            unknown = []
            for path in paths:
                identity = _id_of(path)
                found = None if identity is None else known.get(identity)
                if identity is None or found is None:
                    unknown.append(path)
                elif found.state is not State.RECORDED and not found.moving and found.path != path:
                    self._store.reappeared(identity, path)
            self._adopt(unknown, quarantine=True)
        self.settle()

    def _adopt_recordings(self) -> None:
        """Learn from the filed recordings what a new store does not know; they are processed again, to the same end."""
        end = time.monotonic() + _BUDGET
        for paths in _batches(self._unread.copy() if self._walked else self._filed()):
            known = self._store.known(identity for identity in map(_id_of, paths) if identity is not None)
            self._unread.difference_update(path for path in paths if _id_of(path) in known)
            self._adopt((path for path in paths if _id_of(path) not in known), quarantine=False)
            if time.monotonic() > end:
                return
        self._walked = bool(self._unread)
        if not self._unread:
            self._store.rebuilt()

    def _filed(self) -> Iterator[Path]:
        """All files below the recordings that are, by their place, recordings that were kept.

        Raises:
            OSError: If a folder cannot be read. `Path.rglob` leaves it out, in some versions of Python.
        """
        for folder, inside, names in os.walk(self._recordings, onerror=_raise):
            here = Path(folder)
            if here == self._recordings and "quarantine" in inside:
                inside.remove("quarantine")
            if self._spool.name in inside and here == self._spool.parent:
                inside.remove(self._spool.name)
            yield from (here / name for name in names if Path(name).suffix in SUFFIXES and not name.startswith("."))

    def _adopt(self, paths: Iterable[Path], *, quarantine: bool) -> None:
        adopted: list[tuple[Recording, Capture]] = []
        for path in paths:
            if path in self._no_recordings:
                continue
            try:
                found = read_guano(path)
            except FileNotFoundError:
                self._unread.discard(path)
                continue  # it was filed between the listing and now
            except OSError as error:
                if path not in self._unread:
                    logger.error("%s: cannot be read now; it is tried again: %s", path, error)  # noqa: TRY400
                    self._store.count("unreadable")
                self._unread.add(path)
                continue
            except ValueError as error:
                logger.error("%s: is no sound file of ours; it is left where it is: %s", path, error)  # noqa: TRY400
                self._no_recordings.add(path)
                continue
            self._unread.discard(path)
            if found is not None:
                adopted.append(found)
            elif quarantine:
                self._set_aside(path)
        new = self._store.add_recordings(adopted) if adopted else 0
        if new:
            logger.warning("%d recordings were found that the store did not know", new)
            self._store.count("adopted", new)

    def _set_aside(self, path: Path) -> None:
        """A file in the spool that does not say what it is can be nobody's recording; it is kept apart."""
        folder = self._recordings / "quarantine"
        target = folder / path.name
        logger.error("%s: is not a recording of ours; it goes to %s", path, target)
        if in_memory(self._spool) != in_memory(self._recordings) or is_there(target):
            self._no_recordings.add(path)  # it stays: moving it would copy, or overwrite
            return
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        path.rename(target)
        sync_dir(folder)
        sync_dir(self._spool)
        self._store.count("strangers")


def _id_of(path: Path) -> UUID | None:
    """The recording's id, which is the last part of its file's name."""
    try:
        return UUID(path.stem.rpartition("_")[2])
    except ValueError:
        return None


def _batches(paths: Iterable[Path]) -> Iterator[list[Path]]:
    iterator = iter(paths)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder that is not there, or not any more, holds nothing
        raise error
