"""users: the service user, its groups, its ACOUPI_HOME. Touches the user database, and that folder as its owner."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import files, system
from acoupi_fleet.device.layout import FOLDER_MODE, SERVICE_HOME, SERVICE_USER, Layout, Refusal, group_ids

if TYPE_CHECKING:
    from collections.abc import Callable

LINGER_SECONDS = 20.0


def create_user(layout: Layout) -> None:
    """The user that runs the services, and its home, which its group may read."""
    if layout.ids() is None:
        words = [
            "--system",
            "--user-group",
            "--home-dir",
            str(SERVICE_HOME),
            "--no-create-home",
            "--shell",
            "/usr/sbin/nologin",
        ]
        program = system.found("useradd") or "useradd"
        system.must(system.run([program, *words, SERVICE_USER], layout.control_env()), "useradd")
    ids = layout.ids()
    if ids is None:
        raise Refusal(f"useradd made no user {SERVICE_USER}")
    if not SERVICE_HOME.is_dir():
        SERVICE_HOME.mkdir(FOLDER_MODE)
    os.chown(str(SERVICE_HOME), *ids)
    SERVICE_HOME.chmod(FOLDER_MODE)


def join_group(layout: Layout, user: str, group: str) -> None:
    """Put a user into a group."""
    program = system.found("usermod") or "usermod"
    system.must(system.run([program, "--append", "--groups", group, user], layout.control_env()), "usermod")


def linger(layout: Layout) -> None:
    """Let a user's services run without a login, and wait until the user's own systemd listens."""
    said = system.run(["loginctl", "enable-linger"], layout.control_env())
    if said.code != 0:
        raise Refusal(
            f"services of {layout.user} stop when nobody is logged in, and it may not change that itself "
            f"({said.reason}); "
            f"ask root of the sensor for: loginctl enable-linger {layout.user}"
        )
    until = time.monotonic() + LINGER_SECONDS
    while not listens(layout) and time.monotonic() < until:
        time.sleep(0.1)


def listens(layout: Layout) -> bool:
    """Whether the login user's systemd can be asked."""
    return system.systemctl(layout, "show", "--property=Version").code == 0


def make_home(layout: Layout, folders: list[str], links: dict[str, str]) -> None:
    """Make what is missing in ACOUPI_HOME, as its owner.

    Root never writes into a folder that somebody else can change.
    """
    ids = layout.ids()
    if layout.system and ids is not None:
        as_user(ids, group_ids(layout.user), lambda: fill_home(layout.home, folders, links))
    else:
        fill_home(layout.home, folders, links)


def fill_home(home: Path, folders: list[str], links: dict[str, str]) -> None:
    """Folders with their modes, links with what they say."""
    for name in folders:
        path = home / name
        path.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        path.chmod(FOLDER_MODE)
    for name, target in links.items():
        files.link(home / name, target)
    files.sync_dir(home)


def as_user(ids: tuple[int, int], groups: list[int], work: Callable[[], Any]) -> None:
    """Do something in a child process that has given up root for good."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setgid(ids[1])
            os.setuid(ids[0])
            work()
            code = 0
        except Exception:  # noqa: BLE001 - told to the parent, which refuses
            os.write(writing, traceback.format_exc().strip().splitlines()[-1].encode("utf-8")[:2000])
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        reason = said.read().decode("utf-8", "replace")
    if os.waitpid(child, 0)[1] != 0:
        raise Refusal(f"making ACOUPI_HOME failed: {reason}")
