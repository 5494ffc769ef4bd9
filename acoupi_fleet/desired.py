"""Desired: what a host should be, as plain values. The shape that render makes and plan compares. Touches nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Scope = Literal["system", "user"]
AptVia = Literal["device", "workstation"]


@dataclass(frozen=True, slots=True)
class File:
    """One file of a release.

    Attributes:
        path: Where it stands below the release, with slashes: `home/app.py`, `units/acoupi.target`, `lib/...`.
        content: Its bytes.
        mode: Its permission bits: 0o755 for scripts, 0o640 for configuration, 0o644 otherwise.
    """

    path: str
    content: bytes
    mode: int = 0o644

    @property
    def sha256(self) -> str:
        """The hash by which two files are compared; never by their times, since a sensor's clock may be wrong."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that a host should have, before the host has been asked anything.

    Attributes:
        scope: `system` (root's units, user acoupi) or `user` (the login user's own units).
        files: The release: `lib/` (our own code), `home/` (app.py, bin, config) and `units/`, sorted by path.
        workers: The names of the program's workers, one unit instance each, the recording worker first.
        packages: Debian packages that the device must have.
        lock: The universal, hash-locked list of third-party wheels, as text; its markers are evaluated for the device.
        runtime: An environment that is already on the device, used instead of one made from `lock`; or None.
            `~` at its beginning is the home of the user that runs the services; a plan has it as the device says it.
        apt_via: Whose connection the device's apt uses.
    """

    scope: Scope
    files: tuple[File, ...]
    workers: tuple[str, ...]
    packages: tuple[str, ...]
    lock: str
    runtime: str | None = None
    apt_via: AptVia = "device"
