"""session: the conversation with the agent on a device, over one exec of one connection. Touches the network.

The agent's text goes over first, then requests and answers; what the agent says while it works is passed on as it
comes. A device that says nothing at all, not even that it lives, is given up.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import paramiko

from acoupi_fleet.device import wire
from acoupi_fleet.errors import HostError, UnreachableError
from acoupi_fleet.remote.connect import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from acoupi_fleet.desired import Scope
    from acoupi_fleet.inventory import Host
    from acoupi_fleet.remote.hostkeys import HostKeys

SILENCE_SECONDS = 45.0
PROMPT = "ACOUPI-PASSWORD:"
OLDEST_AGENT_PYTHON = (3, 7)
_NO_STATUS = -1
_MOST_NOISE = 64 * 1024
_MOST_GUESTS = 32
_LOOPBACK = "127.0.0.1"
_GONE = (OSError, EOFError, paramiko.SSHException)
"""What paramiko raises when the connection is closed below it."""
# Runs under any python3, so that an old one can say that it is old. Reads exactly what is announced: the rest is the
# conversation.
_BOOTSTRAP = (
    "import sys,json,platform,struct,os;"
    "says=[list(sys.version_info[:3]),platform.machine(),struct.calcsize('P')*8,os.getuid()];"
    f"sys.stdout.write('\\n{wire.GREETING}'+json.dumps(says)+'\\n');"
    "sys.stdout.flush();"
    "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
)
_LOADER = """
import importlib.util, sys, types
class Sent:
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in MODULES else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(MODULES[module.__name__], module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, Sent())
for name in ("acoupi_fleet", "acoupi_fleet.device"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
from acoupi_fleet.device import agent
agent.main()
"""


class LinkLostError(HostError):
    """The connection broke in the middle: what was asked for may or may not have happened."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the device's Python says before anything is sent to it."""

    python: tuple[int, int, int]
    machine: str
    bits: int
    uid: int


@cache
def agent_source() -> bytes:
    """The agent as one text, with its length before it."""
    files = resources.files("acoupi_fleet.device").iterdir()
    modules = {
        f"acoupi_fleet.device.{file.name.removesuffix('.py')}": file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".py") and file.name != "__init__.py"
    }
    text = f"MODULES = {json.dumps(modules, sort_keys=True)}\n{_LOADER}".encode()
    return b"%d\n%s" % (len(text), text)


def start_line(scope: Scope, *, password: bool) -> str:
    """The one command line that is executed. Nothing in it depends on the inventory, and nothing in it is secret."""
    python = f'"$p" -I -B -c {shlex.quote(_BOOTSTRAP)}'
    if scope == "user":
        line = f"p=$(command -v python3) || {{ echo ACOUPI-NO-PYTHON; exit 0; }}; exec {python}"
    else:
        sudo = f"sudo -S -p {PROMPT}" if password else "sudo -n"
        line = (
            "p=/usr/bin/python3; test -x $p || p=$(command -v python3) || { echo ACOUPI-NO-PYTHON; exit 0; }; "
            f'test "$(id -u)" -eq 0 && exec {python}; '
            "command -v sudo >/dev/null || { echo ACOUPI-NO-SUDO; exit 0; }; "
            f"exec {sudo} -- {python}"
        )
    return f"exec sh -c {shlex.quote(line)}"


