"""Sensors without systemd, for tests: a home of its own, a real Redis, and the processes that units would run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acoupi_runtime.audio.state import RecorderState, read_state
from acoupi_runtime.configuration import CeleryConfig, DeploymentConfig
from acoupi_runtime.home import Home
from acoupi_runtime.programs import load_program_class
from acoupi_runtime.system.setup import setup_program
from acoupi_runtime.system.supervise import holder_of
from tests.support import RedisServer, end, running_redis, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 120
"""Seconds to wait for what must come; only a hopeless wait takes as long."""


@dataclass
class Sensor:
    """A home, and what runs in it; every process is ended with it."""

    root: Path
    home: Home
    redis: RedisServer | None = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _redis: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start_redis(self) -> RedisServer:
        """Start Redis, as its unit would."""
        self.home.run_dir.mkdir(exist_ok=True)
        self._redis = contextlib.ExitStack()
        self.redis = self._redis.enter_context(running_redis(self.home.run_dir))
        return self.redis

    def stop_redis(self) -> None:
        """Kill it."""
        assert self.redis is not None
        self.redis.stop()
        self._redis.close()
        self.redis = None

    def start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start `acoupi-runtime WORDS`, and remember it by its last word."""
        with (self.root / f"{words[-1]}.err").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "acoupi_runtime", *words],
                env={**self.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        self.processes[words[-1]] = process
        return process

    def up(self, *workers: str) -> None:
        """Have Redis and these workers run and answer, whatever an earlier test did to them."""
        if self.redis is None:
            self.start_redis()
        for name in workers:
            process = self.processes.get(name)
            if process is None or process.poll() is not None:
                self.start("worker", name)
        wait_until(lambda: self.answering(*workers), PATIENCE, f"{workers} to answer; {self.errors()}")

    def answering(self, *workers: str) -> bool:
        """Whether these workers run and answer through Redis."""
        from acoupi_runtime.system.status import responding_workers

        if not all(holder_of(self.home.pid_file(name)) == self.processes[name].pid for name in workers):
            return False
        return responding_workers(self.home, list(workers)) == list(workers)

    def kill(self, name: str) -> None:
        """Kill a process, as the kernel does when memory is short."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def run(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "acoupi_runtime", *words],
            env={**self.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def status(self, *words: str) -> dict[str, Any]:
        """What `status --json` says."""
        done = self.run("status", "--json", *words)
        assert done.returncode == 0, done.stderr
        seen: dict[str, Any] = json.loads(done.stdout)
        return seen

    def recorder(self) -> RecorderState | None:
        """The recorder's live state."""
        return read_state(self.home)

    def recorded(self) -> int:
        """Recordings that the running recorder has completed."""
        state = self.recorder()
        return 0 if state is None else state.recordings

    def errors(self) -> str:
        """What all processes said so far."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self.root.glob("*.err"))

    @property
    def environ(self) -> dict[str, str]:
        """The environment of this sensor's processes: its own home folder, and its own programs."""
        path = os.pathsep.join([str(self.root), str(Path(__file__).parents[1])])
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ACOUPI_", "NOTIFY_", "WATCHDOG_"))
        }
        return {
            **kept,
            "ACOUPI_HOME": str(self.home.root),
            "HOME": str(self.root),
            "PYTHONPATH": path,
            "MALLOC_ARENA_MAX": "2",
        }

    def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            end(process)
        self._redis.close()


@contextlib.contextmanager
def sensor(
    root: Path,
    program: str = "default",
    values: dict[str, Any] | None = None,
    celery: CeleryConfig | None = None,
    deployment: DeploymentConfig | None = None,
) -> Iterator[Sensor]:
    """Set up a home in `root` by the product's own renderer; nothing runs in it yet."""
    found = load_program_class(program)
    home = Home(root / "home")
    setup_program(home, program, found.config_schema.model_validate(values or {}), celery, deployment)
    made = Sensor(root, home)
    try:
        yield made
    finally:
        made.close()


def listening_values(root: Path, wav: Path, **recording: Any) -> dict[str, Any]:
    """A program.json that records a file, all day, into `root`."""
    times = {"schedule_start": "00:00", "schedule_end": "00:00", "duration": 1, "interval": 2}
    return {
        "microphone": {"device_name": f"file:{wav}", "samplerate": 48_000},
        "recording": times | recording,
        "paths": {"recordings": str(root / "recordings"), "db_metadata": str(root / "store.db")},
    }
