"""supervise: how a process of ours is seen from outside: pid file, logs, words to systemd. No celery, no numpy.

A pid file is held with flock for as long as its process lives. So whether a worker runs is never a guess from a number
in a file that a crash left behind: the kernel knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import logging.handlers
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.home import Home

EXIT_TEMPFAIL = 75
"""Somebody else does this already (EX_TEMPFAIL of sysexits.h)."""

LOG_BYTES = 1_000_000
LOG_FILES = 3
FLOOD_WINDOW = 60.0
"""Seconds for which a line that was just logged is only counted."""
_FLOOD_MEMORY = 256
_NUMBER = re.compile(r"\d+")


class AlreadyRunningError(AcoupiError):
    """Another process holds the same place."""


class Notifier:
    """Tells systemd how this process fares (sd_notify(3)); says nothing where systemd did not ask.

    Sending never blocks and never raises: a full or vanished socket must not stop a recording.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # A name that begins with @ is in the abstract namespace, where the kernel writes a zero byte.
        self._address = "\0" + address[1:] if address[:1] == "@" else address
        wanted = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog: float | None = int(wanted) / 1e6 if wanted.isdecimal() and int(wanted) and ours else None
        """Seconds within which systemd wants to hear from us; None where nobody watches."""

    def send(self, *lines: str) -> None:
        """Send some assignments, such as `READY=1`, each made one line."""
        if self._address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as ours:
                ours.sendto("\n".join(" ".join(line.split()) for line in lines).encode(errors="replace"), self._address)


@contextlib.contextmanager
def holding(path: Path, what: str) -> Iterator[None]:
    """Hold a pid file while the body runs; it names this process and vanishes afterwards.

    Raises:
        AlreadyRunningError: If another process holds it.
    """
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    patience = time.monotonic() + 1  # `holder_of` of another process has it for an instant
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "?"
            os.close(descriptor)
            if time.monotonic() < patience:
                time.sleep(0.05)
                continue
            raise AlreadyRunningError(f"{what}: process {holder} does this already; stop it first") from None
        # The one that held it before may have removed it between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def holder_of(path: Path) -> int | None:
    """The living process that holds a pid file; None if there is none, whatever the file says."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(descriptor, 32).strip()
        return int(pid) if pid.isdigit() else None
    else:
        return None
    finally:
        os.close(descriptor)


class FloodLimit(logging.Filter):
    """Lets a line through once a minute, with the number of its repetitions.

    Two lines are the same if they differ in their digits only: "trying again in 4 s" repeats "trying again in 2 s".
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is logged now; a repeated one then carries its count. All handlers share one decision."""
        noted = record.__dict__
        if "passes" not in noted:
            noted["passes"] = self._decide(record)
        return bool(noted["passes"])

    def _decide(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        key = (record.name, record.levelno, _NUMBER.sub("#", line))
        now = self._clock()
        since, held_back = self._seen.pop(key, (now - FLOOD_WINDOW, 0))
        if now - since < FLOOD_WINDOW:
            self._seen[key] = (since, held_back + 1)
            return False
        self._seen[key] = (now, 0)
        if len(self._seen) > _FLOOD_MEMORY:
            del self._seen[next(iter(self._seen))]
        if held_back:
            record.msg, record.args = f"{line} ({held_back} more like this since the last one)", ()
        return True


class _JournalFormatter(logging.Formatter):
    """Puts the priority in front, as the journal reads it (sd-daemon(3)); the journal adds the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        levels = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
        priority = next(number for level, number in levels if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def set_up_logging(home: Home, name: str, stream: TextIO) -> None:
    """Log INFO and up to `stream`, for the journal, and WARNING and up to a rotated file in `log/`.

    A full card must not stop a worker, so what cannot be logged is dropped.
    """
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    journal = logging.StreamHandler(stream)
    if "JOURNAL_STREAM" in os.environ:
        journal.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        journal.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [journal]
    with contextlib.suppress(OSError):
        home.log_dir.mkdir(mode=0o750, exist_ok=True)
        rotated = logging.handlers.RotatingFileHandler(
            home.log_file(name), maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, delay=True, encoding="utf-8"
        )
        rotated.setLevel(logging.WARNING)
        rotated.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(rotated)
    limit = FloodLimit()
    for handler in handlers:
        handler.addFilter(limit)
    root.handlers[:] = handlers
    # One line for each task, every few seconds for years, would wear the card for nothing.
    for chatty in ("celery.app.trace", "celery.worker.strategy", "kombu", "amqp"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def settle() -> None:
    """Give back the memory that a start needed, once it is over; some MiB of a process's forty.

    What is there now stays, so that the garbage collector need not look at it any more: a full collection of it would
    only hold a recorder up.
    """
    gc.collect()
    gc.freeze()
    # Only glibc has it, and only glibc needs it; a hardened unit may refuse what ctypes does when it is imported.
    with contextlib.suppress(OSError, AttributeError, MemoryError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def on_end_signals(action: Callable[[], None]) -> None:
    """Call `action` in the main thread at SIGTERM, SIGINT and SIGHUP; it returns at once."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: action())
