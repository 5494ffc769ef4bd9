"""wheelhouse: wheels for a device's exact Python and machine, with their hashes. Touches its cache and the index.

A universal lock names every wheel for every machine. Its markers are evaluated for the device, never for the
workstation: Debian 12's Python 3.11.2 needs a package that 3.11.7 does not, and a download made by the workstation's
own interpreter would leave it out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement

from acoupi_fleet.errors import ConfigurationError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_OLDEST_GLIBC_MINOR = {"x86_64": 5, "i686": 5}  # manylinux1; every other machine begins with manylinux_2_17
_LEGACY_TAGS = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_SEVERAL_VERSIONS = "the lock asks for two versions of"


def bundled_lock() -> str:
    """The lock that ships with this program."""
    return resources.files("acoupi_fleet").joinpath("runtime.lock").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Target:
    """What a device runs wheels with, as the device itself says it.

    Attributes:
        machine: `uname -m`: x86_64, aarch64, ...
        glibc: Its C library's version, `2.36`.
        markers: The marker environment of PEP 508, as evaluated on the device.
    """

    machine: str
    glibc: str
    markers: Mapping[str, str]

    @property
    def python(self) -> str:
        """Major and minor version: what decides which wheels fit."""
        return self.markers["python_version"]

    @property
    def platforms(self) -> tuple[str, ...]:
        """Every platform tag that fits, best first. pip falls back to ancient versions when only some are named."""
        major, minor = (int(part) for part in self.glibc.split(".")[:2])
        oldest = _OLDEST_GLIBC_MINOR.get(self.machine, 17)
        tags = []
        for step in range(minor, oldest - 1, -1):
            tags.append(f"manylinux_{major}_{step}_{self.machine}")
            if step in _LEGACY_TAGS:
                tags.append(f"{_LEGACY_TAGS[step]}_{self.machine}")
        return tuple(tags)

    def __str__(self) -> str:
        return f"Python {self.markers['python_full_version']} on {self.machine} (glibc {self.glibc})"


@dataclass(frozen=True, slots=True)
class Pin:
    """One wheel to have: its name, its exact version, and the hashes that are accepted."""

    name: str
    version: str
    hashes: frozenset[str] = field(repr=False)

    def __str__(self) -> str:
        return " ".join(
            [f"{self.name}=={self.version}", *(f"--hash=sha256:{digest}" for digest in sorted(self.hashes))]
        )


def resolve(lock: str, target: Target) -> tuple[Pin, ...]:
    """Evaluate the markers of a universal lock for one device."""
    pins: dict[str, Pin] = {}
    joined = lock.replace("\\\n", " ")
    for number, line in enumerate(joined.splitlines(), start=1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            requirement = Requirement(_HASH.sub("", text).strip())
        except InvalidRequirement as error:
            msg = f"runtime.lock, entry {number}: {error}; make it again with `make lock`"
            raise ConfigurationError(msg) from None
        exact = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
        hashes = frozenset(_HASH.findall(text))
        if len(exact) != 1 or not hashes:
            raise ConfigurationError(
                f"runtime.lock: {requirement.name} has no exact version or no hash; make it again with `make lock`"
            )
        if requirement.marker is not None and not requirement.marker.evaluate(dict(target.markers)):
            continue
        if requirement.name in pins:
            raise ConfigurationError(
                f"runtime.lock: {_SEVERAL_VERSIONS} {requirement.name} for {target}; make it again with `make lock`"
            )
        pins[requirement.name] = Pin(requirement.name, exact[0], hashes)
    return tuple(pins[name] for name in sorted(pins))


def environment_key(lock: str, target: Target) -> str:
    """The name of the environment that a device makes from this lock: same wheels, same name."""
    lines = [f"cp{target.python} {target.machine} glibc {target.glibc}", *map(str, resolve(lock, target))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def default_cache() -> Path:
    """Where wheels are kept: `~/.cache/acoupi-fleet/wheels`, or below XDG_CACHE_HOME."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "acoupi-fleet" / "wheels"


