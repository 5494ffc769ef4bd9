"""What this machine is asked for: processes, cgroups, network namespaces, locks. Knows nothing of sensors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STATE = Path(
    os.environ.get("ACOUPI_SENSORS", "/var/tmp/acoupi-fleet-sensors")
)  # overlayfs wants a real disk, not a tmpfs
CGROUPS = Path("/sys/fs/cgroup")
TOOLS = ("systemd-nspawn", "mmdebstrap", "ip", "nsenter", "unshare", "ssh", "ssh-keygen")
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_WANTED = (
    1024  # each sensor's systemd holds several, and all count against one user; 128 is enough for a dozen sensors
)
DISK_WANTED = 1_500_000_000


def run(command: Sequence[str | Path], *, timeout: float = 120, stdin: str = "") -> str:
    """Run a command and return what it printed; fail with what it said."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
    if done.returncode != 0:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words}: exit {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def write(path: Path, text: str) -> None:
    """Write a file that every user of a sensor may read, whatever our umask is."""
    path.write_text(text)
    path.chmod(0o644)


def why_not() -> str | None:
    """Why sensors cannot be started here, or None where they can."""
    if os.geteuid() != 0:
        return "sensors are containers and need root: sudo make test"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"sensors need {', '.join(missing)}: make test installs the packages of .ci/packages"
    if not hierarchies():
        return f"sensors need cgroup v2 at {CGROUPS} or {CGROUPS}/unified"
    STATE.mkdir(parents=True, exist_ok=True)
    probe = (
        "mkdir l u w m && mount -t tmpfs none m && umount m && mount -t overlay x -o lowerdir=l,upperdir=u,workdir=w m"
    )
    with scratch("probe") as folder:
        tried = subprocess.run(
            ["unshare", "--mount", "--net", "sh", "-ec", f"cd {folder} && {probe}"],
            capture_output=True,
            text=True,
            check=False,
        )
    if tried.returncode != 0:
        return f"sensors need namespaces and overlay mounts in {STATE}: {tried.stderr.strip()}"
    return None


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Yield a new folder of this process in the state directory; it is gone afterwards."""
    folder = STATE / f"{name}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- locks: the kernel lets go of them when their process ends, however it ends ---


def lock(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Take a lock and return its descriptor (close it to let go), or None if it is taken and we do not wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock."""
    descriptor = lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


# --- cgroups: how a sensor's processes are known, limited and ended ---


def hierarchies() -> list[Path]:
    """Return the hierarchies a sensor's processes are put into: the one of pure v2, or the three of a v1 host."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    if not (CGROUPS / "unified" / "cgroup.controllers").exists():
        return []
    return [CGROUPS / name for name in ("systemd", "unified", "memory") if (CGROUPS / name / "cgroup.procs").exists()]


def make_cgroups(name: str, memory: str | None) -> list[Path]:
    """Make the cgroups of one sensor; `memory` (512M) is the RAM of the whole sensor."""
    groups = [hierarchy / "acoupi-sensors" / name for hierarchy in hierarchies()]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    if memory is not None:
        v1 = CGROUPS / "memory" / "acoupi-sensors" / name / "memory.limit_in_bytes"
        if v1.exists():
            v1.write_text(memory)
        else:
            for parent in (CGROUPS, CGROUPS / "acoupi-sensors"):
                (parent / "cgroup.subtree_control").write_text("+memory")
            (CGROUPS / "acoupi-sensors" / name / "memory.max").write_text(memory)
    return groups


def processes(name: str) -> set[int]:
    """Return the processes of one sensor, its power supply included."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / "acoupi-sensors" / name):
            with contextlib.suppress(OSError):  # a group may go while we look
                found.update(int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())
    return found - {0}


def kill(name: str) -> None:
    """End every process of one sensor, now, and wait until none is left."""

    def none_left() -> bool:
        for pid in processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not processes(name)

    wait_until(none_left, 60, f"the processes of sensor {name} to end")


def remove_cgroups(name: str) -> None:
    """Remove the cgroups of one sensor, whose processes have ended."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / "acoupi-sensors" / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        with contextlib.suppress(OSError):  # other sensors may still be in it
            (hierarchy / "acoupi-sensors").rmdir()


def first_process(parent: int) -> int | None:
    """Return the container's PID 1, as this machine numbers it, if it has started."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2:
                    return int(child)
    return None


# --- the rest ---


def unmount(path: Path) -> None:
    """Unmount, waiting for the last user to go; whoever stays keeps it to himself, and we go on without it."""

    def gone() -> bool:
        return not path.is_mount() or subprocess.run(["umount", path], capture_output=True, check=False).returncode == 0

    try:
        wait_until(gone, 30, f"{path} to be unmounted")
    except AssertionError:
        run(["umount", "--lazy", path])


def namespaces() -> set[str]:
    """Return the names of this machine's network namespaces."""
    folder = Path("/run/netns")
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
