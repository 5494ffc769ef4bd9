"""render: from a host and its configuration to Desired. No clock, no chance, no network; it reads our own code only.

Same inventory, same bytes. A home is rendered by the runtime's own `setup`: there is one renderer. Added here is
what a release holds beside it: our code, the user's program, and the units.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath

import acoupi_runtime
from acoupi_fleet.configuration import Configuration
from acoupi_fleet.desired import Desired, File
from acoupi_fleet.errors import ConfigurationError, UsageError
from acoupi_fleet.inventory import Host
from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.system.setup import masked_program, render_home, render_units

PACKAGES = ("libportaudio2", "redis-server")
"""Debian's: what no wheel brings."""

OWN_LOCK = "requirements.lock"
"""In the folder of a user's program: what it needs beyond ours, as `uv pip compile --generate-hashes` writes it."""

PROGRAM = "home/config/program.json"
NAME = "home/config/name"


def render(host: Host, configuration: Configuration, *, templates: Sequence[Path] = ()) -> Desired:
    """What a host should be.

    Args:
        host: The host.
        configuration: What it is to do.
        templates: Folders of the user's own templates; they win over ours, the first over the next.

    Raises:
        ConfigurationError: If a template or a value is wrong, or the user's program cannot travel.
    """
    program_class, program, celery = configuration.program_class, configuration.program, configuration.celery
    try:
        home = render_home(program_class, program, celery, configuration.deployment, templates=templates, managed=True)
        units = render_units(program_class, program, celery, scope=configuration.scope, templates=templates)
    except AcoupiError as error:
        raise ConfigurationError(f"{host.origin}: {host.name}: {error}") from error
    files = {file.path: file for file in _runtime_code()}
    lock = resources.files("acoupi_fleet").joinpath("runtime.lock").read_text(encoding="utf-8")
    package = configuration.program_package
    if package is not None:
        for file in _program_code(package):
            if file.path in files:
                raise ConfigurationError(f"{package}: {file.path} would replace a part of acoupi_runtime; rename it")
            files[file.path] = file
        own_lock = package / OWN_LOCK
        if own_lock.is_file():
            lock = f"{lock.rstrip()}\n{own_lock.read_text(encoding='utf-8')}"
    for folder, rendered in (("home", home), ("units", units)):
        for each in rendered:
            path = f"{folder}/{each.path}"
            files[path] = File(path, each.content, each.mode)
    return Desired(
        scope=configuration.scope,
        files=tuple(files[path] for path in sorted(files)),
        workers=configuration.workers,
        packages=PACKAGES,
        lock=lock,
        runtime=configuration.runtime,
        apt_via=configuration.apt_via,
    )


def masked(desired: Desired) -> tuple[File, ...]:
    """The files of a release as eyes and logs may see them: secrets are asterisks."""
    contents = {file.path: file.content for file in desired.files}
    name = contents[NAME].decode().strip()
    return tuple(
        File(file.path, masked_program(name, file.content), file.mode) if file.path == PROGRAM else file
        for file in desired.files
    )


def write(desired: Desired, directory: Path, *, show_secrets: bool) -> None:
    """Write what a host's home and units will be into `directory`, for a person to read.

    Args:
        desired: What the host should be.
        directory: The folder of this host. What an earlier run wrote there is replaced.
        show_secrets: Whether secrets are written as they are, instead of asterisks.

    Raises:
        UsageError: If something else than an earlier run's files is there, or nothing can be written there.
    """
    try:
        _write(desired, directory, show_secrets=show_secrets)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{directory.parent}: {reason}; name another --output") from error


def _write(desired: Desired, directory: Path, *, show_secrets: bool) -> None:
    if directory.is_symlink() or (
        directory.exists()
        and not (directory.is_dir() and {path.name for path in directory.iterdir()} <= {"home", "units"})
    ):
        raise UsageError(f"{directory}: something else is there; name another --output")
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = Path(tempfile.mkdtemp(prefix=".render-", dir=directory.parent))  # made with mode 0700
    try:
        for file in desired.files if show_secrets else masked(desired):
            if not file.path.startswith(("home/", "units/")):
                continue
            path = beside / file.path
            if ".." in PurePosixPath(file.path).parts:
                raise UsageError(f"{file.path}: it leads out of {directory}")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            path.write_bytes(file.content)
            path.chmod(file.mode)
        if directory.exists():
            shutil.rmtree(directory)
        beside.rename(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@functools.cache
def _runtime_code() -> tuple[File, ...]:
    """The Python files of our own runtime, as they are installed here; read once."""
    package = Path(acoupi_runtime.__file__).parent
    return tuple(
        File(f"lib/{package.name}/{path.relative_to(package).as_posix()}", path.read_bytes())
        for path in sorted(package.rglob("*.py"))
        if "templates" not in path.relative_to(package).parts
    )


@functools.cache
def _program_code(package: Path) -> tuple[File, ...]:
    """What of a user's folder or wheel can be imported, and the data beside it (a model's weights); read once."""
    return tuple(_of_wheel(package) if package.suffix == ".whl" else _of_folder(package))


def _of_wheel(package: Path) -> Iterator[File]:
    with zipfile.ZipFile(package) as wheel:
        for name in sorted(wheel.namelist()):
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or parts[0].endswith(".data"):
                raise ConfigurationError(f"{package}: {name} cannot travel; build a wheel of plain packages")
            if not name.endswith("/"):
                yield File(f"lib/{name}", wheel.read(name))


def _of_folder(package: Path) -> Iterator[File]:
    if (package / "__init__.py").is_file():
        root, inside = package.parent, [package]
    else:
        root = package / "src" if (package / "src").is_dir() else package
        inside = sorted(path for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
    for top in inside:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            parts = path.relative_to(root).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                yield File(f"lib/{'/'.join(parts)}", path.read_bytes())
