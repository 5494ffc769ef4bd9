"""A rig: some sensors and the workstation they are reached from, in network namespaces of their own.

Every rig has a name of its own, and with it its own folder, namespaces, machine names and cgroups. The addresses are
the same in every rig: its network is a bridge in a namespace, without a way in or out. A rig holds a lock while its
process lives; what a killed process left behind is found by its free lock and removed when the next rig starts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.sensors import machine
from tests.sensors.image import open_image
from tests.sensors.machine import STATE
from tests.sensors.sensor import ImageName, Network, Sensor
from tests.support import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator

RIGS = STATE / "rigs"
LOCK = STATE / "rigs.lock"
CACHE = STATE / "cache"


class Rig:
    """Sensors and a workstation. `Rig.temporary()` for tests, `Rig.named(...)` for people."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = RIGS / name
        self.home = self.folder / "home"
        self.network = Network(name, f"acoupi-{name}", self.folder / "identity", self.home / ".ssh/known_hosts")

    # --- life ---

    @classmethod
    @contextlib.contextmanager
    def temporary(cls) -> Iterator[Rig]:
        """Yield a new rig without sensors; it is gone afterwards, whatever happens."""
        with machine.locked(LOCK):
            sweep()
            rig = cls(secrets.token_hex(3))
            rig.folder.mkdir(parents=True)
            held = machine.lock(rig.folder / "lock")
        try:
            rig._open()
            yield rig
        finally:
            with machine.locked(LOCK):
                rig.remove()
            if held is not None:
                os.close(held)

    @classmethod
    def named(cls, name: str) -> Rig:
        """Return a rig that outlives its process, made if it is not there."""
        with machine.locked(LOCK):
            sweep()
            rig = cls(name)
            rig.folder.mkdir(parents=True, exist_ok=True)
            (rig.folder / "keep").touch()
        rig._open()
        return rig

    def _open(self) -> None:
        """Make what all sensors share; the namespaces under the lock, since `ip netns add` minds company."""
        self.home.joinpath(".ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.network.identity.exists():
            new_key(self.network.identity, f"rig {self.name}")
        with machine.locked(LOCK):
            _raise_inotify_limit()
            workstation = self.network.workstation
            if workstation not in machine.namespaces():
                machine.run(["ip", "netns", "add", workstation])
                inside = ["ip", "-n", workstation]
                machine.run([*inside, "link", "set", "lo", "up"])
                machine.run([*inside, "link", "add", "lan", "type", "bridge"])
                machine.run([*inside, "addr", "add", "10.77.0.1/24", "dev", "lan"])
                machine.run([*inside, "link", "set", "lan", "up"])

    def remove(self) -> None:
        """Remove its sensors and everything else of it. The caller holds the lock of the rigs."""
        for sensor in self.sensors():
            sensor.remove()
        if self.network.workstation in machine.namespaces():
            machine.run(["ip", "netns", "del", self.network.workstation])
        shutil.rmtree(self.folder)
        _restore_inotify_limit()

    # --- sensors ---

    def sensors(self) -> list[Sensor]:
        """Return its sensors by number, those that are off too."""
        numbers = sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())
        return [Sensor(number, self.folder / str(number), self.network) for number in numbers]

    def add(self, count: int, image: ImageName = "full", memory: str | None = None) -> list[Sensor]:
        """Make and boot more sensors, side by side, and return them when all have booted."""
        folder, held = open_image()
        with machine.locked(LOCK):
            first = max((sensor.number for sensor in self.sensors()), default=0) + 1
            added = [Sensor(number, self.folder / str(number), self.network) for number in range(first, first + count)]
            for sensor in added:
                sensor.make(folder, image, memory)
        os.close(held)
        try:
            for sensor in added:
                sensor.start()
            for sensor in added:
                sensor.wait_until_ready()
        except BaseException:
            self.take_away(added)
            raise
        return added

    def take_away(self, sensors: list[Sensor]) -> None:
        """Remove some of its sensors."""
        with machine.locked(LOCK):
            for sensor in sensors:
                sensor.remove()

    # --- workstation ---

    def workstation(
        self, *command: str | Path, cwd: Path | None = None, timeout: float = 900, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command where only the sensors can be reached: HOME is the rig's, its known_hosts is filled."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ACOUPI_", "SSH_"))
        }
        return subprocess.run(
            self.network.command(*command),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            cwd=cwd or self.home,
            env=environment
            | {"HOME": str(self.home), "XDG_CACHE_HOME": str(CACHE), "LC_ALL": "C.UTF-8", "COLUMNS": "200"},
        )

    def fleet(
        self, *words: str | Path, cwd: Path | None = None, timeout: float = 900, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run our command line there, as its user would."""
        return self.workstation(sys.executable, "-m", "acoupi_fleet", *words, cwd=cwd, timeout=timeout, stdin=stdin)


def sweep() -> None:
    """Remove the rigs whose process has ended without removing them. The caller holds the lock of the rigs."""
    for folder in sorted(RIGS.iterdir()) if RIGS.is_dir() else []:
        if not (folder / "keep").exists() and (held := machine.lock(folder / "lock", wait=False)) is not None:
            Rig(folder.name).remove()
            os.close(held)


def _raise_inotify_limit() -> None:
    was = int(machine.INOTIFY.read_text())
    if was < machine.INOTIFY_WANTED:
        (STATE / "inotify.was").write_text(str(was))
        machine.INOTIFY.write_text(str(machine.INOTIFY_WANTED))


def _restore_inotify_limit() -> None:
    kept = STATE / "inotify.was"
    if kept.exists() and not any(RIGS.iterdir()):
        machine.INOTIFY.write_text(kept.read_text())
        kept.unlink()
