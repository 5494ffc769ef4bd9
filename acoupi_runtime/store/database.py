"""database: the store's SQLite file: opening, checking, replacing it, and transactions. Knows no noun and no table.

WAL with synchronous=FULL is what survives a power cut with every commit kept (measured: 20 of 20; NORMAL keeps none).

Several processes have the file open, so what needs it alone (creating, migrating, moving a corrupt one aside) happens
under an exclusive lock on a file beside it, that all hold shared while they have connections. Whoever meets corruption
leaves a mark; everybody then lets go, the first to be alone moves the file aside and starts a new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from acoupi_runtime.disk import is_there, sync_dir
from acoupi_runtime.errors import StoreError
from acoupi_runtime.store.schema import APPLICATION_ID, MIGRATIONS

REBUILD = "rebuild"
"""The key in `meta` that is there while recordings must be looked for in the files."""

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SUFFIXES = ("", "-wal", "-shm")
"""What a database's files end with."""
_ASIDE = 2
"""Corrupt files that are kept, for a person to look at: the newest. A card that breaks makes one after another."""
_LOCK_PATIENCE = 60.0
"""Seconds to wait for another process that creates, checks or migrates."""
_BUSY_TIMEOUT = 15.0
"""Seconds to wait for another process's transaction; each takes milliseconds, a checkpoint on a slow card seconds."""


