"""layout: where everything of ours stands on this device, and who owns it. Touches the user database, to read it."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

SERVICE_USER = "acoupi"
SERVICE_HOME = Path("/var/lib/acoupi")
TARGET = "acoupi.target"
HOME_LINKS = ("app.py", "bin", "config")
HOME_FOLDERS = ("log", "store")
FOLDER_MODE = 0o750


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error of the agent
    """This device refuses, in one clear line: what is wrong; what to do."""


class Layout:
    """The paths of one scope.

    `system`: root's units and the user acoupi. `user`: all of it belongs to whoever logged in.
    """

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.system = scope == "system"
        if self.system:
            self.user = SERVICE_USER
            self.prefix = Path("/opt/acoupi")
            self.home = SERVICE_HOME / ".acoupi"
            self.unit_dir = Path("/etc/systemd/system")
            self.wants_dir = self.unit_dir / "multi-user.target.wants"
            self.run = Path("/run/acoupi")
        else:
            self.user = pwd.getpwuid(os.getuid()).pw_name
            own = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
            config = Path(os.environ.get("XDG_CONFIG_HOME") or own / ".config")
            self.prefix = own / ".local/share/acoupi"
            self.home = own / ".acoupi"
            self.unit_dir = config / "systemd/user"
            self.wants_dir = self.unit_dir / "default.target.wants"
            self.run = self.runtime_dir / "acoupi"

    @property
    def runtime_dir(self) -> Path:
        """The login user's own folder in memory, where its systemd listens."""
        return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")

    @property
    def releases(self) -> Path:
        """One folder for each release."""
        return self.prefix / "releases"

    @property
    def envs(self) -> Path:
        """One folder for each third-party environment."""
        return self.prefix / "env"

    @property
    def current(self) -> Path:
        """The link that says which release is in force."""
        return self.prefix / "current"

    @property
    def due(self) -> Path:
        """The marker: while it exists, a change has begun and was not seen through."""
        return self.prefix / "due.json"

    def ids(self) -> tuple[int, int] | None:
        """The user and group that run the services, or None while they do not exist."""
        try:
            entry = pwd.getpwnam(self.user)
        except KeyError:
            return None
        if self.system:
            return entry.pw_uid, entry.pw_gid
        return os.getuid(), os.getgid()

    def login(self) -> str:
        """Who logged in: the user before sudo."""
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name

    def control_env(self) -> dict[str, str]:
        """The environment in which systemctl finds the right systemd, and everything speaks English."""
        env = dict(os.environ, LC_ALL="C", PYTHONDONTWRITEBYTECODE="1")
        if not self.system:
            env["XDG_RUNTIME_DIR"] = str(self.runtime_dir)
        return env

    def service_env(self) -> dict[str, str]:
        """The environment in which a command of the runtime finds the current release and its home."""
        env = self.control_env()
        env["PATH"] = os.environ.get("PATH") or "/usr/local/bin:/usr/bin:/bin"
        env["HOME"] = str(self.home.parent)
        env["USER"] = env["LOGNAME"] = self.user
        env["ACOUPI_HOME"] = str(self.home)
        env["PYTHONPATH"] = str(self.current / "lib")
        for name in [name for name in env if name.startswith("SUDO_")]:
            del env[name]
        return env

    @property
    def python(self) -> Path:
        """The interpreter of the current release's environment."""
        return self.current / "env/bin/python"


def groups_of(user: str) -> list[str]:
    """The names of the groups that a user is in."""
    try:
        primary = pwd.getpwnam(user).pw_gid
    except KeyError:
        return []
    return sorted(group.gr_name for group in grp.getgrall() if user in group.gr_mem or group.gr_gid == primary)


def group_ids(user: str) -> list[int]:
    """The numbers of the groups that a user is in."""
    return [grp.getgrnam(name).gr_gid for name in groups_of(user)]
