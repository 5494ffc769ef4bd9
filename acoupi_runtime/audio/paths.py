"""paths: where recordings in the making are kept. Looks at the file system; makes only the spool, when asked to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.errors import RecordingError

PART = ".part"
"""How the name of a file in the making ends."""
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def expand(config_path: str) -> Path:
    """A path of the configuration, with `~` as the user's home that runs this."""
    return Path(config_path).expanduser().absolute()


def spool_dir(config: BasicConfig) -> Path:
    """Where the recorder writes: beside the recordings, or where `tmp_audio` says.

    A `tmp_audio` in memory, as the reference system's /run/shm, is open to every user: there it is a folder of our own.
    """
    if config.paths.tmp_audio is None:
        return expand(config.paths.recordings) / ".spool"
    chosen = expand(config.paths.tmp_audio)
    return chosen / f"acoupi-{os.getuid()}" if in_memory(chosen) else chosen


def in_memory(path: Path) -> bool:
    """Whether a path, or what exists of it, is on a file system that a power cut empties."""
    while not path.exists() and path != path.parent:
        path = path.parent
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0] in _IN_MEMORY
    return False


def make_spool(spool: Path) -> None:
    """Make the spool if it is missing, and refuse one that somebody else could have planted.

    Raises:
        RecordingError: If it is not a folder of this user's own.
        OSError: If it cannot be made.
    """
    memory = in_memory(spool)
    spool.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    try:
        spool.mkdir(mode=0o700 if memory else 0o750)
    except FileExistsError:
        found = spool.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise RecordingError(
                f"{spool}: is not a folder of this user; remove it, or set program.paths.tmp_audio to another place"
            ) from None
        if memory and found.st_mode & 0o077:
            raise RecordingError(f"{spool}: other users can look into it; remove it, it is made anew") from None
