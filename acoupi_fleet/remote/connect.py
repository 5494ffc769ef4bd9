"""connect: from a host to an open, verified SSH connection, or one line why not. Touches the network and key files."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fabric
import paramiko

from acoupi_fleet.errors import HostError, HostKeyError, UnreachableError
from acoupi_fleet.remote.hostkeys import SSH_PORT, HostKeys, Pinned, Unknown, fingerprint, known_name, refuse_revoked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acoupi_fleet.inventory import Connection

USER_TIMEOUT_SECONDS = 10
KEEPALIVE_SECONDS = 5
PROXY_END_SECONDS = 5
# paramiko logs with a traceback what it also raises; without a handler Python prints that to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection really goes, after OpenSSH's own configuration was asked.

    Attributes:
        address: Name or address to connect to.
        port: The server's port.
        user: Whom to log in as.
        identities: Private keys to offer, besides an agent's.
        known_as: The name under which known_hosts has its key.
        proxy: A command that reaches it, where the configuration has one, in the shell's words.
        timeout: Seconds for each step of connecting.
    """

    address: str
    port: int
    user: str
    identities: tuple[Path, ...]
    known_as: str
    proxy: str | None
    timeout: float

    def __str__(self) -> str:
        return f"{self.user}@{known_name(self.address, self.port)}"


def endpoint(connection: Connection) -> Endpoint:
    """Resolve a connection as `ssh` would.

    What the inventory says wins, then ~/.ssh/config, Include and Match as well.
    """
    said = _ask_openssh(connection)
    address = said.get("hostname", [connection.address])[0]
    port = connection.port or int(said.get("port", [str(SSH_PORT)])[0])
    user = connection.user or said.get("user", [os.environ.get("USER") or "root"])[0]
    if connection.identity is not None:
        identities = [connection.identity]
    else:
        offered = said.get("identityfile", ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"])
        identities = [path for path in map(_home_path, offered) if path.is_file()]
    alias = said.get("hostkeyalias", [""])[0]
    command = said.get("proxycommand", ["none"])[0]
    jump = said.get("proxyjump", ["none"])[0]
    proxy = None
    if jump != "none":
        proxy = shlex.join(_jump(jump, address, port))
    elif command != "none":
        proxy = command.replace("%h", address).replace("%p", str(port)).replace("%r", user)
    return Endpoint(
        address=address,
        port=port,
        user=user,
        identities=tuple(identities),
        known_as=alias or known_name(address, port),
        proxy=proxy,
        timeout=connection.connect_timeout,
    )


def _jump(hops: str, address: str, port: int) -> list[str]:
    """The words of the `ssh` that reaches an address over `[USER@]HOST[:PORT],...`.

    As OpenSSH's own, the last hop is the destination and the others are its way; and with options for its user and
    port, since OpenSSH takes no IPv6 address in a URI.
    """
    before, _, last = hops.rpartition(",")
    user, _, place = last.removeprefix("ssh://").rpartition("@")
    bracketed = place.startswith("[")
    host, _, at = place[1:].partition("]") if bracketed else place.partition(":")
    hop_port = at.removeprefix(":")
    way = ["-J", before] if before else []
    login = ["-l", user] if user else []
    door = ["-p", hop_port] if hop_port else []
    return ["ssh", *way, *login, *door, "-W", f"[{address}]:{port}", "--", host]


def _ask_openssh(connection: Connection) -> dict[str, list[str]]:
    """`ssh -G`: paramiko's own reader of the configuration ignores Include and Match."""
    if shutil.which("ssh") is None:
        return {}
    user = ["-l", connection.user] if connection.user else []
    port = ["-p", str(connection.port)] if connection.port else []
    done = subprocess.run(
        ["ssh", "-G", *user, *port, "--", connection.address],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["ssh -G failed"])[-1]
        raise UnreachableError(f"{connection.address}: {reason}; correct ~/.ssh/config")
    settings: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        settings.setdefault(key, []).append(value)
    return settings


def _home_path(text: str) -> Path:
    return Path(os.path.expanduser(text.replace("%d", "~")))  # noqa: PTH111 - Path's own raises for an unknown user


@contextmanager
def connect(connection: Connection, keys: HostKeys, accepted: Callable[[str], None] | None) -> Iterator[Any]:
    """An authenticated transport to a host whose key was verified.

    Args:
        connection: The host, as the inventory names it.
        keys: The keys that are trusted.
        accepted: Called with one line when an unknown key was accepted; None refuses unknown keys.

    Raises:
        UnreachableError: No connection.
        HostKeyError: Its key is not trusted; nothing was sent.
    """
    to = endpoint(connection)
    keyfiles, locked = _usable_keys(to, explicit=connection.identity is not None)
    sock = _dial(to) if to.proxy is None else _proxy(to, to.proxy)
    client = fabric.Connection(
        to.address,
        user=to.user,
        port=to.port,
        config=fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig()),
        connect_kwargs={
            "sock": sock,
            "key_filename": [str(path) for path in keyfiles],
            "look_for_keys": False,
            "timeout": to.timeout,
            "banner_timeout": to.timeout,
            "auth_timeout": to.timeout,
        },
    )
    try:
        _trust(client.client, connection, to, keys, accepted)
        _open(client, connection, to, keys, locked)
        client.transport.set_keepalive(KEEPALIVE_SECONDS)
        yield client.transport
    finally:
        client.client.close()
        sock.close()
        if isinstance(sock, _Proxy):
            for pipe in (sock.process.stdin, sock.process.stdout, sock.process.stderr):
                if pipe is not None:
                    pipe.close()


