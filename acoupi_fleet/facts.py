"""facts: what a device is and has, as frozen values, in one question. Reads the device, never writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acoupi_fleet.errors import understood
from acoupi_fleet.wheelhouse import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acoupi_fleet.desired import Desired
    from acoupi_fleet.remote import Session


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file of the release in force, as it is now."""

    sha256: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ReleaseFact:
    """The release in force.

    Attributes:
        name: Its folder's name.
        id: The id that it was pushed with.
        env: What its link `env` says.
        env_works: Whether that leads to an interpreter.
        files: Its files by path, without what was derived from them on the device.
        derived_whole: Whether what was derived is as it was made.
    """

    name: str
    id: str | None
    env: str | None
    env_works: bool
    files: Mapping[str, FileFact]
    derived_whole: bool


@dataclass(frozen=True, slots=True)
class OldRelease:
    """A release that is there: its place in the row, and the environment that it needs."""

    serial: int
    env: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Something in ACOUPI_HOME.

    A `link` with what it says, a `folder` with its mode and owner, or a `file` that is not ours.
    """

    kind: str
    to: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """A device, at one moment.

    Attributes:
        target: What its wheels must fit.
        bits: 64, or 32 where even a 64-bit kernel does not help.
        login: Who logged in.
        login_uid: The number of the user that the agent ran as.
        login_groups: The groups of who logged in.
        service_ids: User and group number of the user that runs the services, or None while there is none.
        service_home: That user's home.
        service_groups: That user's groups.
        prefix: Where everything of ours stands.
        home_path: ACOUPI_HOME.
        run_path: Where live state belongs: a folder in memory that systemd makes.
        systemd: Whether there is a systemd to ask.
        linger: Whether services run without a login.
        missing_packages: Which of the wanted packages are not there.
        can_install: Whether apt can be used.
        free_bytes: Room below the prefix.
        due: The marker of a change that was not seen through, or None.
        release: The release in force, or None.
        releases: All releases by name.
        envs: The keys of the environments that are whole.
        home: What stands in ACOUPI_HOME under our names.
        links: Our links among the units.
        foreign: Units of somebody else under a name of ours, with their paths.
        enabled: What the link says that starts the target at boot.
        states: systemd's words on each unit that can run.
    """

    target: Target
    bits: int
    login: str
    login_uid: int
    login_groups: frozenset[str]
    service_ids: tuple[int, int] | None
    service_home: str | None
    service_groups: frozenset[str]
    prefix: str
    home_path: str
    run_path: str
    systemd: bool
    linger: bool
    missing_packages: tuple[str, ...]
    can_install: bool
    free_bytes: int
    due: Mapping[str, Any] | None
    release: ReleaseFact | None
    releases: Mapping[str, OldRelease]
    envs: frozenset[str]
    home: Mapping[str, Place]
    links: Mapping[str, str]
    foreign: Mapping[str, str]
    enabled: str | None
    states: Mapping[str, Mapping[str, str]]


def look(session: Session, desired: Desired) -> Facts:
    """Ask the device everything that a plan needs."""
    units = [file.path.removeprefix("units/") for file in desired.files if file.path.startswith("units/")]
    question = {
        "scope": desired.scope,
        "packages": list(desired.packages),
        "units": units,
        "workers": list(desired.workers),
    }
    return parse(session.ask("facts", question))


@understood()
def parse(said: Mapping[str, Any]) -> Facts:
    """The device's answer as values.

    Raises:
        HostError: It is no such answer.
    """
    machine, login, service, units, release = (
        said["machine"],
        said["login"],
        said["service"],
        said["units"],
        said["release"],
    )
    return Facts(
        target=target(machine),
        bits=machine["bits"],
        login=login["name"],
        login_uid=login["uid"],
        login_groups=frozenset(login["groups"]),
        service_ids=(service["uid"], service["gid"]) if service else None,
        service_home=service["home"] if service else None,
        service_groups=frozenset(service["groups"]) if service else frozenset(),
        prefix=said["prefix"],
        home_path=said["home_path"],
        run_path=said["run_path"],
        systemd=said["systemd"],
        linger=said["linger"],
        missing_packages=tuple(said["missing_packages"]),
        can_install=said["can_install"],
        free_bytes=said["free_bytes"],
        due=None if said["due"] is None else dict(said["due"]),
        release=_release(release) if release else None,
        releases={name: OldRelease(**about) for name, about in said["releases"].items()},
        envs=frozenset(said["envs"]),
        home={name: Place(**about) for name, about in said["home"].items()},
        links=dict(units["links"]),
        foreign=dict(units["foreign"]),
        enabled=units["enabled"],
        states={name: dict(state) for name, state in said["states"].items()},
    )


@understood()
def target(machine: Mapping[str, Any]) -> Target:
    """What the device's wheels must fit, whole enough for every question that will be asked of it.

    Raises:
        HostError: It is no such answer.
    """
    said = Target(machine["machine"], machine["glibc"], dict(machine["markers"]))
    [int(part) for part in said.python.split(".")]
    str(said)
    if said.glibc:
        said.platforms  # noqa: B018 - raises for a version that is none
    return said


def _release(said: Mapping[str, Any]) -> ReleaseFact:
    return ReleaseFact(
        name=said["name"],
        id=said["id"],
        env=said["env"],
        env_works=said["env_works"],
        files={path: FileFact(*about) for path, about in said["files"].items()},
        derived_whole=said["derived"],
    )
