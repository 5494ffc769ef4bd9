"""plan: Desired minus Facts, as typed changes in the order in which they happen. Pure: no clock, no network, no file.

Nothing to do is an empty plan. Restarts are planned too, so that --check shows them.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from acoupi_fleet.changes import (
    SERVICE_USER,
    TARGET,
    BuildEnvironment,
    Change,
    CreateUser,
    InstallPackages,
    JoinGroup,
    Linger,
    LinkUnits,
    MakeHome,
    Prune,
    PushRelease,
    Reload,
    Restart,
    StopUnits,
    Switch,
    UseRuntime,
)
from acoupi_fleet.errors import HostError
from acoupi_fleet.wheelhouse import environment_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from acoupi_fleet.desired import Desired, File
    from acoupi_fleet.facts import Facts

SERVICE_HOME = "/var/lib/acoupi"
OLDEST_PYTHON = (3, 11)
KEPT_RELEASES = 3
WHEEL_BITS = 64
FOLDERS = (".", "log", "store")
FOLDER_MODE = 0o750
LINKS = ("app.py", "bin", "config")
WORLD_READS = 0o004


def plan(desired: Desired, facts: Facts) -> tuple[Change, ...]:
    """The changes that lead from what is to what should be.

    Raises:
        HostError: This device cannot become that: one line with the reason and the cure.
    """
    refuse(desired, facts)
    env = _env_link(desired, facts)
    changes: list[Change] = [*_users(desired, facts)]
    if facts.missing_packages:
        changes.append(InstallPackages(facts.missing_packages, desired.apt_via))
    push = _push(desired, facts, env)
    if desired.runtime is None:
        key = environment_key(desired.lock, facts.target)
        if key not in facts.envs:
            changes.append(BuildEnvironment(key))
    elif push is not None and (facts.release is None or facts.release.env != env):
        changes.append(UseRuntime(env))
    if push is not None:
        changes.append(push)
    changes += _home(desired, facts)
    changes += _running(desired, facts, push, built=any(isinstance(change, BuildEnvironment) for change in changes))
    changes += _prune(facts, push)
    return tuple(changes)


def refuse(desired: Desired, facts: Facts) -> None:
    """Say at once what cannot work, before anything is written."""
    target = facts.target
    if tuple(int(part) for part in target.python.split(".")) < OLDEST_PYTHON:
        version = target.markers["python_full_version"]
        raise HostError(
            f"Python {version} is too old, 3.11 is needed; install Debian 12 or newer, or the Raspberry Pi OS "
            "made from it"
        )
    if facts.bits != WHEEL_BITS:
        raise HostError(
            f"a 32-bit system ({target.machine}): numpy, cffi and pydantic have no wheels for it; install the "
            "64-bit Raspberry Pi OS"
        )
    if not target.glibc and desired.runtime is None:
        raise HostError(
            "its C library is not glibc: there are no wheels for it; use Debian, or runtime=/path/to/an/environment"
        )
    if not facts.systemd:
        raise HostError("there is no systemd to run services; use an image with systemd (Debian, Raspberry Pi OS)")
    if facts.foreign:
        name, path = next(iter(sorted(facts.foreign.items())))
        raise HostError(f"the unit {name} is somebody else's: {path}; remove or rename it there, then run again")
    if desired.scope == "system" and facts.service_home not in (None, SERVICE_HOME):
        raise HostError(
            f"there is a user {SERVICE_USER} with the home {facts.service_home}, which is not ours; use "
            "systemd_scope=user, or rename that user"
        )
    for name in (*LINKS, *FOLDERS):
        place = facts.home.get(name)
        if (
            place is not None
            and place.kind != ("link" if name in LINKS else "folder")
            and not (name in FOLDERS and place.kind == "link")
        ):
            raise HostError(
                f"{facts.home_path}/{name} is not ours (another installation?); move it away there: mv "
                f"{facts.home_path} {facts.home_path}.before"
            )
    if facts.missing_packages and not facts.can_install:
        names = " ".join(facts.missing_packages)
        raise HostError(f"missing on the sensor: {names}; install it there as root: sudo apt-get install {names}")


def release_id(desired: Desired, env: str) -> str:
    """The hash over everything in a release: same files, same modes, same environment, same id."""
    lines = [f"{file.path} {file.mode:o} {file.sha256}" for file in desired.files]
    return hashlib.sha256("\n".join([env, *sorted(lines)]).encode()).hexdigest()[:12]


def unit_names(desired: Desired) -> tuple[str, ...]:
    """The file names of the units."""
    return tuple(sorted(file.path.removeprefix("units/") for file in desired.files if file.path.startswith("units/")))


def services(desired: Desired) -> tuple[str, ...]:
    """The units that must be active: the target, each worker, and plain services that stay."""
    stay = [
        file.path.removeprefix("units/")
        for file in desired.files
        if file.path.startswith("units/")
        and file.path.endswith(".service")
        and "@" not in file.path
        and b"Type=oneshot" not in file.content
    ]
    return (TARGET, *sorted(stay), *(f"acoupi-worker@{worker}.service" for worker in desired.workers))


def _env_link(desired: Desired, facts: Facts) -> str:
    if desired.runtime is None:
        return f"../../env/{environment_key(desired.lock, facts.target)}"
    if desired.runtime.startswith("~/"):  # as in the paths of a configuration: of the user that runs the services
        return f"{PurePosixPath(facts.home_path).parent}{desired.runtime[1:]}"
    return desired.runtime


def _users(desired: Desired, facts: Facts) -> Iterator[Change]:
    if desired.scope == "user":
        if not facts.linger:
            yield Linger()
        return
    if facts.service_ids is None or "." not in facts.home:
        yield CreateUser()
    if "audio" not in facts.service_groups:
        yield JoinGroup(SERVICE_USER, "audio")
    if facts.login != "root" and SERVICE_USER not in facts.login_groups:
        yield JoinGroup(facts.login, SERVICE_USER)


def _push(desired: Desired, facts: Facts, env: str) -> PushRelease | None:
    """The release to push, or None when the one in force is right down to the last bit."""
    wanted = {file.path: file for file in desired.files}
    have = facts.release.files if facts.release else {}
    changed = [path for path, file in wanted.items() if path in have and not _same(file, desired, facts)]
    added = [path for path in wanted if path not in have]
    removed = [path for path in have if path not in wanted]
    now = facts.release
    if now is not None and not (changed or added or removed) and now.env == env and now.env_works and now.derived_whole:
        return None
    identity = release_id(desired, env)
    known = {fact.sha256 for fact in have.values()}
    differing = [*changed, *(f"+{path}" for path in added), *(f"-{path}" for path in removed)] if now else []
    return PushRelease(
        id=identity,
        name=_free_name(identity, facts.releases),
        serial=1 + max((old.serial for old in facts.releases.values()), default=0),
        env=env,
        sent=frozenset(file.path for file in desired.files if file.sha256 not in known),
        differing=tuple(sorted(differing)),
    )


def _same(file: File, desired: Desired, facts: Facts) -> bool:
    """Whether a file on the device has the bytes, the mode and the owner that it should have."""
    fact = facts.release.files[file.path] if facts.release else None
    if fact is None or (fact.sha256, fact.mode) != (file.sha256, file.mode):
        return False
    if desired.scope == "user":
        return fact.uid == facts.login_uid
    secret = not file.mode & WORLD_READS
    return fact.uid == 0 and (not secret or (facts.service_ids is not None and fact.gid == facts.service_ids[1]))


def _free_name(identity: str, taken: Mapping[str, object]) -> str:
    """A release is never changed in place: a damaged one gets a neighbour."""
    number = 1
    name = identity
    while name in taken:
        number += 1
        name = f"{identity}.{number}"
    return name


def _home(desired: Desired, facts: Facts) -> Iterator[Change]:
    """What is missing or wrong in ACOUPI_HOME."""
    wanted = {name: f"{facts.prefix}/current/home/{name}" for name in LINKS}
    wanted["run"] = facts.run_path
    paths = {file.path for file in desired.files}
    links = [
        (name, target)
        for name, target in wanted.items()
        if facts.home.get(name) is None or facts.home[name].to != target
        if name == "run" or f"home/{name}" in paths or any(path.startswith(f"home/{name}/") for path in paths)
    ]
    wrong = [name for name in FOLDERS if not _right_folder(name, facts)]
    if wrong or links:
        yield MakeHome(tuple(wrong), tuple(links))


def _right_folder(name: str, facts: Facts) -> bool:
    place = facts.home.get(name)
    if place is not None and place.kind == "link":
        return True  # somebody keeps recordings on a disk of their own
    return (
        place is not None
        and place.kind == "folder"
        and place.mode == FOLDER_MODE
        and (place.uid, place.gid) == facts.service_ids
    )


def _running(desired: Desired, facts: Facts, push: PushRelease | None, *, built: bool) -> Iterator[Change]:
    """From what is on the card to what runs."""
    names = unit_names(desired)
    right = {name: f"{facts.prefix}/current/units/{name}" for name in names}
    added = tuple(name for name in names if facts.links.get(name) != right[name])
    removed = tuple(sorted(name for name in facts.links if name not in right))
    wanted = set(services(desired))
    stray = [
        name
        for name, state in sorted(facts.states.items())
        if name not in wanted
        and name.startswith("acoupi-worker@")
        and state.get("ActiveState") not in ("inactive", "failed")
    ]
    gone = [name for name in removed if "@." not in name and name not in stray]
    if stray or gone:
        yield StopUnits((*stray, *gone))
    if push is not None:
        yield Switch(push.name)
    boots = TARGET not in names or facts.enabled == f"../{TARGET}"
    if added or removed or not boots:
        yield LinkUnits(names, added, removed)
    stale = any(state.get("NeedDaemonReload") == "yes" for state in facts.states.values())
    # systemd compares times: after a switch it wants to read even those units again whose bytes are the same.
    if push is not None or added or removed or stale or facts.due is not None:
        yield Reload()
    asleep = [name for name in sorted(wanted) if facts.states.get(name, {}).get("ActiveState") != "active"]
    if push is not None or built or added or stale or asleep or facts.due is not None:
        yield Restart(was_running=facts.states.get(TARGET, {}).get("ActiveState") == "active")


def _prune(facts: Facts, push: PushRelease | None) -> Iterator[Change]:
    """What goes after a good change: all but the release in force and the ones before it."""
    serials = {name: old.serial for name, old in facts.releases.items()}
    in_force = push.name if push else facts.release.name if facts.release else None
    others = sorted((name for name in serials if name != in_force), key=lambda name: serials[name], reverse=True)
    kept = [name for name in (in_force, *others) if name is not None][:KEPT_RELEASES]
    going = tuple(sorted(name for name in serials if name not in kept))
    needed = {old.env for name, old in facts.releases.items() if name in kept} | ({push.env} if push else set())
    envs = tuple(sorted(key for key in facts.envs if f"../../env/{key}" not in needed))
    if going or envs:
        yield Prune(going, envs)
