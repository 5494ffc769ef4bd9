"""hostkeys: is this the machine that it should be? Reads known_hosts once; writes it only when a key is accepted.

Fabric's own policy accepts any key, a changed one too. Each client is given the keys of its own host only: with all
of them its work grows with the square of the fleet.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko

from acoupi_fleet.errors import HostKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SSH_PORT = 22


def fingerprint(key: Any) -> str:
    """A key in the short form that OpenSSH shows."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def known_name(address: str, port: int) -> str:
    """How known_hosts names a server."""
    return address if port == SSH_PORT else f"[{address}]:{port}"


class HostKeys:
    """The keys that this workstation trusts, read at the first question, shared by all hosts; any thread may ask."""

    def __init__(self, files: Sequence[Path] | None = None) -> None:
        """Remember the files; without any, those that OpenSSH reads. New keys are added to the first."""
        self._files = tuple(files or (Path.home() / ".ssh/known_hosts", Path("/etc/ssh/ssh_known_hosts")))
        self._guard = threading.Lock()
        self._read_already = False
        self._keys: dict[str, dict[str, Any]] = {}
        self._hashed: list[tuple[str, Any]] = []
        self._revoked: set[str] = set()

    def of(self, name: str) -> dict[str, Any]:
        """The keys known under a name, by type, without those that are revoked.

        Raises:
            HostKeyError: A file of keys is there and cannot be read: it may revoke a key, or name another.
        """
        with self._guard:
            self._read_once()
            found = dict(self._keys.get(name, {}))
            for hashed, key in self._hashed:
                if paramiko.HostKeys.hash_host(name, hashed) == hashed:
                    found.setdefault(key.get_name(), key)
            return found

    def is_revoked(self, key: Any) -> bool:
        """Whether known_hosts says that this key must never be trusted again."""
        with self._guard:
            self._read_once()
            return key.get_base64() in self._revoked

    def add(self, name: str, key: Any) -> None:
        """Trust a key from now on, as `ssh` does after a yes."""
        path = self._files[0]
        with self._guard:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "r+b") as stream:
                fcntl.flock(handle, fcntl.LOCK_EX)
                before = stream.read()
                gap = b"" if not before or before.endswith(b"\n") else b"\n"
                stream.write(gap + f"{name} {key.get_name()} {key.get_base64()}\n".encode())
            self._keys.setdefault(name, {})[key.get_name()] = key

    def _read_once(self) -> None:
        """Read the files, unless that was done; the guard is held."""
        if self._read_already:
            return
        trusted = []
        for line in [line for path in self._files for line in _lines(path)]:
            match line.split():
                case [] | ["@cert-authority", *_]:  # paramiko knows no certificates
                    pass
                case ["@revoked", _, _, key, *_]:
                    self._revoked.add(key)
                case [names, kind, key, *_] if not names.startswith(("#", "@")):
                    trusted.append((names, kind, key))
                case _:
                    pass
        for names, kind, key in trusted:  # a line that revokes a key may come after one that trusts it
            if key not in self._revoked:
                self._remember(names, kind, key)
        self._read_already = True

    def _remember(self, names: str, kind: str, text: str) -> None:
        """Keep one line; a broken one vouches for nobody, nor does a kind that paramiko does not know."""
        try:
            entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{names} {kind} {text}")
        except Exception:  # noqa: BLE001 - paramiko raises several kinds for a broken key
            return
        if entry is None:
            return
        for name in entry.hostnames:
            if name.startswith("|1|"):
                self._hashed.append((name, entry.key))
            else:
                self._keys.setdefault(name, {}).setdefault(kind, entry.key)


def _lines(path: Path) -> list[str]:
    """A file's lines; none where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError as error:
        raise HostKeyError(
            f"{path}: the known host keys cannot be read: {error.strerror}; nothing was sent; correct its mode"
        ) from None


def refuse_revoked(keys: HostKeys, key: Any, where: str) -> None:
    """Whoever vouches for a revoked key, it is not trusted.

    Raises:
        HostKeyError: It is revoked.
    """
    if keys.is_revoked(key):
        raise HostKeyError(
            f"{where}: its host key {fingerprint(key)} is revoked in known_hosts; nothing was sent; give the sensor a "
            "new host key"
        )


class Pinned(paramiko.MissingHostKeyPolicy):
    """The inventory names the key, in full or by its fingerprint: that one and no other, and not if it is revoked."""

    def __init__(self, keys: HostKeys, wanted: str, where: str) -> None:
        self._keys = keys
        self._wanted = wanted
        self._where = where

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Compare what the server shows with what the inventory says."""
        del client, hostname
        refuse_revoked(self._keys, key, self._where)
        words = self._wanted.split()
        if self._wanted.rstrip("=") == fingerprint(key) or words[:2] == [key.get_name(), key.get_base64()]:
            return
        raise HostKeyError(
            f"{self._where}: it shows the host key {fingerprint(key)} ({key.get_name()}), and the inventory's "
            "host_key is another; "
            "nothing was sent; find out why, and only then correct host_key"
        )


class Unknown(paramiko.MissingHostKeyPolicy):
    """Nobody has vouched for this host's key: refused, or accepted this once and remembered, if that was asked for."""

    def __init__(self, keys: HostKeys, name: str, where: str, accepted: Callable[[str], None] | None) -> None:
        self._keys = keys
        self._name = name
        self._where = where
        self._accepted = accepted

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Refuse with the fingerprint, so that it can be compared; or remember the key and say so."""
        del client, hostname
        refuse_revoked(self._keys, key, self._where)
        if self._accepted is None:
            raise HostKeyError(
                f"{self._where}: its host key {fingerprint(key)} ({key.get_name()}) is not known here; nothing was "
                "sent; "
                "compare it with the sensor's own, then run with --accept-new or set host_key in the inventory"
            )
        try:
            self._keys.add(self._name, key)
        except OSError as error:
            raise HostKeyError(
                f"{self._where}: its host key cannot be remembered: {error.filename or 'known_hosts'}: "
                f"{error.strerror}; nothing was sent; correct its mode or make room"
            ) from None
        self._accepted(f"new host key accepted: {self._name} {fingerprint(key)} ({key.get_name()})")
