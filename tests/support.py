"""What tests share: waiting for what must come, free ports, a real Redis, a real SSH server.

Every process that is started here is ended here, by its own handle.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], deadline: float, what: str) -> T:
    """Ask until the answer is true and return it; after `deadline` seconds fail with what was waited for.

    Deadlines are there to end a hopeless wait, not to measure: be generous, a busy machine is five times slower.
    """
    end = time.monotonic() + deadline
    pause = 0.02
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:.0f} s for {what}; the last answer was {answer!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on.

    It is below the range from which the kernel takes the ports of outgoing connections, and random, so that tests that
    run side by side rarely meet. A server can still be beaten to it: start it again with another one when it says so.
    """
    for _ in range(200):
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port between 20000 and 32000 on 127.0.0.1")


def end(process: subprocess.Popen[bytes], patience: float = 20) -> None:
    """Ask a process to end, then make it, and leave no zombie."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class RedisServer:
    """A running redis-server: no TCP, one socket in a folder of the test's own."""

    socket: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """The broker's address in Celery's words."""
        return f"redis+socket://{self.socket}"

    def command(self, *words: str) -> str:
        """Return the server's raw answer to one command."""
        done = subprocess.run(
            ["redis-cli", "-s", str(self.socket), *words], capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout.strip()

    def stop(self) -> None:
        """End it, as a crash of Redis would."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """Run a redis-server whose socket, log and working directory are in `folder`."""
    path, log = folder / "redis.sock", folder / "redis.log"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder), "--logfile", str(log), "--daemonize", "no"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = RedisServer(path, process, log)
    try:

        def answers() -> bool:
            assert process.poll() is None, (
                f"redis-server ended: {log.read_text() if log.exists() else 'it wrote no log'}"
            )
            return server.command("PING") == "PONG"

        wait_until(answers, 60, "redis-server to answer")
        yield server
    finally:
        end(process)


@dataclass(frozen=True)
class SshServer:
    """A running OpenSSH server on 127.0.0.1 for the user who runs the tests.

    In it the user's home directory is `home`, an empty folder of the test's own: HOME, `~`, the working directory of a
    login and sftp all lead there (a bind mount that only the server's processes see). There is no sudo and no systemd.
    """

    port: int
    user: str
    identity: Path
    """The private key that may log in."""
    host_key: str
    """The server's public key: `ssh-ed25519 AAAA...`."""
    known_hosts: Path
    home: Path
    log: Path
    process: subprocess.Popen[bytes]

    def ssh(self, command: str, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command there with OpenSSH's own client."""
        options = [f"-oUserKnownHostsFile={self.known_hosts}", "-oStrictHostKeyChecking=yes", "-oBatchMode=yes"]
        options += [
            "-oIdentitiesOnly=yes",
            "-oLogLevel=ERROR",
            "-oConnectTimeout=60",
            f"-i{self.identity}",
            f"-p{self.port}",
        ]
        return subprocess.run(
            ["ssh", "-F", "none", *options, f"{self.user}@127.0.0.1", command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def hang_up(self) -> None:
        """Cut every connection without a word, and leave the commands that run in them running."""
        for pid, name in _logins(self.process).items():
            if name.startswith("sshd"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def inventory_line(self, name: str, **variables: object) -> str:
        """Return this host as a line of an inventory."""
        words = {"host": "127.0.0.1", "port": self.port, "user": self.user, "identity": self.identity} | variables
        return " ".join([name, *(f"{key}={shlex.quote(str(value))}" for key, value in words.items())])


def new_key(path: Path, comment: str) -> str:
    """Make a key pair and return the public key without its comment."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True, timeout=60)
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


def why_no_sshd() -> str | None:
    """Why no SSH server can be run here, or None where it can."""
    if sshd_program() is None:
        return "openssh-server is not installed: make test installs it"
    tried = subprocess.run(
        ["sh", "-c", _in_own_mounts("true", Path("/tmp"))], capture_output=True, text=True, check=False
    )
    return f"no mount namespace for this user: {tried.stderr.strip()}" if tried.returncode else None


def sshd_program() -> str | None:
    """Return where sshd is; a plain user has no /usr/sbin on PATH."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _in_own_mounts(command: str, home: Path) -> str:
    """Return a shell line that runs `command` where `home` lies over the user's home directory."""
    entry = pwd.getpwuid(os.getuid())
    bind = f"mount --bind {shlex.quote(str(home))} {shlex.quote(entry.pw_dir)} && cd / && exec"
    if os.geteuid() == 0:
        return f"exec unshare --mount sh -c {shlex.quote(f'{bind} {command}')}"
    # A plain user mounts as root of a namespace of his own, and is himself again in a second one inside it.
    again = f"unshare --user --map-user={entry.pw_uid} --map-group={entry.pw_gid} {command}"
    return f"exec unshare --user --map-root-user --mount sh -c {shlex.quote(f'{bind} {again}')}"


@contextlib.contextmanager
def running_sshd(folder: Path, *, sessions: int = 200) -> Iterator[SshServer]:
    """Run OpenSSH's server with its keys, log and home directory in `folder`; it opens so many sessions a login."""
    home, log, config = folder / "home", folder / "sshd.log", folder / "sshd_config"
    home.mkdir(mode=0o700)
    host_key = new_key(folder / "host_key", "the server")
    login_key = new_key(folder / "login_key", "the tests")
    (folder / "authorized_keys").write_text(f"{login_key}\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start as root without it
    settings = f"""
        ListenAddress 127.0.0.1
        HostKey {folder}/host_key
        PidFile none
        AuthorizedKeysFile {folder}/authorized_keys
        AuthenticationMethods publickey
        PermitRootLogin prohibit-password
        StrictModes no
        UsePAM no
        MaxStartups 200
        MaxSessions {sessions}
        Subsystem sftp internal-sftp
        """
    config.write_text("\n".join(line.strip() for line in settings.splitlines()))
    user = pwd.getpwuid(os.getuid()).pw_name
    for _ in range(10):
        port = free_port()
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{port} {host_key}\n")
        process = _start_sshd(config, log, port, home)
        if process is not None:
            try:
                yield SshServer(port, user, folder / "login_key", host_key, known_hosts, home, log, process)
            finally:
                _end_sshd(process)
            return
    raise AssertionError(f"sshd found no free port in ten tries: {log.read_text()}")


def _start_sshd(config: Path, log: Path, port: int, home: Path) -> subprocess.Popen[bytes] | None:
    """Start it and wait until it listens; None if somebody else has taken the port."""
    log.write_text("")
    words = [sshd_program() or "sshd", "-D", "-f", str(config), "-E", str(log), "-p", str(port)]
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            ["sh", "-c", _in_own_mounts(shlex.join(words), home)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        wait_until(lambda: process.poll() is not None or "Server listening" in log.read_text(), 60, "sshd to listen")
        if process.poll() is None:
            return process
        assert "Address already in use" in log.read_text(), f"sshd ended: {log.read_text()}"
    except BaseException:
        end(process)
        raise
    return None


def _end_sshd(process: subprocess.Popen[bytes]) -> None:
    """End the server and every login that is still open: all that share its mount namespace."""
    logins = _logins(process)
    end(process)
    for pid in logins:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _logins(process: subprocess.Popen[bytes]) -> dict[int, str]:
    """Return the processes, with their names, that share the server's mount namespace."""
    found = {}
    with contextlib.suppress(OSError):
        namespace = Path(f"/proc/{process.pid}/ns/mnt").readlink()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != process.pid:
                with contextlib.suppress(OSError):  # others' processes, and those that have just ended
                    if (entry / "ns/mnt").readlink() == namespace:
                        found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def python_code(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter of this environment."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def must(value: T | None) -> T:
    """Return what has to be there."""
    assert value is not None
    return value
