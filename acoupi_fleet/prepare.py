"""prepare: fills the wheel cache, so that a later run needs no internet. Reads devices; touches cache and index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from acoupi_fleet.errors import HostError, UsageError, understood
from acoupi_fleet.facts import target as target_of
from acoupi_fleet.inventory import Host
from acoupi_fleet.remote import HostKeys, converse
from acoupi_fleet.wheelhouse import Target, Wheelhouse, environment_key

GLIBC = {"3.11": "2.36", "3.12": "2.39", "3.13": "2.41"}
"""The C library beside each Python: Debian 12, Ubuntu 24.04, Debian 13."""
MACHINES = ("aarch64", "x86_64")
BITS = 64


@dataclass(frozen=True, slots=True)
class Filled:
    """One folder of the cache.

    Attributes:
        target: The kind of device that its wheels are for.
        wheels: The wheels, pip's own among them.
        hosts: The sensors that will use it.
    """

    target: Target
    wheels: tuple[Path, ...]
    hosts: tuple[str, ...]


def by_hand(python: str, machine: str, glibc: str | None) -> Target:
    """A kind of device, described by a person.

    Raises:
        UsageError: If there are no wheels for it, or more has to be known.
    """
    parts = python.split(".")
    if len(parts) != len(("major", "minor", "patch")) or not all(part.isdigit() for part in parts):
        raise UsageError(
            f"--python {python}: the whole version is needed, such as 3.11.2; type python3 --version there"
        )
    if machine not in MACHINES:
        raise UsageError(
            f"--machine {machine}: there are no wheels for it; use one of {', '.join(MACHINES)} (uname -m)"
        )
    short = ".".join(parts[:2])
    libc = glibc or GLIBC.get(short)
    if libc is None:
        raise UsageError(
            f"--python {python}: its C library is not known; say it too, such as --glibc 2.36 (ldd --version)"
        )
    return Target(
        machine,
        libc,
        {
            "implementation_name": "cpython",
            "implementation_version": python,
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": python,
            "python_version": short,
            "sys_platform": "linux",
        },
    )


def ask(host: Host, keys: HostKeys, accepted: Callable[[str], None] | None) -> Target:
    """What a device's wheels must fit, as the device says it; no right beyond a login is used.

    Raises:
        HostError: If it could not be asked, or has no wheels.
    """
    with converse(host, "user", keys=keys, accepted=accepted) as session:
        facts = session.ask("facts", {"scope": "user", "packages": [], "units": [], "workers": []})
    with understood():
        machine, bits = facts["machine"], facts["machine"]["bits"]
    if bits != BITS:
        raise HostError(f"{host.name}: its system is 32-bit, and there is no numpy for that; install its 64-bit image")
    return target_of(machine)


def fill(wanted: Sequence[tuple[str, str, Target]], cache: Path | None = None) -> list[Filled]:
    """Download what is missing for each kind of device, once.

    Args:
        wanted: For each sensor its name, the lock of its release, and what its wheels must fit.
        cache: Where wheels are kept; the default where none is given.

    Raises:
        HostError: If the index has not what is needed, or cannot be reached.
    """
    kinds: dict[str, tuple[str, Target, list[str]]] = {}
    for name, lock, target in wanted:
        kinds.setdefault(environment_key(lock, target), (lock, target, []))[2].append(name)
    return [
        Filled(target, Wheelhouse(lock, cache).ensure(target), tuple(names)) for lock, target, names in kinds.values()
    ]
