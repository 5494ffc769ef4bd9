"""files: durable writing, and reading that trusts nothing but bytes. Touches the paths it is given.

A file that is renamed into place without fsync is 0 bytes after a power cut, even half a minute later: file, rename
and folder each need their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path


def sync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(str(folder), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Create a file with its final mode and owner from its first byte on, durable when this returns.

    It must not exist.
    """
    handle = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as stream:
        if owner is not None:
            os.fchown(handle, *owner)
        os.fchmod(handle, mode)
        stream.write(content)
        stream.flush()
        os.fsync(handle)


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that a power cut leaves the old or the new one."""
    fresh = path.with_name(path.name + ".tmp")
    remove(fresh)
    try:
        write_new(fresh, content, mode)
        fresh.replace(path)
    except BaseException:
        remove(fresh)
        raise
    sync_dir(path.parent)


def link(path: Path, target: str) -> None:
    """Make a symbolic link say this, in one step: there is no moment without it."""
    fresh = path.with_name(path.name + ".tmp")
    remove(fresh)
    fresh.symlink_to(target)
    fresh.replace(path)
    sync_dir(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(kind):
        shutil.rmtree(str(path))
    else:
        path.unlink()


def points_to(path: Path) -> str | None:
    """What a symbolic link says, or None when there is none."""
    try:
        return os.readlink(str(path))  # noqa: PTH115 - Path.readlink came with Python 3.9
    except OSError:
        return None


def walk(root: Path) -> list[Path]:
    """Every file and link below a folder, sorted; no link is followed."""
    found = []
    for folder, folders, names in os.walk(str(root)):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [Path(folder) / name for name in names + links]
    return sorted(found)


def digest(path: Path) -> str:
    """The hash of a file's bytes as they are now; a link is hashed by what it says."""
    said = points_to(path)
    if said is not None:
        return "link:" + said
    total = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 18), b""):
            total.update(piece)
    return total.hexdigest()


def outline(root: Path, but: str) -> str:
    """A hash over names and sizes in a tree, except one name at its top: finds what a power cut or a hand took away.

    Reading 100 MB from a card for every look would take seconds.
    """
    total = hashlib.sha256()
    top = str(root)
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            if folder == top and name == but:
                continue
            path = folder + "/" + name
            about = os.lstat(path)
            size = 0 if stat.S_ISLNK(about.st_mode) else about.st_size
            total.update(f"{path[len(top) :]} {size}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def sync_tree(root: Path) -> None:
    """Make a whole tree durable: every file, then every name."""
    for path in walk(root):
        if not path.is_symlink():
            handle = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    for folder, _, _ in os.walk(str(root), topdown=False):
        sync_dir(Path(folder))


def free_bytes(path: Path) -> int:
    """Bytes that we may still write where this path is, or will be."""
    while not path.exists():
        path = path.parent
    about = os.statvfs(str(path))
    room = about.f_bavail if os.getuid() else about.f_bfree
    return room * about.f_frsize