class _Reader:
    """A channel's stdout as a stream, with its stderr kept aside for the case that something goes wrong."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._rest = b""
        self.stderr = b""

    def read(self, size: int) -> bytes:
        """What has come, at most so much; b"" when the other end is gone."""
        self.drain()
        if not self._rest:
            self._rest = self._channel.recv(max(size, 1 << 16))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def line(self) -> bytes | None:
        """The next line, or None at the end."""
        while b"\n" not in self._rest:
            piece = self._channel.recv(1 << 16)
            if not piece and not self._rest:
                return None
            self._rest += piece or b"\n"
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    @property
    def waiting(self) -> bool:
        """Whether there is something to read at once."""
        return bool(self._rest) or self._channel.recv_ready()

    def drain(self) -> None:
        """Keep the end of what came on stderr; unread, it would block the device one day."""
        while self._channel.recv_stderr_ready():
            piece = self._channel.recv_stderr(1 << 16)
            if not piece:
                break
            self.stderr = (self.stderr + piece)[-_MOST_NOISE:]

    def complaint(self) -> str:
        """The last line on stderr."""
        self.drain()
        lines = [line for line in self.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


class Session:
    """One conversation. It belongs to the thread that opened it."""

    def __init__(self, channel: Any, where: str) -> None:
        self._channel = channel
        self._where = where
        self._reader = _Reader(channel)
        self.greeting: Greeting

    def begin(self, password: str | None) -> None:
        """Wait for the device's Python, refuse what is too old for the agent, send the agent."""
        self.greeting = self._greet(password)
        if self.greeting.python < OLDEST_AGENT_PYTHON:
            version = ".".join(map(str, self.greeting.python))
            raise HostError(
                f"{self._where}: Python {version} is too old, 3.11 is needed; install Debian 12 or newer, or "
                "Raspberry Pi OS of it"
            )
        self._channel.sendall(agent_source())

    def ask(
        self,
        verb: str,
        args: dict[str, Any],
        *,
        body: Callable[[], Iterable[bytes]] | None = None,
        observe: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        """One request and its answer.

        Args:
            verb: A name from the agent's table of verbs (`device/agent.py`).
            args: What the verb takes, as JSON.
            body: Gives what follows the request, once the device has said `go`.
            observe: Called with each event as it comes.

        Raises:
            HostError: The device refuses; its text is the device's own line.
            LinkLostError: The connection broke; what was asked for may or may not have happened.
        """
        self._send([wire.pack({"verb": verb, "args": args})])
        while True:
            message = self._next()
            if "answer" in message:
                return message["answer"]
            if "refused" in message:
                raise HostError(message["refused"])
            if "broken" in message:
                raise HostError(f"{self._where}: the agent failed at `{verb}`: {message['broken']}; please report this")
            if "event" not in message:
                raise self._lost("it said something that is no answer")
            if message["event"] == "go" and body is not None:
                threading.Thread(target=self._deliver, args=(body(),), name="delivery", daemon=True).start()
            elif message["event"] != "alive" and observe is not None:
                observe(message)

    @contextmanager
    def lend(self, serve: Callable[[Any], None]) -> Iterator[int]:
        """Lend the device something of this computer, for as long as this context lasts.

        Args:
            serve: Called in a thread of its own with each connection that somebody on the device makes; closes it.

        Yields:
            The port of the device's own loopback address that leads here.

        Raises:
            HostError: Its SSH server allows no such thing.
        """
        transport = self._channel.get_transport()
        guests: list[Any] = []
        over = threading.Event()

        def attend(guest: Any) -> None:
            with suppress(*_GONE):
                serve(guest)

        def welcome(guest: Any, *_: Any) -> None:  # paramiko's thread for the whole connection: it must not wait
            guests[:] = [other for other in guests if not other.closed]
            if over.is_set() or len(guests) == _MOST_GUESTS:
                guest.close()
                return
            guests.append(guest)
            threading.Thread(target=attend, args=(guest,), name="guest", daemon=True).start()

        try:
            port = transport.request_port_forward(_LOOPBACK, 0, welcome)
        except paramiko.SSHException:
            if not transport.is_active():
                raise self._lost("") from None
            raise HostError(
                f"{self._where}: its SSH server allows no tunnel back, and apt_via=workstation needs one; write "
                "`AllowTcpForwarding yes` in /etc/ssh/sshd_config there (and no `restrict` before the key in "
                "authorized_keys), `sudo systemctl reload ssh`, and run again"
            ) from None
        try:
            yield port
        finally:
            over.set()
            # paramiko's own cancel_port_forward takes the handler away first, and dies of a guest who comes meanwhile.
            with suppress(*_GONE):
                transport.global_request("cancel-tcpip-forward", (_LOOPBACK, port), wait=True)
                for guest in guests:
                    guest.close()

    def _send(self, pieces: Iterable[bytes]) -> None:
        """Send, unless the device is gone: then what it said before it went is still to be read."""
        try:
            for piece in pieces:
                self._channel.sendall(piece)
        except TimeoutError:
            raise self._lost("it takes nothing any more") from None
        except _GONE:
            return

    def _deliver(self, pieces: Iterable[bytes]) -> None:
        """Send what follows a request, beside the listening: the device may be at apt for minutes before it takes it.

        Whether a device that takes nothing still lives is for who listens to find out; what cannot be sent whole ends
        the conversation.
        """
        whole = False
        with suppress(*_GONE):
            try:
                for piece in pieces:
                    rest = piece
                    while rest:
                        with suppress(TimeoutError):
                            rest = rest[self._channel.send(rest) or len(rest) :]
                whole = True
            finally:
                if not whole:
                    self._channel.shutdown_write()

    def _next(self) -> dict[str, Any]:
        try:
            message = wire.unpack(self._reader)
        except TimeoutError:
            raise self._lost(f"it said nothing for {SILENCE_SECONDS:g} s") from None
        except (wire.LinkLostError, *_GONE) as error:
            raise self._lost(str(error)) from None
        if message is None:
            raise self._lost(self._reader.complaint() if self._channel.exit_status_ready() else "")
        return message

    def _lost(self, why: str) -> LinkLostError:
        reason = f" ({why})" if why else ""
        return LinkLostError(f"{self._where}: the link was lost in the middle{reason}; outcome unknown; run again")

    def _greet(self, password: str | None) -> Greeting:
        """Read until the agent's Python greets; whatever a login shell prints before is passed over."""
        noise = 0
        asked = password is None
        self._channel.settimeout(SILENCE_SECONDS)
        while noise < _MOST_NOISE:
            if not asked and self._prompted(1):
                asked = True
                self._channel.sendall(f"{password}\n".encode())
                if self._prompted(2):
                    raise HostError(f"{self._where}: sudo does not accept the password; correct sudo_password")
            try:
                said = self._reader.line()
            except TimeoutError:
                raise UnreachableError(
                    f"{self._where}: the login works, but no command starts within {SILENCE_SECONDS:g} s; look at the "
                    "sensor"
                ) from None
            if said is None:
                raise self._never_greeted()
            line = said.decode("utf-8", "replace")
            if line.startswith(wire.GREETING):
                return self._greeting(line[len(wire.GREETING) :])
            self._refuse(line)
            noise += len(line) + 1
        raise HostError(f"{self._where}: its login shell prints without end; look at its ~/.bashrc")

    def _greeting(self, text: str) -> Greeting:
        with suppress(ValueError, RecursionError):
            match json.loads(text):
                case [[int(major), int(minor), int(patch)], str(machine), int(bits), int(uid)]:
                    return Greeting((major, minor, patch), machine, bits, uid)
                case _:
                    pass
        raise HostError(
            f"{self._where}: its answer is not understood; run again, and look at what its login shell prints"
        )

    def _prompted(self, times: int) -> bool:
        """Whether sudo has asked so often for a password, before the agent's Python has begun to speak."""
        prompt = PROMPT.encode()
        until = time.monotonic() + SILENCE_SECONDS
        while not (self._reader.waiting or self._channel.eof_received or self._channel.closed):
            if time.monotonic() > until:
                raise UnreachableError(
                    f"{self._where}: sudo says nothing for {SILENCE_SECONDS:g} s; look at the sensor"
                )
            if self._reader.stderr.count(prompt) >= times:
                return True
            self._reader.drain()
            self._channel.status_event.wait(0.02)
        return False

    def _refuse(self, line: str) -> None:
        """Turn what the command line says instead of a greeting into one clear line."""
        if line == "ACOUPI-NO-PYTHON":
            raise HostError(f"{self._where}: there is no python3; install it there: sudo apt-get install python3")
        if line == "ACOUPI-NO-SUDO":
            raise HostError(
                f"{self._where}: there is no sudo; install it there, log in as root, or use systemd_scope=user"
            )

    def _never_greeted(self) -> HostError:
        """Why the command ended before its Python said anything."""
        if self._channel.recv_exit_status() == _NO_STATUS:
            return UnreachableError(f"{self._where}: the link was lost before anything was sent; run again")
        said = self._reader.complaint()
        if "sudo" in said or "password" in said:
            reason = said.removeprefix(PROMPT).strip().removeprefix("sudo: ")
            return HostError(
                f"{self._where}: sudo does not let us: {reason}; "
                "set sudo_password, allow it without a password, or use systemd_scope=user"
            )
        return HostError(
            f"{self._where}: no command can be run there: {said or 'the login shell ends at once'}; try `ssh` by hand"
        )


@contextmanager
def converse(
    host: Host,
    scope: Scope,
    *,
    keys: HostKeys,
    accepted: Callable[[str], None] | None = None,
) -> Iterator[Session]:
    """Open a conversation with a host's agent: as root for the system scope, as the login user for the user scope.

    Args:
        host: Whom to talk to.
        scope: Decides whether sudo is used.
        keys: The host keys that are trusted, read once for all hosts.
        accepted: Accept an unknown host key, and call this with the line that says so; None refuses.
    """
    secret = host.connection.sudo_password
    password = secret.get_secret_value() if secret is not None and scope == "system" else None
    with connect(host.connection, keys, accepted) as transport:
        with _before_anything(host.connection.address):
            channel = transport.open_session(timeout=host.connection.connect_timeout)
            _execute(channel, start_line(scope, password=password is not None))
            session = Session(channel, host.connection.address)
            session.begin(password)
        yield session
        with suppress(*_GONE):  # all that was asked for was answered
            channel.shutdown_write()


@contextmanager
def _before_anything(where: str) -> Iterator[None]:
    """Until the agent is there nothing can have happened: a link that drops meanwhile is a host out of reach."""
    try:
        yield
    except paramiko.ChannelException as error:
        raise UnreachableError(
            f"{where}: the login works, but its SSH server opens no session ({error.text}); look at MaxSessions in "
            "/etc/ssh/sshd_config there"
        ) from None
    except _GONE:
        raise UnreachableError(f"{where}: the link was lost before anything was sent; run again") from None


def _execute(channel: Any, line: str) -> None:
    """Have the server start a command. paramiko waits for its yes without end, unless the channel is closed."""

    def give_up() -> None:
        with suppress(*_GONE):
            channel.close()

    late = threading.Timer(SILENCE_SECONDS, give_up)
    late.daemon = True
    late.start()
    try:
        channel.exec_command(line)
    finally:
        late.cancel()
