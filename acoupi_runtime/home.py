"""home: where everything of ACOUPI_HOME stands. Names paths only; reads and writes no file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_LIMIT = 100
"""Bytes; a unix socket's path may have 107 (unix(7)), and Redis adds nothing. Some room is kept."""


@dataclass(frozen=True, slots=True)
class Home:
    """ACOUPI_HOME: each path is a property of `root`, so that moving the home moves all of it.

    Attributes:
        root: The folder itself, absolute.
    """

    root: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Home:
        """The home that `ACOUPI_HOME` names, or `~/.acoupi` of the user that runs this."""
        named = (os.environ if environ is None else environ).get("ACOUPI_HOME")
        return cls(Path(named).expanduser().absolute() if named else Path.home() / ".acoupi")

    @property
    def app_file(self) -> Path:
        """The module that exposes the Celery app."""
        return self.root / "app.py"

    @property
    def bin_dir(self) -> Path:
        """The scripts that systemd, and people, start."""
        return self.root / "bin"

    @property
    def config_dir(self) -> Path:
        """What the sensor was told to do."""
        return self.root / "config"

    @property
    def program_name_file(self) -> Path:
        """One line: the program, as `module:Class` or an entry point's name."""
        return self.config_dir / "name"

    @property
    def program_file(self) -> Path:
        """The program's configuration."""
        return self.config_dir / "program.json"

    @property
    def celery_file(self) -> Path:
        """The configuration of Celery."""
        return self.config_dir / "celery.json"

    @property
    def deployment_file(self) -> Path:
        """The wanted deployment, as the fleet or a person wrote it; the running one is in the store."""
        return self.config_dir / "deployment.json"

    @property
    def managed_file(self) -> Path:
        """It exists where a fleet manages this home: its configuration is then read-only here."""
        return self.config_dir / "managed"

    @property
    def log_dir(self) -> Path:
        """Rotated logs of the workers, warnings and up."""
        return self.root / "log"

    @property
    def run_dir(self) -> Path:
        """What lives only while something runs: sockets, pid files, the workers' live state."""
        return self.root / "run"

    @property
    def redis_socket(self) -> Path:
        """The broker; there is no TCP port."""
        return self.run_dir / "redis.sock"

    @property
    def recorder_file(self) -> Path:
        """The recorder's live state, rewritten every second while it runs."""
        return self.run_dir / "recorder.json"

    @property
    def full_file(self) -> Path:
        """It exists while recordings take all the room that the configuration gives them: recording pauses."""
        return self.run_dir / "full"

    def pid_file(self, worker: str) -> Path:
        """Where a running worker notes its process."""
        return self.run_dir / f"{worker}.pid"

    def log_file(self, worker: str) -> Path:
        """A worker's own rotated log."""
        return self.log_dir / f"{worker}.log"
