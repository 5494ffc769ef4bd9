"""apply: hands a plan to the device's agent, with only the bytes that it lacks. The only room that writes a device."""

from __future__ import annotations

import getpass
import hashlib
import socket
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from acoupi_fleet.changes import (
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
from acoupi_fleet.errors import understood
from acoupi_fleet.plan import services
from acoupi_fleet.tunnel import serve
from acoupi_fleet.wheelhouse import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from acoupi_fleet.desired import Desired
    from acoupi_fleet.facts import Facts
    from acoupi_fleet.remote import Session

# What a worker needs at once. kombu finds its Redis transport only when redis is right too, and says something
# misleading when not.
IMPORTS = ("celery", "kombu.transport.redis", "redis", "numpy", "cffi", "pydantic", "astral", "jinja2")
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a change ended, as the device saw it.

    Attributes:
        end: `done`; `unhealthy`, which stays; or `rolled-back`.
        why: What is wrong, or was wrong before it went back.
        problems: What the last look found.
        warnings: What a person should know all the same.
    """

    end: str
    why: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Demands:
    """When a change is good: sound or not, and how long to wait for it."""

    require_sound: bool = False
    seconds: float = 45.0


def apply(
    session: Session,
    desired: Desired,
    facts: Facts,
    changes: Sequence[Change],
    *,
    wheels: Sequence[Path] = (),
    demands: Demands = Demands(),
    observe: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Carry out a plan. Once the device has received everything it goes on to its end, even when this end is gone.

    Raises:
        HostError: The device refused or failed; what ran before runs again.
        LinkLostError: The outcome is unknown.
    """
    later = [change for change in changes if isinstance(change, Prune)]
    now = [change for change in changes if not isinstance(change, Prune)]
    release = f"releases/{facts.release.name}" if facts.release else None
    lent = next((number for number, change in enumerate(now) if _borrows(change)), None)
    with ExitStack() as tunnel:
        port = None if lent is None else tunnel.enter_context(session.lend(serve))

        def hear(event: dict[str, Any]) -> None:
            match event:
                case {"event": "step", "number": int(number)} if lent is not None and number > lent:
                    tunnel.close()
                case _:
                    pass
            observe(event)

        answer = session.ask(
            "apply",
            {
                "scope": desired.scope,
                "owner": f"{getpass.getuser()}@{socket.gethostname()}",
                "expected": {"current": release, "due": facts.due},
                "previous": _previous(facts),
                "needs_bytes": _bytes_needed(desired, changes, wheels),
                "steps": [_step(change, desired, facts, wheels, port) for change in now],
                "afterwards": [_step(change, desired, facts, wheels, port) for change in later],
                "health": {
                    "units": list(services(desired)),
                    "workers": list(desired.workers),
                    "require_sound": demands.require_sound,
                    "seconds": demands.seconds,
                },
            },
            body=lambda: _body(desired, now, wheels),
            observe=hear,
        )
    with understood():
        health = answer["health"]
        return Outcome(
            answer["outcome"],
            tuple(map(str, answer["why"])),
            tuple(map(str, health["problems"].values())),
            tuple(map(str, health["warnings"].values())),
        )


def _borrows(change: Change) -> bool:
    """Whether it takes this computer's connection."""
    return isinstance(change, InstallPackages) and change.via == "workstation"


def _previous(facts: Facts) -> str | None:
    """What to go back to: what was in force before a change that was not seen through, else what is in force."""
    interrupted = (facts.due or {}).get("previous")
    if interrupted in facts.releases:
        return str(interrupted)
    return facts.release.name if facts.release else None


def _bytes_needed(desired: Desired, changes: Sequence[Change], wheels: Sequence[Path]) -> int:
    """Twice what will be written, since pip unpacks before it installs, and compiling adds about as much again."""
    total = 0
    for change in changes:
        if isinstance(change, BuildEnvironment):
            total += sum(wheel.stat().st_size + 2 * _unpacked(wheel) for wheel in wheels)
        elif isinstance(change, PushRelease):
            total += 2 * sum(len(file.content) for file in desired.files)
    return total


def _unpacked(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(member.file_size for member in archive.infolist())


def _step(  # noqa: C901, PLR0911, PLR0912
    change: Change, desired: Desired, facts: Facts, wheels: Sequence[Path], port: int | None
) -> dict[str, Any]:
    """A change in the words of the device's table of steps; `port` is where this computer's connection is lent."""
    match change:
        case CreateUser():
            return {"do": "create-user"}
        case JoinGroup(user, group):
            return {"do": "join-group", "user": user, "group": group}
        case Linger():
            return {"do": "linger"}
        case InstallPackages(names):
            return {"do": "install-packages", "names": names, "proxy": f"http://127.0.0.1:{port}" if port else None}
        case BuildEnvironment(key):
            pins = [pin for pin in resolve(desired.lock, facts.target) if pin.name != "pip"]
            return {
                "do": "build-environment",
                "key": key,
                "requirements": "".join(f"{pin}\n" for pin in pins),
                "wheels": [
                    {"name": wheel.name, "size": wheel.stat().st_size, "sha256": _sha256(wheel)} for wheel in wheels
                ],
                "imports": IMPORTS,
            }
        case UseRuntime(path):
            return {"do": "use-runtime", "path": path, "imports": IMPORTS}
        case PushRelease(identity, name, serial, env, sent):
            return {
                "do": "push-release",
                "id": identity,
                "name": name,
                "serial": serial,
                "env": env,
                "runs": {"units": services(desired), "workers": desired.workers},
                "files": [
                    {
                        "path": file.path,
                        "mode": file.mode,
                        "sha256": file.sha256,
                        "size": len(file.content),
                        "sent": file.path in sent,
                    }
                    for file in desired.files
                ],
            }
        case MakeHome(folders, links):
            return {"do": "make-home", "folders": folders, "links": dict(links)}
        case StopUnits(names):
            return {"do": "stop-units", "names": names}
        case Switch(name):
            return {"do": "switch", "name": name}
        case LinkUnits(names):
            return {"do": "link-units", "names": names}
        case Reload():
            return {"do": "reload"}
        case Restart():
            return {"do": "restart"}
        case Prune(releases, envs):
            return {"do": "prune", "releases": releases, "envs": envs}
        case _:
            assert_never(change)


def _body(desired: Desired, changes: Sequence[Change], wheels: Sequence[Path]) -> Iterator[bytes]:
    """The bytes that the steps take, in their order."""
    for change in changes:
        if isinstance(change, BuildEnvironment):
            for wheel in wheels:
                with wheel.open("rb") as stream:
                    yield from iter(lambda: stream.read(_PIECE), b"")
        elif isinstance(change, PushRelease):
            yield b"".join(file.content for file in desired.files if file.path in change.sent)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
