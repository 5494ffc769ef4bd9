"""files: lets files follow decisions that are stored already. Moves and deletes files; writes no row.

What was reported as done is on the disk for good: contents, names and folders have been fsynced (ext4 loses a name that
was renamed without that, measured 36 s later). What fails stays where it is: the next rescan tries again, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from acoupi_runtime.disk import is_there, require_room, sync_dir
from acoupi_runtime.store import Move

_FOLDER_MODE = 0o750


@dataclass(slots=True)
class Followed:
    """Which files have followed.

    Attributes:
        done: Those that are where they belong, for good.
        lost: Those that are nowhere.
        failed: How many could not be moved now.
        error: Why the last of them could not.
    """

    done: list[Move] = field(default_factory=list)
    lost: list[Move] = field(default_factory=list)
    failed: int = 0
    error: OSError | None = None


def follow(moves: Iterable[Move], *, durable: bool = True, reserve: float = 0.0) -> Followed:
    """Move and delete files as was decided; each on its own, their folders synced once for all of them.

    Args:
        moves: What was decided.
        durable: False where the rescan will follow once more before it is noted as done: then a sync for each recording
            would only wear the card.
        reserve: Bytes that stay free where files are copied to: without them, the store could not decide any more.
    """
    followed = Followed()
    arrived: dict[Path, None] = {}
    left: dict[Path, None] = {}
    for move in moves:
        try:
            if move.target is None:
                move.source.unlink(missing_ok=True)
                left[move.source.parent] = None
                followed.done.append(move)
            elif _relocate(move.source, move.target, arrived, reserve):
                left[move.source.parent] = None
                followed.done.append(move)
            else:
                followed.lost.append(move)
        except OSError as error:
            followed.failed += 1
            followed.error = error
    try:
        for folder in (*arrived, *left) if durable else ():
            with contextlib.suppress(FileNotFoundError):  # a whole folder that somebody removed holds nothing to sync
                sync_dir(folder)
    except OSError as error:
        followed.failed += len(followed.done)
        followed.done.clear()
        followed.error = error
    return followed


def _relocate(source: Path, target: Path, touched: dict[Path, None], reserve: float) -> bool:
    """Move one file; False if it is nowhere. A file that has moved already, or halfway, comes to the same end."""
    touched[target.parent] = None
    try:
        source.rename(target)
    except FileNotFoundError:
        if is_there(target):
            return True
        if not is_there(source):
            return False
        _make_folder(target.parent)
        return _relocate(source, target, touched, reserve)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not is_there(source):  # said of another file system even then
            return is_there(target)
        require_room(target.parent, reserve + source.stat().st_size)
        _copy_over(source, target)
    return True


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, for good: who finds it there later does not sync its name."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=_FOLDER_MODE)
    sync_dir(folder.parent)


def _copy_over(source: Path, target: Path) -> None:
    """Move a file to another file system: it is there, for good, before it goes here."""
    for halfway in target.parent.glob(f".{glob.escape(target.name)}.*.copy"):
        halfway.unlink(missing_ok=True)  # of a process that was killed
    # A name of its own: another thread may be about the same file, and both come to the same end.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.copy")
    try:
        with source.open("rb") as reading, temporary.open("xb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            os.fsync(writing.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(target.parent)
    source.unlink(missing_ok=True)
