"""sensor: one virtual sensor: its folder, SSH server and manager. Touches its folder, loopback and its processes."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from acoupi_fleet.errors import UsageError

_START_SECONDS = 30.0
_STOP_SECONDS = 20.0

_SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel ERROR
SetEnv {environment}
"""


@dataclass(frozen=True, slots=True)
class VirtualSensor:
    """A sensor that lives in a folder.

    Attributes:
        name: Its name in the inventory.
        folder: Everything of it.
        port: Where its SSH server listens, on loopback.
    """

    name: str
    folder: Path
    port: int

    @property
    def home(self) -> Path:
        """The home of the user that logs in."""
        return self.folder / "home"

    @property
    def runtime(self) -> Path:
        """XDG_RUNTIME_DIR of that user."""
        return self.folder / "run"

    @property
    def host_key(self) -> str:
        """The public half of its host key, as an inventory pins it."""
        return (self.folder / "host_key.pub").read_text(encoding="ascii").strip()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a session of that user starts with."""
        path = f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.runtime), "PATH": path, "USER": getpass.getuser()}

    def make(self, login_key: str) -> None:
        """Write its folder: keys, commands, and nothing of the product."""
        for folder in (self.home, self.runtime, self.folder / "bin"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_key(self.folder / "host_key")
        _write(self.folder / "authorized_keys", login_key + "\n", 0o600)
        settings = " ".join(f'"{key}={value}"' for key, value in self.environment.items())
        config = _SSHD_CONFIG.format(port=self.port, folder=self.folder, environment=settings)
        _write(self.folder / "sshd_config", config, 0o600)
        ask_manager = f'#!/bin/sh\nexec "{sys.executable}" -I "{Path(__file__).parent / "systemctl.py"}" "$@"\n'
        _write(self.folder / "bin/systemctl", ask_manager, 0o755)
        # There is no login to outlive here, and nothing to verify units with.
        _write(self.folder / "bin/loginctl", "#!/bin/sh\necho Linger=yes\n", 0o755)
        _write(self.folder / "bin/systemd-analyze", "#!/bin/sh\n", 0o755)

    def start(self) -> None:
        """Switch it on; returns when it answers.

        Raises:
            UsageError: If one of its two processes ends at once.
        """
        log = self.folder / "sensor.log"
        environment = {**os.environ, **self.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
        with log.open("ab") as out:
            manager = [sys.executable, "-m", "acoupi_fleet.demo.manager", self.home, self.runtime]
            for words, ready in ((self._ssh_server(), self._listens), (manager, self._answers)):
                process = subprocess.Popen(
                    [str(word) for word in words],
                    env=environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
                with (self.folder / "pids").open("a", encoding="ascii") as pids:
                    pids.write(f"{process.pid}\n")
                _wait(process, ready, log)

    def _ssh_server(self) -> list[str | Path]:
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        # sshd as root wants a folder that only its package makes; without it, ours in Python serves as well.
        if sshd and (os.getuid() != 0 or Path("/run/sshd").is_dir()):
            return [sshd, "-D", "-e", "-f", self.folder / "sshd_config"]
        return [sys.executable, "-m", "acoupi_fleet.demo.sshserver", self.folder, str(self.port)]

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.runtime / "systemd.sock")) == 0


def stop(folder: Path) -> None:
    """Switch off the sensor in a folder: the processes that it noted, if they are still its own."""
    pids = folder / "pids"
    if not pids.is_file():
        return
    running = [int(line) for line in pids.read_text(encoding="ascii").split() if _is_of(int(line), folder)]
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _STOP_SECONDS
    while any(_is_of(pid, folder) for pid in running) and time.monotonic() < until:
        _reap(running)
        time.sleep(0.05)
    for pid in running:
        if _is_of(pid, folder):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    pids.unlink()


def write_key(path: Path) -> str:
    """Make an ed25519 key pair in OpenSSH's form; returns the public line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(path, private.decode(), 0o600)
    _write(path.with_suffix(".pub"), public.decode() + "\n", 0o644)
    return public.decode()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write(path: Path, text: str, mode: int) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    path.chmod(mode)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            said = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise UsageError(f"demo: a virtual sensor did not start ({' '.join(said)}); see {log}")
        time.sleep(0.02)


def _is_of(pid: int, folder: Path) -> bool:
    """Whether a process is alive and was started for this folder: its number may be somebody else's by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and (str(folder).encode() in command or b"sshd" in command)


def _reap(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