def _dial(to: Endpoint) -> socket.socket:
    """A TCP connection that sends at once, and notices within seconds that the other end is gone."""
    try:
        found = socket.getaddrinfo(to.address, to.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise UnreachableError(
            f"{to.address}: this name does not resolve; correct it, or set host=ADDRESS for this sensor in the "
            "inventory"
        ) from None
    reason: OSError | None = None
    for family, kind, protocol, _, place in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(to.timeout)
            sock.connect(place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_SECONDS * 1000)
        except OSError as error:
            sock.close()
            reason = error
        else:
            return sock
    where = f"{to.address} port {to.port}"
    if isinstance(reason, ConnectionRefusedError):
        raise UnreachableError(f"{where}: the connection is refused; is its SSH server running, and is this its port?")
    if isinstance(reason, TimeoutError):
        raise UnreachableError(f"{where}: no answer within {to.timeout:g} s; is it on, and in this network?")
    raise UnreachableError(f"{where}: {reason.strerror if reason else 'no address'}; is it on, and in this network?")


class _Proxy(paramiko.ProxyCommand):
    """A command in a socket's place, which is waited for when it ends: paramiko's own leaves a zombie for each host."""

    def close(self) -> None:
        """End the command; its pipes are closed by whoever knows that nobody reads them any more."""
        self.process.terminate()
        try:
            self.process.wait(PROXY_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _proxy(to: Endpoint, command: str) -> Any:
    """Through the command that ~/.ssh/config names for this host."""
    try:
        return _Proxy(command)
    except OSError as error:
        reason = f"{error.filename or command}: {error.strerror}"
    except (ValueError, IndexError) as error:  # a quotation that does not end, a command without a word
        reason = str(error)
    raise UnreachableError(f"{to}: its ProxyCommand `{command}` cannot be run: {reason}; correct it in ~/.ssh/config")


def _usable_keys(to: Endpoint, *, explicit: bool) -> tuple[list[Path], list[Path]]:
    """The keys that can be read, and those that a passphrase locks."""
    usable, locked = [], []
    for path in to.identities:
        try:
            paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):  # the latter is cryptography's word for it
            locked.append(path)
        except FileNotFoundError:
            raise UnreachableError(f"{path}: there is no such key file; correct `identity` in the inventory") from None
        except OSError as error:
            raise UnreachableError(
                f"{path}: the key file cannot be read: {error.strerror}; correct its mode or `identity`"
            ) from None
        except Exception:  # noqa: BLE001 - paramiko raises a dozen kinds for a file that is no key
            if explicit:
                raise UnreachableError(f"{path}: {_why_no_key(path)}; correct `identity` in the inventory") from None
        else:
            usable.append(path)
    return usable, locked


def _why_no_key(path: Path) -> str:
    public = path.suffix == ".pub" or path.read_bytes()[:4] in (b"ssh-", b"ecds")
    return "this is the public half of a key; the private one has no .pub" if public else "this is no private key"


def _trust(
    client: Any, connection: Connection, to: Endpoint, keys: HostKeys, accepted: Callable[[str], None] | None
) -> None:
    """Give the client this one host's keys, and the rule for any other."""
    if connection.host_key is not None:
        client.set_missing_host_key_policy(Pinned(keys, connection.host_key, str(to)))
        return
    for kind, key in keys.of(to.known_as).items():
        client.get_host_keys().add(known_name(to.address, to.port), kind, key)
    client.set_missing_host_key_policy(Unknown(keys, to.known_as, str(to), accepted))


def _open(client: Any, connection: Connection, to: Endpoint, keys: HostKeys, locked: list[Path]) -> None:
    """Shake hands and log in; every way to fail is one line."""
    try:
        client.open()
    except HostError:
        raise
    except paramiko.BadHostKeyException as error:
        refuse_revoked(keys, error.key, str(to))
        raise HostKeyError(
            f"{to}: its host key has changed: known_hosts has {fingerprint(error.expected_key)}, it shows "
            f"{fingerprint(error.key)}; "
            f"nothing was sent; if its card was written anew, forget the old key: ssh-keygen -R '{to.known_as}'"
        ) from None
    except paramiko.AuthenticationException:
        raise _refused(connection, to, locked) from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        if str(error) == "No authentication methods available":
            raise _refused(connection, to, locked) from None
        raise UnreachableError(
            f"{to}: no SSH connection: {str(error) or type(error).__name__}; is this an SSH server, and is it on?"
        ) from None


def _refused(connection: Connection, to: Endpoint, locked: list[Path]) -> UnreachableError:
    """Why nobody let us in, and what to do."""
    if locked:
        return UnreachableError(
            f"{to}: {locked[0]} has a passphrase and no agent holds it; run `ssh-add {locked[0]}`, then again"
        )
    key = connection.identity or (to.identities[0] if to.identities else None)
    offered = f"the key {key}" if key else "any key of an agent, and there is no key in ~/.ssh"
    return UnreachableError(
        f"{to}: the server does not accept {offered}; put its public half there: "
        f"ssh-copy-id {f'-i {key}.pub ' if key else ''}-p {to.port} {to.user}@{to.address}"
    )
