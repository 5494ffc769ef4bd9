"""sensor: one virtual sensor: its folder, and its processes. Touches both, and loopback.

Its first process is `manager`, and all others descend from it. A file names that process, so that another run of the
program can switch off what this one left on.
"""

from __future__ import annotations

import base64
import functools
import getpass
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from acoupi_fleet.demo.processes import Process, descendants
from acoupi_fleet.errors import FleetError

_START_SECONDS = 60.0
_END_SECONDS = 20.0
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_HERE = Path(__file__).parent

_SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey "{folder}/host_key"
AuthorizedKeysFile "{folder}/authorized_keys"
AuthenticationMethods publickey
MaxAuthTries 100
PidFile none
StrictModes no
UsePAM no
SetEnv {environment}
"""


class PortTakenError(FleetError):
    """Somebody else was faster to listen on a sensor's port."""


@dataclass(frozen=True, slots=True)
class VirtualSensor:
    """A sensor that lives in a folder.

    Attributes:
        folder: Everything of it. It is short, since unix sockets are in it.
        port: Where its SSH server listens, on loopback.
    """

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
    def bus(self) -> Path:
        """The socket on which the manager answers systemctl."""
        return self.runtime / "systemd"

    @property
    def journal(self) -> Path:
        """What its services print."""
        return self.folder / "journal.log"

    @property
    def log(self) -> Path:
        """What its SSH server and its manager print."""
        return self.folder / "sensor.log"

    @property
    def host_key(self) -> str:
        """The fingerprint of its host key, as an inventory pins it."""
        blob = base64.b64decode((self.folder / "host_key.pub").read_text(encoding="ascii").split()[1])
        return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")

    @property
    def environment(self) -> Mapping[str, str]:
        """What a session, or a service, of that user starts with."""
        return {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}:{_SBIN}:/usr/bin:/bin",
            "USER": getpass.getuser(),
            "LOGNAME": getpass.getuser(),
            "LANG": "C.UTF-8",
        }

    @property
    def ssh_server(self) -> list[str]:
        """The command that lets people in: OpenSSH's where it can be used by this user, else one in Python."""
        sshd = _sshd()
        if sshd is not None:
            return [sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        # By its path and without its folder: it needs paramiko, and nothing of ours.
        return [sys.executable, "-P", str(_HERE / "sshserver.py"), str(self.folder), str(self.port)]

    def make(self, login_key: str) -> None:
        """Make its folder: keys, commands, and nothing of the product.

        Args:
            login_key: The public key that may log in.
        """
        for folder in (self.home, self.runtime, self.folder / "bin"):
            folder.mkdir(mode=0o700, parents=True)
        make_key(self.folder / "host_key")
        _write(self.folder / "authorized_keys", f"{login_key}\n")
        # -S: it needs the standard library only, and is called often.
        ask = f'exec "{sys.executable}" -I -S "{_HERE / "systemctl.py"}" "$@"'
        _write(self.folder / "bin/systemctl", f"#!/bin/sh\n{ask}\n", 0o700)
        # There is no login to outlive here, and systemd-analyze would ask a systemd that is not there.
        _write(self.folder / "bin/loginctl", "#!/bin/sh\necho Linger=yes\n", 0o700)
        _write(self.folder / "bin/systemd-analyze", "#!/bin/sh\n", 0o700)

    def switch_on(self) -> None:
        """Start it; returns when it lets people in.

        Raises:
            PortTakenError: If somebody else listens on its port.
            FleetError: If its first process ends at once.
        """
        settings = " ".join(f'"{key}={value}"' for key, value in self.environment.items())
        _write(
            self.folder / "sshd_config",
            _SSHD_CONFIG.format(port=self.port, folder=self.folder, environment=settings),
        )
        # Not subprocess: what is started here may stay when this program ends.
        first = Process.of(
            os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "acoupi_fleet.demo.manager", str(self.folder), str(self.port)],
                {**os.environ, "PYTHONPATH": str(_HERE.parents[1])},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,  # Ctrl-C is for the person's program, which then switches it off
            )
        )
        _write(self.folder / "first_process", f"{first.pid} {first.started}\n")
        until = time.monotonic() + _START_SECONDS
        while "Server listening on" not in (said := self.log.read_text(errors="replace")):
            if not first.alive or time.monotonic() > until:
                switch_off(self.folder)
                if "Address already in use" in said:
                    raise PortTakenError(f"{self.folder.name}: port {self.port} is taken")
                raise FleetError(f"{self.folder.name}: the virtual sensor did not start: {said.strip()[-500:]}")
            time.sleep(0.02)


def switch_off(folder: Path) -> None:
    """End all processes of the sensor in a folder, whoever started it; returns when they are gone."""
    note = folder / "first_process"
    if not note.is_file():
        return
    pid, started = map(int, note.read_text(encoding="ascii").split())
    first = Process(pid, started)
    first.kill(signal.SIGTERM)
    if not first.wait(_END_SECONDS):
        left = descendants(pid)
        for process in (first, *left):
            process.kill()
        for process in (first, *left):
            process.wait(_END_SECONDS)
    note.unlink()


def make_key(path: Path) -> str:
    """Make an ed25519 key pair in OpenSSH's form; returns the public line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(path, private.decode())
    _write(path.with_suffix(".pub"), f"{public.decode()}\n")
    return public.decode()


@functools.cache
def _sshd() -> str | None:
    """OpenSSH's server, if it works for this user."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if sshd is None or os.getuid() != 0:
        return sshd
    # As root it wants a folder that only its package's service makes, and without PAM no locked password.
    shadow = Path("/etc/shadow")
    locked = shadow.is_file() and any(line.startswith("root:!") for line in shadow.read_text().splitlines())
    return sshd if Path("/run/sshd").is_dir() and not locked else None


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