class Database:
    """One SQLite file, safe to use from many threads and processes.

    Threads take a connection from a pool for one transaction. No call holds one while it waits for anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._suspect, self._unclean = (path.with_name(f"{path.name}.{mark}") for mark in ("suspect", "unclean"))
        self._wal = path.with_name(f"{path.name}-wal")
        self._mutex = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._busy = 0
        self._lock_fd: int | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection whose single statements each see one state of the database."""
        connection = self._take()
        good = False
        try:
            with self._explaining():
                yield connection
            good = True
        finally:
            self._give_back(connection, good=good)

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is stored when the block ends, or none when it raises.

        Args:
            durable: False for what may be lost in a power cut (never in a crash of the process), at no fsync.
        """
        with self.reading() as connection:
            if not durable:
                connection.execute("PRAGMA synchronous=NORMAL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous=FULL")

    def verify(self) -> bool:
        """Check the file if the last shutdown was unclean; False if it is corrupt and about to be replaced.

        This is not done while opening: it reads the whole file, and recording must not wait for it.
        """
        with self._explaining():
            if not is_there(self._unclean):
                return True
        with self.reading() as connection:
            sound = _is_sound(connection)
            if sound:
                self._unclean.unlink(missing_ok=True)
            else:
                self._suspect.touch(mode=0o640)
        return sound

    def let_go_if_suspect(self) -> None:
        """Give up idle connections to a file that is to be replaced; who is idle for long calls it now and then."""
        with self._mutex:
            if self._is_suspect():
                self._let_go()

    def close(self) -> None:
        """Close all connections; the last one to do so folds the write-ahead log into the file."""
        with self._mutex:
            self._let_go()

    def _take(self) -> sqlite3.Connection:
        with self._mutex:
            if self._lock_fd is not None and self._is_suspect():
                self._let_go()
                if self._lock_fd is not None:
                    raise self._being_replaced()
            with self._explaining():
                if self._lock_fd is None:
                    self._enter()
                try:
                    connection = self._idle.pop() if self._idle else self._connect()
                except BaseException:
                    self._let_go()  # nobody else does, where this was the first connection
                    raise
            self._busy += 1
            return connection

    def _give_back(self, connection: sqlite3.Connection, *, good: bool) -> None:
        with self._mutex:
            self._busy -= 1
            self._idle.append(connection)
            if not good:
                # A lock that could not be given up is kept by SQLite for as long as a connection is open here.
                self._close_idle()
            if self._is_suspect():
                self._let_go()

    def _is_suspect(self) -> bool:
        """Whether somebody has met corruption; where the card does not say, the next call asks it again."""
        try:
            return is_there(self._suspect)
        except OSError:
            return False

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _let_go(self) -> None:
        self._close_idle()
        if self._busy == 0 and self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            connection.executescript("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY;")
        except BaseException:
            connection.close()
            raise
        return connection

    def _enter(self) -> None:
        """Take the lock; whoever is alone also looks at the file, and creates, migrates or replaces it."""
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if _lock(descriptor, fcntl.LOCK_EX):
                self._prepare()
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            else:
                self._join(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock_fd = descriptor

    def _join(self, descriptor: int) -> None:
        """Take a share in a file that others have open, as soon as they have prepared it."""
        end = time.monotonic() + _LOCK_PATIENCE
        while not _lock(descriptor, fcntl.LOCK_SH):
            if time.monotonic() > end:
                raise StoreError(f"{self.path}: another process has held it alone for a minute; end that one")
            time.sleep(0.02)
        if is_there(self._suspect):
            raise self._being_replaced()

    def _being_replaced(self) -> StoreError:
        return StoreError(f"{self.path}: it is corrupt and being replaced; try again in a moment")

    def _prepare(self) -> None:
        if is_there(self._wal) and self._wal.stat().st_size:
            self._unclean.touch(mode=0o640)  # nobody has it open, and the last one did not close it
        # Twice: what could not be read once may look corrupt to SQLite.
        if not self._is_usable() and not self._is_usable():
            self._move_aside()
            with contextlib.closing(self._connect()) as connection:
                self._migrate(connection)
        self._suspect.unlink(missing_ok=True)

    def _is_usable(self) -> bool:
        """Whether the file is sound, as far as that is in doubt, and of this version now."""
        try:
            with contextlib.closing(self._connect()) as connection:
                if is_there(self._suspect) and not _is_sound(connection):
                    return False
                self._refuse_foreign(connection)
                self._migrate(connection)
        except sqlite3.DatabaseError as error:
            if not _says_corrupt(error):
                raise
            return False
        return True

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
            return
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(
                f"{self.path}: this database is not ours (the reference system's own?); "
                "move it away, or name another file in paths.db_metadata"
            )

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            # Before the first table, and before WAL: pages that are freed can then be given back. A commit writes each
            # page that it touches, for a row of a hundred bytes: small ones spare the card two thirds of that.
            connection.executescript("PRAGMA page_size=1024; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;")
            os.chmod(self.path, 0o640)  # noqa: PTH101 - a Path would say the same; SQLite made the file with the umask
        # In the place of one that was moved aside, also where that was done by who did not live to make this one.
        rebuilt = version == 0 and bool(self._aside())
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            mark = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={number}"
            if rebuilt and number == len(MIGRATIONS):
                mark = f"INSERT INTO counter VALUES ('store_rebuilt', 1); {mark}"  # noqa: S608 - numbers of ours
            connection.executescript(f"BEGIN IMMEDIATE; {script}; {mark}; COMMIT;")

    def _move_aside(self) -> None:
        numbers = self._aside()
        aside = self._aside_path(max(numbers, default=0) + 1)
        for suffix in _SUFFIXES:  # a log that a crash leaves behind is dropped by SQLite: it has no file
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        for number in sorted(self._aside())[:-_ASIDE]:
            for suffix in _SUFFIXES:
                with contextlib.suppress(OSError):  # it costs room, but nothing else
                    Path(f"{self._aside_path(number)}{suffix}").unlink(missing_ok=True)
        self._unclean.unlink(missing_ok=True)
        sync_dir(self.path.parent)

    def _aside_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.corrupt-{number}")

    def _aside(self) -> set[int]:
        """The numbers of the files that were moved aside."""
        ours = re.compile(f"{re.escape(self.path.name)}\\.corrupt-([0-9]+)(-wal|-shm)?")
        return {int(found[1]) for path in self.path.parent.iterdir() if (found := ours.fullmatch(path.name))}

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn what SQLite says about the file, the disk or a lock into one clear line."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise  # a mistake in the code
        except sqlite3.DatabaseError as error:
            if _says_corrupt(error):
                with contextlib.suppress(OSError):
                    self._suspect.touch(mode=0o640)
                raise StoreError(f"{self.path}: it is corrupt ({error}); it will be rebuilt from the files") from error
            raise StoreError(f"{self.path}: {error}; see the disk's free space and health") from error
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; see the disk's free space and health") from error


def _says_corrupt(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # missing where Python itself made the error
    return code is None or (code & 0xFF) in _CORRUPT


def _is_sound(connection: sqlite3.Connection) -> bool:
    try:
        return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.DatabaseError as error:
        if _says_corrupt(error):
            return False
        raise


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
            return False
        raise
    return True
