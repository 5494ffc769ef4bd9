"""tree: writes a rendered home on the device, complete or not at all, and hands its units to the user's systemd.

Imports nothing that renders; `setup` says what is written.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import Home


class Rendered(Protocol):
    """A file to be written."""

    @property
    def path(self) -> str:
        """Where, below the tree."""

    @property
    def content(self) -> bytes:
        """Its bytes."""

    @property
    def mode(self) -> int:
        """Its permission bits."""


def switch(home: Home, files: Sequence[Rendered], links: Mapping[str, str]) -> bool:
    """Write a complete tree beside the one in use, and lead `current` to it. Durable at each step.

    Args:
        home: ACOUPI_HOME.
        files: What the tree holds.
        links: Symbolic links at the top of the tree, and where they lead.

    Returns:
        Whether anything changed.
    """
    releases = home.root / "releases"
    for folder in (home.root, home.log_dir, releases):
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    if not home.run_dir.is_symlink():
        home.run_dir.mkdir(mode=0o750, exist_ok=True)
    current = home.root / "current"
    changed = not _is_written(current, files, links)
    if changed:
        tree = Path(tempfile.mkdtemp(dir=releases))
        _write_tree(tree, files, links)
        _link(current, os.path.relpath(tree, home.root))
        for old in releases.iterdir():
            if old != tree:
                shutil.rmtree(old)
    # app.py comes last: where it is, all is.
    for path in (home.config_dir, home.bin_dir, home.app_file):
        if not path.is_symlink():
            _link(path, f"current/home/{path.name}")
            changed = True
    return changed


def _is_written(tree: Path, files: Sequence[Rendered], links: Mapping[str, str]) -> bool:
    there = {
        path.relative_to(tree).as_posix(): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    wanted = {file.path: (file.content, file.mode) for file in files}
    leads = {name: str((tree / name).readlink()) for name in links if (tree / name).is_symlink()}
    return there == wanted and leads == dict(links)


def _write_tree(tree: Path, files: Sequence[Rendered], links: Mapping[str, str]) -> None:
    tree.chmod(0o750)
    for file in files:
        _write(tree / file.path, file.content, file.mode)
    for name, target in links.items():
        (tree / name).symlink_to(target)
    for folder in {tree, tree.parent, *((tree / file.path).parent for file in files)}:
        _fsync(folder)


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask took away
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _link(path: Path, target: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(path)
    _fsync(path.parent)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def install_user_units(home: Home, names: Sequence[str]) -> bool:
    """Let the user's own systemd find the units, and start acoupi.target with that user's manager.

    Raises:
        ConfigurationError: If there is no such manager, or something else is where a unit or the live state goes.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise ConfigurationError(
            "XDG_RUNTIME_DIR: there is no systemd of this user here; log in, or set up without units"
        )
    wanted = {home.run_dir: f"{runtime}/acoupi"}
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        wanted[folder / name] = str(home.root / "current" / "units" / name)
    missing = {
        path: target for path, target in wanted.items() if not (path.is_symlink() and str(path.readlink()) == target)
    }
    for path in missing:
        if path == home.run_dir:
            if any(path.glob("*.pid")):
                raise ConfigurationError(f"{path}: workers run; stop them with {home.bin_dir}/acoupi-workers-stop.sh")
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():
            raise ConfigurationError(
                f"{path}: a unit of this name is there already; remove it, or set up without units"
            )
    for path, target in missing.items():
        _link(path, target)
    for command in (["daemon-reload"], ["enable", "--quiet", "acoupi.target"]):
        done = subprocess.run(["systemctl", "--user", *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ConfigurationError(
                f"systemctl --user {' '.join(command)}: {done.stderr.strip()}; correct that, and try again"
            )
    return bool(missing)
