"""processes: who is alive, and who descends from whom, as /proc tells. Reads /proc; ends only what it is told to end.

A number alone names nobody: the kernel uses it again. So a process is its number and the moment of its start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_STATE, _PARENT, _THREADS, _START = 0, 1, 17, 19  # of what stands in /proc/PID/stat behind the name (proc(5))


@dataclass(frozen=True, slots=True)
class Process:
    """A process, dead or alive.

    Attributes:
        pid: Its number.
        started: When it started, in the kernel's ticks since boot.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now.

        Raises:
            ProcessLookupError: If there is none.
        """
        fields = _stat(pid)
        if fields is None:
            raise ProcessLookupError(pid)
        return cls(pid, int(fields[_START]))

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[_START]) == self.started and not _ended(fields)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended; whether it has."""
        until = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        self.bury()
        return True

    def bury(self) -> None:
        """Let it go if it is a child of this process that has ended; else it would stay a zombie."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, number)


def adopt_orphans() -> None:
    """Let whatever descends from this process be its child when its own parent has ended, as with process 1."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[Process]:
    """All living processes that descend from one."""
    children: dict[int, list[Process]] = {}
    for each, fields in _all():
        if not _ended(fields):
            children.setdefault(int(fields[_PARENT]), []).append(Process(each, int(fields[_START])))
    found = list(children.get(pid, ()))
    for process in found:
        found += children.get(process.pid, ())
    return found


def zombies(pid: int) -> set[Process]:
    """The children of a process that have ended, and that it has not been told of yet."""
    return {
        Process(each, int(fields[_START])) for each, fields in _all() if _ended(fields) and int(fields[_PARENT]) == pid
    }


def end_descendants() -> None:
    """End all that descends from this process, which has adopted its orphans; returns when nothing of it is left."""
    while True:
        for process in descendants(os.getpid()):
            process.kill()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _all() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            yield int(entry.name), fields


def _ended(fields: list[str]) -> bool:
    # The first thread may have ended before the others: then it is a zombie, and the process is not.
    return fields[_STATE] in "ZX" and int(fields[_THREADS]) <= 1


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
