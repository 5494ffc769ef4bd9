"""changes: what can be done to a device, one type for each, with the line that a person reads. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from acoupi_fleet.desired import AptVia

TARGET = "acoupi.target"
SERVICE_USER = "acoupi"
MOST_SHOWN = 4


@dataclass(frozen=True, slots=True)
class CreateUser:
    """The user that runs the services does not exist, or its home does not."""

    def __str__(self) -> str:
        return f"create user {SERVICE_USER} and its home"


@dataclass(frozen=True, slots=True)
class JoinGroup:
    """Somebody has to be in a group: the service in `audio`, the login user in `acoupi`, to read recordings."""

    user: str
    group: str

    def __str__(self) -> str:
        return f"put user {self.user} into group {self.group}"


@dataclass(frozen=True, slots=True)
class Linger:
    """The login user's services stop at logout."""

    def __str__(self) -> str:
        return "let services run without a login (linger)"


@dataclass(frozen=True, slots=True)
class InstallPackages:
    """Debian packages are missing.

    Attributes:
        names: Their names.
        via: Whose connection apt uses.
    """

    names: tuple[str, ...]
    via: AptVia = "device"

    def __str__(self) -> str:
        how = " (apt through this computer's connection)" if self.via == "workstation" else ""
        return f"install packages {' '.join(self.names)}{how}"


@dataclass(frozen=True, slots=True)
class BuildEnvironment:
    """The third-party environment of this lock is not there, or not whole."""

    key: str

    def __str__(self) -> str:
        return f"make environment {self.key}"


@dataclass(frozen=True, slots=True)
class UseRuntime:
    """An environment that is already on the device is to be used; it is tried before anything depends on it."""

    path: str

    def __str__(self) -> str:
        return f"use the environment {self.path}"


@dataclass(frozen=True, slots=True)
class PushRelease:
    """The release in force is not what it should be.

    Attributes:
        id: The hash of everything in it.
        name: Its folder, the id or the id with a number where that folder is taken.
        serial: Its place in the row of releases.
        env: What its link to the environment says.
        sent: The files that the device does not have.
        differing: What a person wants to read: added, changed and removed paths.
    """

    id: str
    name: str
    serial: int
    env: str
    sent: frozenset[str]
    differing: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.differing[:MOST_SHOWN]) + (
            f" and {len(self.differing) - MOST_SHOWN} more" if len(self.differing) > MOST_SHOWN else ""
        )
        return f"release {self.name}: {shown}" if self.differing else f"release {self.name}"


@dataclass(frozen=True, slots=True)
class MakeHome:
    """Folders or links of ACOUPI_HOME are missing or wrong."""

    folders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"ACOUPI_HOME: {', '.join([*self.folders, *(name for name, _ in self.links)]).replace('., ', '')}"


@dataclass(frozen=True, slots=True)
class StopUnits:
    """Workers run that the program does not have any more."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"stop {' '.join(self.names)}"


@dataclass(frozen=True, slots=True)
class Switch:
    """Another release is to be in force."""

    name: str

    def __str__(self) -> str:
        return f"switch to release {self.name}"


@dataclass(frozen=True, slots=True)
class LinkUnits:
    """systemd does not know exactly our units, or would not start them at boot."""

    names: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    def __str__(self) -> str:
        words = [*(f"+{name}" for name in self.added), *(f"-{name}" for name in self.removed)]
        return f"units {' '.join(words)}" if words else f"start {TARGET} at boot"


@dataclass(frozen=True, slots=True)
class Reload:
    """systemd has to read the units again."""

    def __str__(self) -> str:
        return "systemd: read the units again"


@dataclass(frozen=True, slots=True)
class Restart:
    """What runs is not what should run."""

    was_running: bool

    def __str__(self) -> str:
        return f"{'restart' if self.was_running else 'start'} {TARGET}"


@dataclass(frozen=True, slots=True)
class Prune:
    """Releases and environments that nobody can go back to."""

    releases: tuple[str, ...]
    envs: tuple[str, ...]

    def __str__(self) -> str:
        gone = [*(f"release {name}" for name in self.releases), *(f"environment {name}" for name in self.envs)]
        return f"remove old {', '.join(gone)}"


Change: TypeAlias = (
    CreateUser
    | JoinGroup
    | Linger
    | InstallPackages
    | BuildEnvironment
    | UseRuntime
    | PushRelease
    | MakeHome
    | StopUnits
    | Switch
    | LinkUnits
    | Reload
    | Restart
    | Prune
)