class Wheelhouse:
    """The wheels of one lock, in a cache that all hosts and all runs share; any thread may ask."""

    def __init__(self, lock: str, cache: Path | None = None) -> None:
        """Remember the lock; nothing is read or downloaded before the first question."""
        self._lock = lock
        self._cache = cache
        self._guard = threading.Lock()
        self._ready: dict[str, tuple[Path, ...]] = {}

    @cached_property
    def cache(self) -> Path:
        """The folder that holds one folder of wheels for each key."""
        return self._cache or default_cache()

    def ensure(self, target: Target) -> tuple[Path, ...]:
        """The wheels for a device, pip's own among them: from the cache, else downloaded; each one's hash was checked.

        Blocks for the time of a download when several hosts want the same wheels: one gets them, the others wait.

        Raises:
            HostError: A wheel does not exist for this device, or the index cannot be reached, or the cache not be used.
        """
        key = environment_key(self._lock, target)
        with self._guard:
            if key not in self._ready:
                try:
                    self._ready[key] = self._filled(key, target)
                except OSError as error:
                    raise HostError(
                        f"wheels for {target}: the cache {self.cache} cannot be used: {error.strerror or error}; make "
                        "room, correct its mode, or set XDG_CACHE_HOME to a folder that can be written"
                    ) from None
            return self._ready[key]

    def _filled(self, key: str, target: Target) -> tuple[Path, ...]:
        """The wheels in one folder of the cache, which is filled where it is not whole."""
        pins = resolve(self._lock, target)
        folder = self.cache / key
        self.cache.mkdir(parents=True, exist_ok=True)
        with _exclusive(self.cache / f"{key}.lock"):
            if not _complete(folder, pins):
                _download(folder, pins, target)
        return tuple(sorted(folder.glob("*.whl")))


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time fill a folder of the cache."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _complete(folder: Path, pins: tuple[Pin, ...]) -> bool:
    """Whether a folder holds exactly one right wheel for each pin.

    A flipped bit makes it incomplete: it is downloaded again.
    """
    wheels = list(folder.glob("*.whl"))
    accepted = set().union(*(pin.hashes for pin in pins)) if pins else set()
    return len(wheels) == len(pins) and all(
        hashlib.sha256(wheel.read_bytes()).hexdigest() in accepted for wheel in wheels
    )


def _download(folder: Path, pins: tuple[Pin, ...], target: Target) -> None:
    """Fill a folder, completely or not at all."""
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        requirements = fresh / "requirements.txt"
        requirements.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        options = {
            "--requirement": str(requirements),
            "--dest": str(fresh),
            "--only-binary": ":all:",
            "--implementation": "cp",
            "--python-version": target.markers["python_full_version"],
            "--progress-bar": "off",
            "--retries": "2",  # the line that says `offline` comes from its warnings
        }
        abis = (f"cp{target.python.replace('.', '')}", "abi3", "none")
        pairs = [
            *options.items(),
            *(("--abi", abi) for abi in abis),
            *(("--platform", tag) for tag in target.platforms),
        ]
        flags = ("--no-deps", "--require-hashes", "--no-input", "--disable-pip-version-check")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *flags, *(word for pair in pairs for word in pair)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        if done.returncode != 0 or not _complete(fresh, pins):
            raise HostError(_reason(done.stdout + done.stderr, target))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _reason(said: str, target: Target) -> str:
    """One line for what pip said in many."""
    offline = ("connection error", "ConnectionError", "connection broken", "ConnectTimeout", "ReadTimeout")
    if any(word in said for word in offline):
        return (
            f"wheels for {target}: the package index cannot be reached from here; "
            "connect this computer to the internet once and run `acoupi-fleet prepare INVENTORY`, later runs "
            "work without it"
        )
    if "DO NOT MATCH THE HASHES" in said or "HashMismatch" in said:
        return (
            f"wheels for {target}: what the package index sent is not what the lock names (wrong hash); nothing "
            "was kept"
        )
    missing = re.search(r"No matching distribution found for (\S+)", said)
    if missing:
        return (
            f"wheels for {target}: there is no wheel of {missing[1]} for it; use a Python and a machine that have "
            "one (64-bit, Python 3.11 to 3.13)"
        )
    last = next((line for line in reversed(said.strip().splitlines()) if line.strip()), "pip gave no reason")
    return f"wheels for {target}: pip failed: {last}"
