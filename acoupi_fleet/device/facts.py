"""facts: what this device is and has, in one answer, every hash computed now. Reads the device, writes nothing."""

from __future__ import annotations

import ctypes.util
import json
import os
import platform
import pwd
import stat
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import files, system
from acoupi_fleet.device.layout import HOME_FOLDERS, HOME_LINKS, TARGET, Layout, groups_of

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call

UNIT_FOLDERS = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd")
# Where a package is not Debian's, or not a package at all, these tell whether what it brings is there.
BRINGS = {
    "redis-server": lambda: system.found("redis-server") is not None,
    "libportaudio2": lambda: ctypes.util.find_library("portaudio") is not None,
}


def facts(call: Call) -> dict[str, Any]:
    """The verb: `scope`, `packages`, `units` (file names) and `workers` in, everything that a plan is made from out."""
    asked = call.args
    layout = Layout(asked["scope"])
    return {
        "machine": machine(),
        "login": {"name": layout.login(), "uid": os.getuid(), "groups": groups_of(layout.login())},
        "service": service(layout),
        "prefix": str(layout.prefix),
        "home_path": str(layout.home),
        "run_path": str(layout.run),
        "systemd": has_systemd(layout),
        "linger": layout.system or lingers(layout),
        "missing_packages": missing(asked["packages"]),
        "can_install": system.found("apt-get") is not None and os.getuid() == 0,
        "free_bytes": files.free_bytes(layout.prefix),
        "due": read_json(layout.due),
        "release": release(layout),
        "releases": {path.name: about_release(path) for path in children(layout.releases)},
        "envs": sorted(path.name for path in children(layout.envs) if environment_is_whole(path)),
        "home": home(layout),
        "units": unit_files(layout, asked["units"]),
        "states": states(layout, asked["units"], asked["workers"]),
    }


def machine() -> dict[str, Any]:
    """The interpreter that wheels must fit, as the interpreter itself says it."""
    name, libc = platform.libc_ver()
    version = platform.python_version()
    return {
        "machine": platform.machine(),
        "bits": struct.calcsize("P") * 8,
        "glibc": libc if name == "glibc" else "",
        "python": sys.executable,
        "boot_id": text("/proc/sys/kernel/random/boot_id"),
        "clock": time.time(),
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": version,
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": version,
            "python_version": ".".join(version.split(".")[:2]),
            "sys_platform": sys.platform,
        },
    }


def service(layout: Layout) -> dict[str, Any] | None:
    """The user that runs the services, or None while it does not exist."""
    try:
        entry = pwd.getpwnam(layout.user)
    except KeyError:
        return None
    return {"uid": entry.pw_uid, "gid": entry.pw_gid, "home": entry.pw_dir, "groups": groups_of(layout.user)}


def has_systemd(layout: Layout) -> bool:
    """Whether there is a systemd to talk to.

    PID 1 for the whole device; for one user, something that answers to systemctl.
    """
    if layout.system:
        return Path("/run/systemd/system").is_dir()
    return system.found("systemctl") is not None


def lingers(layout: Layout) -> bool:
    """Whether this user's services run without a login."""
    if system.found("loginctl") is None:
        return False
    said = system.run(["loginctl", "show-user", "--property=Linger", layout.user], layout.control_env())
    return "Linger=yes" in said.out


def missing(packages: list[str]) -> list[str]:
    """Which of these packages neither dpkg knows as installed, nor anything else has brought."""
    if not packages:
        return []
    said = system.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages],
        dict(os.environ, LC_ALL="C"),
    )
    installed = {line.split(" ")[0] for line in said.out.splitlines() if line.endswith(" installed")}
    return [name for name in packages if name not in installed and not BRINGS.get(name, bool)()]


def release(layout: Layout) -> dict[str, Any] | None:
    """The release in force: each of its files as it is now, and whether what was derived from them is still whole."""
    target = files.points_to(layout.current)
    if target is None:
        return None
    root = layout.current.resolve()
    manifest = read_json(root / "manifest.json") or {}
    derived = manifest.get("derived", {})
    seen = {}
    for path in files.walk(root):
        name = str(path.relative_to(root))
        if name not in derived and name not in ("manifest.json", "env") and path.parent.name != "__pycache__":
            about = path.lstat()
            seen[name] = [files.digest(path), stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid]
    return {
        "name": root.name,
        "id": manifest.get("id"),
        "env": files.points_to(root / "env"),
        "env_works": os.access(str(root / "env/bin/python"), os.X_OK),
        "files": seen,
        "derived": bool(manifest) and all(is_still(root / name, was) for name, was in derived.items()),
    }


def about_release(root: Path) -> dict[str, Any]:
    """The place of a release in the row of releases, and the environment that it needs."""
    manifest = read_json(root / "manifest.json") or {}
    return {"serial": manifest.get("serial", 0), "env": files.points_to(root / "env")}


def is_still(path: Path, was: str) -> bool:
    """Whether a derived file has the bytes that it had when it was made."""
    try:
        return files.digest(path) == was
    except OSError:
        return False


def environment_is_whole(path: Path) -> bool:
    """Whether an environment was finished, and has lost nothing since."""
    manifest = read_json(path / "manifest.json")
    return manifest is not None and manifest.get("outline") == files.outline(path, "manifest.json")


def home(layout: Layout) -> dict[str, Any]:
    """What stands in ACOUPI_HOME under our names: for each, its kind, and what matters about that kind."""
    seen: dict[str, dict[str, Any]] = {}
    for name in (".", "run", *HOME_LINKS, *HOME_FOLDERS):
        path = layout.home / name
        target = files.points_to(path)
        if target is not None:
            seen[name] = {"kind": "link", "to": target}
        elif path.is_dir():
            about = path.lstat()
            seen[name] = {
                "kind": "folder",
                "mode": stat.S_IMODE(about.st_mode),
                "uid": about.st_uid,
                "gid": about.st_gid,
            }
        elif path.exists():
            seen[name] = {"kind": "file"}
    return seen


def unit_files(layout: Layout, names: list[str]) -> dict[str, Any]:
    """Our links among the units; files of somebody else under a name of ours; what starts at boot."""
    ours = str(layout.current / "units")
    links = {}
    foreign = {}
    for path in children(layout.unit_dir):
        target = files.points_to(path)
        if target is not None and target.rpartition("/")[0] == ours:
            links[path.name] = target
        elif path.name in names:
            foreign[path.name] = str(path)
    kind = "system" if layout.system else "user"
    for name in names:
        for folder in UNIT_FOLDERS:
            path = Path(folder) / kind / name
            if path.parent != layout.unit_dir and path.exists():
                foreign.setdefault(name, str(path))
    return {"links": links, "foreign": foreign, "enabled": files.points_to(layout.wants_dir / TARGET)}


def states(layout: Layout, unit_names: list[str], workers: list[str]) -> dict[str, dict[str, str]]:
    """The state of each unit that can run, by name."""
    if not has_systemd(layout):
        return {}
    plain = [name for name in unit_names if "@." not in name]
    instances = [f"acoupi-worker@{worker}.service" for worker in workers]
    return system.units(layout, sorted({*plain, *instances, TARGET}))


def children(folder: Path) -> list[Path]:
    """What is in a folder, nothing when it is not there; half-made things (`.tmp`) do not count."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix != ".tmp")
    except OSError:
        return []


def read_json(path: Path) -> Any:
    """A file of JSON, or None when it is not there or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def text(path: str) -> str:
    """A small file of the kernel."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
