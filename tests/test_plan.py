"""The plan is Desired minus Facts: what it says, and what it refuses, without any device."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

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
from acoupi_fleet.desired import Desired, File
from acoupi_fleet.errors import HostError
from acoupi_fleet.facts import Facts, FileFact, OldRelease, Place, ReleaseFact
from acoupi_fleet.plan import plan, release_id, services
from acoupi_fleet.wheelhouse import Target, environment_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from acoupi_fleet.desired import Scope

LOCK = f"six==1.17.0 --hash=sha256:{'a' * 64}\n"
ACOUPI = (990, 991)
PI = (1000, 1000)


def wanted(scope: Scope = "system", **changes: Any) -> Desired:
    files = (
        File("home/app.py", b"app"),
        File("home/bin/acoupi-workers-start.sh", b"start", 0o755),
        File("home/config/program.json", b"{}", 0o640),
        File("lib/acoupi_runtime/__init__.py", b"code"),
        File("units/acoupi-redis.service", b"[Service]\n"),
        File("units/acoupi-worker@.service", b"[Service]\n"),
        File("units/acoupi-worker@recording.service", b"[Service]\n"),
        File("units/acoupi.target", b"[Unit]\n"),
    )
    return replace(Desired(scope, files, ("recording", "processing"), ("redis-server",), LOCK), **changes)


def target(python: str = "3.11.2", machine: str = "aarch64", glibc: str = "2.36") -> Target:
    short = ".".join(python.split(".")[:2])
    return Target(machine, glibc, {"python_full_version": python, "python_version": short, "platform_machine": machine})


def settled(desired: Desired, on: Target | None = None) -> Facts:
    """The facts of a device that is exactly what is wanted."""
    on = on or target()
    system = desired.scope == "system"
    env = desired.runtime or f"../../env/{environment_key(desired.lock, on)}"
    name = release_id(desired, env)
    prefix = "/opt/acoupi" if system else "/home/pi/.local/share/acoupi"
    owner = ACOUPI if system else PI

    def about(file: File) -> FileFact:
        secret = not file.mode & 0o004
        uid, gid = (0, ACOUPI[1] if secret else 0) if system else PI
        return FileFact(file.sha256, file.mode, uid, gid)

    units = [file.path.removeprefix("units/") for file in desired.files if file.path.startswith("units/")]
    places = {each: Place("folder", mode=0o750, uid=owner[0], gid=owner[1]) for each in (".", "log", "store")}
    places |= {each: Place("link", to=f"{prefix}/current/home/{each}") for each in ("app.py", "bin", "config")}
    places["run"] = Place("link", to="/run/acoupi")
    return Facts(
        target=on,
        bits=64,
        login="pi",
        login_uid=0 if system else PI[0],
        login_groups=frozenset({"pi", "acoupi"}),
        service_ids=owner,
        service_home="/var/lib/acoupi" if system else "/home/pi",
        service_groups=frozenset({"acoupi", "audio"}),
        prefix=prefix,
        home_path="/var/lib/acoupi/.acoupi" if system else "/home/pi/.acoupi",
        run_path="/run/acoupi",
        systemd=True,
        linger=True,
        missing_packages=(),
        can_install=system,
        free_bytes=10**10,
        due=None,
        release=ReleaseFact(name, name, env, True, {file.path: about(file) for file in desired.files}, True),  # noqa: FBT003
        releases={name: OldRelease(1, env)},
        envs=frozenset() if desired.runtime else frozenset({environment_key(desired.lock, on)}),
        home=places,
        links={each: f"{prefix}/current/units/{each}" for each in units},
        foreign={},
        enabled="../acoupi.target",
        states={each: {"ActiveState": "active", "NeedDaemonReload": "no"} for each in services(desired)},
    )


def kinds(changes: tuple[Change, ...]) -> list[type]:
    return [type(change) for change in changes]


def with_file(facts: Facts, path: str, fact: FileFact | None) -> Facts:
    assert facts.release is not None
    files = dict(facts.release.files)
    if fact is None:
        del files[path]
    else:
        files[path] = fact
    return replace(facts, release=replace(facts.release, files=MappingProxyType(files)))


@pytest.mark.parametrize("scope", ["system", "user"])
@pytest.mark.parametrize("runtime", [None, "/opt/venv"])
def test_a_device_that_is_what_it_should_be_needs_nothing(scope: Scope, runtime: str | None) -> None:
    desired = wanted(scope, runtime=runtime)
    assert plan(desired, settled(desired)) == ()


def test_a_new_device_gets_everything_in_an_order_in_which_each_step_finds_what_it_needs() -> None:
    desired = wanted()
    new = replace(
        settled(desired),
        login_groups=frozenset({"pi"}),
        service_ids=None,
        service_home=None,
        service_groups=frozenset(),
        missing_packages=("redis-server",),
        release=None,
        releases={},
        envs=frozenset(),
        home={},
        links={},
        enabled=None,
        states={},
    )
    changes = plan(desired, new)
    assert kinds(changes) == [
        CreateUser,
        JoinGroup,
        JoinGroup,
        InstallPackages,
        BuildEnvironment,
        PushRelease,
        MakeHome,
        Switch,
        LinkUnits,
        Reload,
        Restart,
    ]
    assert {str(change) for change in changes} >= {
        "put user acoupi into group audio",
        "put user pi into group acoupi",
        "install packages redis-server",
        "ACOUPI_HOME: log, store, app.py, bin, config, run",
        "start acoupi.target",
    }


PUSH = [PushRelease, Switch, Reload, Restart]
PROGRAM = "home/config/program.json"


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        (lambda facts: with_file(facts, PROGRAM, FileFact("f" * 64, 0o640, 0, ACOUPI[1])), PUSH),
        (lambda facts: with_file(facts, PROGRAM, None), PUSH),
        (lambda facts: with_file(facts, "lib/planted.py", FileFact("f" * 64, 0o644, 0, 0)), PUSH),
        (lambda facts: replace(facts, release=replace(facts.release, derived_whole=False)), PUSH),
        (lambda facts: replace(facts, release=replace(facts.release, env_works=False)), PUSH),
        (lambda facts: replace(facts, envs=frozenset()), [BuildEnvironment, Restart]),
        (lambda facts: replace(facts, links={}), [LinkUnits, Reload, Restart]),
        (lambda facts: replace(facts, enabled=None), [LinkUnits]),
        (lambda facts: replace(facts, due={"previous": None}), [Reload, Restart]),
        (
            lambda facts: replace(facts, home={**facts.home, "log": Place("folder", mode=0o777, uid=0, gid=0)}),
            [MakeHome],
        ),
        (lambda facts: replace(facts, home={**facts.home, "config": Place("link", to="/etc")}), [MakeHome]),
        (lambda facts: replace(facts, login_groups=frozenset()), [JoinGroup]),
        (lambda facts: replace(facts, home={}), [CreateUser, MakeHome]),
    ],
    ids=[
        "changed",
        "removed",
        "added",
        "compiled",
        "python",
        "env",
        "links",
        "boot",
        "interrupted",
        "mode",
        "link",
        "group",
        "home",
    ],
)
def test_what_differs_is_put_right_and_nothing_else(drift: Callable[[Facts], Facts], expected: list[type]) -> None:
    desired = wanted()
    assert kinds(plan(desired, drift(settled(desired)))) == expected


@pytest.mark.parametrize("fact", [(0o644, 0, ACOUPI[1]), (0o640, 1000, ACOUPI[1]), (0o640, 0, 1000)])
def test_a_secret_with_another_mode_or_owner_is_pushed_again_with_the_right_one(fact: tuple[int, int, int]) -> None:
    desired = wanted()
    content = next(file for file in desired.files if file.path == PROGRAM).sha256
    assert kinds(plan(desired, with_file(settled(desired), PROGRAM, FileFact(content, *fact)))) == PUSH


def test_only_what_the_device_lacks_is_sent_and_a_damaged_release_gets_a_neighbour() -> None:
    desired = wanted()
    facts = with_file(settled(desired), "home/app.py", FileFact("f" * 64, 0o644, 0, 0))
    assert facts.release is not None
    push = next(change for change in plan(desired, facts) if isinstance(change, PushRelease))
    assert push.sent == {"home/app.py"}
    assert (push.id, push.name, push.serial) == (facts.release.name, f"{facts.release.name}.2", 2)


def test_one_changed_value_restarts_once_and_says_which_file() -> None:
    desired = wanted()
    facts = settled(desired)
    files = tuple(replace(file, content=b'{"a": 1}') if file.path == PROGRAM else file for file in desired.files)
    changes = plan(replace(desired, files=files), facts)
    assert kinds(changes) == PUSH
    assert str(changes[0]).endswith(f": {PROGRAM}")
    assert str(changes[-1]) == "restart acoupi.target"


def test_the_release_id_follows_bytes_modes_and_environment_but_not_order() -> None:
    desired = wanted()
    same = replace(desired, files=tuple(reversed(desired.files)))
    chmod = replace(desired, files=(replace(desired.files[0], mode=0o600), *desired.files[1:]))
    assert release_id(desired, "env") == release_id(same, "env")
    assert len({release_id(desired, "env"), release_id(desired, "other"), release_id(chmod, "env")}) == 3


def test_a_worker_that_the_program_has_no_more_is_stopped() -> None:
    desired = wanted()
    facts = settled(desired)
    old = {**facts.states, "acoupi-worker@detection.service": {"ActiveState": "active"}}
    assert plan(desired, replace(facts, states=old)) == (StopUnits(("acoupi-worker@detection.service",)),)


def test_a_unit_that_is_no_more_wanted_is_stopped_and_unlinked() -> None:
    desired = wanted()
    facts = settled(desired)
    links = {**facts.links, "acoupi-beat.service": f"{facts.prefix}/current/units/acoupi-beat.service"}
    changes = plan(desired, replace(facts, links=links))
    assert kinds(changes) == [StopUnits, LinkUnits, Reload]
    assert str(changes[1]) == "units -acoupi-beat.service"


@pytest.mark.parametrize("state", ["inactive", "failed", "activating"])
def test_a_unit_that_does_not_run_is_started(state: str) -> None:
    desired = wanted()
    facts = settled(desired)
    asleep = {**facts.states, "acoupi-worker@recording.service": {"ActiveState": state}}
    assert kinds(plan(desired, replace(facts, states=asleep))) == [Restart]


def test_three_releases_are_kept_and_the_environments_that_they_need() -> None:
    desired = wanted()
    facts = settled(desired)
    assert facts.release is not None
    old = {f"r{number}": OldRelease(number, f"../../env/e{number}") for number in range(1, 5)}
    now = {facts.release.name: OldRelease(5, facts.release.env)}
    envs = frozenset({*facts.envs, "e1", "e2", "e3", "e4"})
    changes = plan(desired, replace(facts, releases={**old, **now}, envs=envs))
    assert changes == (Prune(("r1", "r2"), ("e1", "e2")),)


def test_an_environment_that_is_there_already_is_tried_before_it_is_used() -> None:
    desired = wanted()
    changes = plan(replace(desired, runtime="/opt/venv"), settled(desired))
    assert kinds(changes) == [UseRuntime, *PUSH]


@pytest.mark.parametrize(("scope", "home"), [("system", "/var/lib/acoupi"), ("user", "/home/pi")])
def test_the_home_in_an_environments_path_is_that_of_the_user_who_runs_the_services(scope: Scope, home: str) -> None:
    tried, pushed, *_ = plan(wanted(scope, runtime="~/venv"), settled(wanted(scope)))
    assert tried == UseRuntime(f"{home}/venv")
    assert isinstance(pushed, PushRelease)
    assert pushed.env == f"{home}/venv", "a link does not know what ~ is"
    there = settled(wanted(scope, runtime=f"{home}/venv"))
    assert plan(wanted(scope, runtime="~/venv"), there) == ()


def test_without_linger_a_users_services_would_end_at_logout() -> None:
    desired = wanted("user")
    assert plan(desired, replace(settled(desired), linger=False)) == (Linger(),)


def test_a_folder_that_somebody_moved_to_another_disk_by_a_link_is_left_alone() -> None:
    desired = wanted()
    facts = settled(desired)
    assert plan(desired, replace(facts, home={**facts.home, "store": Place("link", to="/mnt/usb")})) == ()


@pytest.mark.parametrize(
    ("scope", "change", "line"),
    [
        ("system", {"target": target("3.9.2")}, "Python 3.9.2 is too old, 3.11 is needed"),
        ("system", {"bits": 32}, "a 32-bit system (aarch64): numpy, cffi and pydantic have no wheels"),
        ("system", {"target": target(glibc="")}, "its C library is not glibc"),
        ("system", {"systemd": False}, "there is no systemd"),
        (
            "system",
            {"foreign": {"acoupi.target": "/lib/x"}},
            "the unit acoupi.target is somebody else's: /lib/x; remove",
        ),
        ("system", {"service_home": "/home/acoupi"}, "there is a user acoupi with the home /home/acoupi"),
        ("user", {"missing_packages": ("redis-server",)}, "sudo apt-get install redis-server"),
        ("user", {"home": {"config": Place("folder")}}, ".acoupi/config is not ours"),
        ("user", {"home": {"store": Place("file")}}, ".acoupi/store is not ours"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_with_its_cure(scope: Scope, change: dict[str, Any], line: str) -> None:
    desired = wanted(scope)
    with pytest.raises(HostError) as refused:
        plan(desired, replace(settled(desired), **change))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ";" in str(refused.value)
