"""A sensor on a card: its home, its real processes, and somebody who starts again what has ended, as systemd would."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acoupi_runtime.configuration import CeleryConfig, DeploymentConfig
from acoupi_runtime.home import Home
from acoupi_runtime.programs import load_program_class
from acoupi_runtime.system.setup import setup_program
from benchmarks.powercut import Card

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ("recording", "processing")
UNITS = ("redis", *WORKERS)
PATIENCE = 60.0
"""Seconds that a process gets to end by itself: more than a unit's TimeoutStopSec."""
_ANOTHER_BOOT = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


class Device:
    """A sensor's processes.

    Args:
        folder: For what is not on the card: the run folder, which a real sensor has in memory, and the journal.
        card: What is.
        program: Its program.
        values: Its configuration, without paths.
        before: A command that runs each of its processes.
        restart: Seconds after which a process that has ended is started again (RestartSec).

    Attributes:
        restarts: Starts after the first one, by unit.
    """

    def __init__(
        self,
        folder: Path,
        card: Card,
        program: str,
        values: dict[str, Any],
        *,
        before: Sequence[str] = (),
        restart: float = 0.1,
    ) -> None:
        self.folder, self.card = folder, card
        self._before, self._restart = tuple(before), restart
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, float] = {}
        self.restarts = dict.fromkeys(UNITS, 0)
        self.home = Home(card.path / "home")
        self.recordings, self.store = card.path / "recordings", card.path / "store.db"
        self.spool = self.recordings / ".spool"
        self._run, self._boot = folder / "run", folder / "boot_id"
        self.home.root.mkdir()
        self.home.run_dir.symlink_to(self._run)
        self.boot()
        paths = {"recordings": str(self.recordings), "db_metadata": str(self.store)}
        self.config = load_program_class(program).config_schema.model_validate({**values, "paths": paths})
        setup_program(self.home, program, self.config, CeleryConfig(), DeploymentConfig(name="chaos"))
        card.sync()  # it was set up long ago

    def boot(self) -> None:
        """Be a machine that has just started: nothing is in memory, and this boot has an id of its own."""
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir(mode=0o750)
        self._boot.write_text(f"{uuid.uuid4()}\n")
        self._ended.clear()

    def keep_up(self, names: Sequence[str] = UNITS) -> None:
        """Start what does not run, a little after it has ended. Called again and again."""
        now = time.monotonic()
        for name in names:
            process = self._processes.get(name)
            if process is not None and process.poll() is None:
                continue
            if process is not None and now - self._ended.setdefault(name, now) < self._restart:
                continue
            self.restarts[name] += process is not None
            self._ended.pop(name, None)
            self._start(name)

    def running(self, name: str) -> bool:
        """Whether this unit runs."""
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def kill(self, name: str) -> bool:
        """Kill a process; False if it did not run."""
        if not self.running(name):
            return False
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes[name].wait()
        return True

    def end(self, name: str) -> None:
        """Ask a process to end, as `systemctl stop` does."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def journal(self, lines: int = 15) -> str:
        """The last words of each process."""
        return "\n".join(
            f"--- {name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for name in UNITS
            if (path := self.folder / f"{name}.err").exists()
        )

    def _start(self, name: str) -> None:
        if name == "redis":
            command = ["redis-server", str(self.home.config_dir / "redis.conf")]
            command += ["--unixsocket", str(self.home.redis_socket), "--dir", str(self._run)]
        else:
            command = [sys.executable, "-m", "acoupi_runtime", "worker", name]
        command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _ANOTHER_BOOT, str(self._boot), *command]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACOUPI_", "NOTIFY_", "WATCHDOG_"))}
        mine = {"ACOUPI_HOME": str(self.home.root), "HOME": str(self.folder), "PYTHONPATH": str(ROOT)}
        with (self.folder / f"{name}.err").open("ab") as journal:
            self._processes[name] = subprocess.Popen(
                [*self._before, *command],
                cwd=self.folder,
                env={**kept, **mine, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
            )


@contextlib.contextmanager
def ended(device: Device) -> Iterator[Device]:
    """Leave no process behind."""
    try:
        yield device
    finally:
        for name in UNITS:
            device.kill(name)


def calls(path: Path, seconds: float, samplerate: int, seed: int) -> Path:
    """A file that stands for a microphone: quiet noise, and short loud tones at irregular times."""
    chance = np.random.default_rng(seed)
    time_ = np.arange(round(seconds * samplerate)) / samplerate
    sound = chance.normal(0, 0.002, time_.size)
    at = 0.1
    while at < seconds:
        during = (time_ >= at) & (time_ < at + chance.uniform(0.03, 0.06))
        sound += during * 0.3 * np.sin(2 * np.pi * chance.uniform(0.1, 0.4) * samplerate * time_)
        at += chance.uniform(0.15, 0.6)
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, samplerate, 0, "NONE", ""))
        wav.writeframes(np.round(sound * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    return path
