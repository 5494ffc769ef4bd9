"""A card whose power can be cut: an ext4 file system on a loop device. Root only.

A cut is ext4's own "shutdown" (EXT4_IOC_SHUTDOWN, without flushing the journal): from that instant on nothing more
reaches the device. What had reached it is the device's backing file, which is copied while it is still mounted; life
goes on from the copy, whose journal is replayed as after any power cut. A cache inside the card, that forgets what it
has confirmed, is not imitated.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)."""
_NOLOGFLUSH = 2
_SECTOR = 512


def why_not() -> str | None:
    """Why no card can be made here, or None where it can."""
    if os.geteuid() != 0:
        return "mounting a loop image needs root"
    missing = [name for name in ("mkfs.ext4", "losetup", "mount", "unshare") if _find(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"nothing can be mounted here: {tried.stderr.strip()}"
    found = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    if found.returncode or not Path(found.stdout.strip()).exists():
        return f"there is no free loop device: {found.stderr.strip() or found.stdout.strip()}"
    return None


class Card:
    """A file system that survives power cuts as far as its users have seen to it.

    Attributes:
        path: Where it is mounted.
        cuts: Power cuts so far.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.path = folder / "card"
        self.path.mkdir()
        self.cuts = 0
        self._image = folder / "card.img"
        with self._image.open("wb") as image:
            image.truncate(megabytes << 20)
        # What mkfs leaves for later would be written by the kernel meanwhile, and counted.
        lazy = "lazy_itable_init=0,lazy_journal_init=0"
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-E", lazy, str(self._image))
        self._device = _attach(self._image)
        _run("mount", self._device, str(self.path))

    @property
    def written(self) -> int:
        """Bytes that were written to the block device since it was attached."""
        figures = Path("/sys/block", Path(self._device).name, "stat").read_text().split()
        return int(figures[6]) * _SECTOR

    @property
    def ballast(self) -> Path:
        """What fills the card."""
        return self.path / "ballast"

    def sync(self) -> None:
        """Write everything down."""
        _run("sync", "-f", str(self.path))

    def fill(self) -> None:
        """Leave no room on it, not for root either."""
        descriptor = os.open(self.ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            status = os.fstatvfs(descriptor)
            block, end = status.f_frsize, 0
            piece = status.f_bfree * block
            while piece >= block:
                try:
                    os.posix_fallocate(descriptor, end, piece)
                    end += piece
                except OSError:
                    piece //= 2
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        """Undo `fill`."""
        self.ballast.unlink(missing_ok=True)

    def power_off(self) -> None:
        """Cut the power: nothing more reaches the device. Whoever has files open must be killed next."""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(folder)
        self.cuts += 1

    def power_on(self) -> None:
        """Go on from what had reached the device."""
        copy = self._image.with_name(f"card-{self.cuts}.img")
        _run("cp", "--sparse=always", str(self._image), str(copy))
        self._drop()
        self._image = copy
        self._device = _attach(self._image)
        _run("mount", self._device, str(self.path))

    def close(self) -> None:
        """Take it away."""
        self._drop()

    def _drop(self) -> None:
        # Lazily: a namespace that ends somewhere on this machine may still hold it for an instant.
        _run("umount", "--lazy", str(self.path))
        _run("losetup", "--detach", self._device)
        self._image.unlink()


@contextlib.contextmanager
def card(folder: Path, megabytes: int) -> Iterator[Card]:
    """Have a card in a folder."""
    made = Card(folder, megabytes)
    try:
        yield made
    finally:
        made.close()


def _attach(image: Path) -> str:
    return _run("losetup", "--find", "--show", "--direct-io=off", str(image))


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(*command: str) -> str:
    program = _find(command[0]) or command[0]
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()
