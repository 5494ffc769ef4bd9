"""disk: questions to a file system whose answers decide what becomes of a recording. Touches what it is asked about."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether something of this name is there.

    `Path.exists` says no where a card cannot be read, in some versions of Python; what is there would count as lost.

    Raises:
        OSError: If the card does not say.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def require_room(folder: Path, wanted: float) -> None:
    """See whether so many bytes may still be written to the file system of a folder.

    Raises:
        OSError: If not (ENOSPC).
    """
    answer = os.statvfs(folder)
    if answer.f_bavail * answer.f_frsize < wanted:
        raise OSError(errno.ENOSPC, "too little room for recordings beside program.retention.reserve", str(folder))


def sync_dir(folder: Path) -> None:
    """Make a rename within a folder last over a power cut (rename(2) alone does not)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
