"""model: the nouns of an inventory, resolved once and frozen. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

DEFAULT_CONNECT_TIMEOUT = 10.0
"""Seconds; a sensor on a mobile link answers within a few, and one that is off should not hold up the others."""


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where something stands in the inventory; its text is what people write: `sensors.ini:12`."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


@dataclass(frozen=True, slots=True)
class Variable:
    """One value, and where it comes from. It may be a secret, so that its text never shows it.

    Attributes:
        value: What the text means, as Ansible reads it: a Python literal where it is one, else the text. Never changed.
        origin: The line that won over all others.
        key: The key as it was written there.
        raw: The text as it was written there; None where the value is a part of a longer one.
        path: The key's parts: `("program", "recording", "duration")` however it was spelled.
    """

    value: Any = field(repr=False)
    origin: Origin
    key: str = ""
    raw: str | None = field(default=None, repr=False)
    path: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a host is reached. None means that the inventory says nothing: OpenSSH's own configuration may know.

    Attributes:
        address: A name or an address; the host's own name where the inventory gives none.
        port: The port of its SSH server.
        user: The user to log in as.
        identity: The private key's file on the workstation.
        host_key: The key that the host must show, `ssh-ed25519 AAAA...`, or its fingerprint, `SHA256:...`.
        sudo_password: What sudo asks for on the device; masked wherever it is printed.
        connect_timeout: Seconds until a host that does not answer is given up.
    """

    address: str
    port: int | None = None
    user: str | None = None
    identity: Path | None = None
    host_key: str | None = None
    sudo_password: SecretStr | None = None
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT


@dataclass(frozen=True, slots=True)
class Host:
    """One host of the inventory.

    Attributes:
        name: Its name in the inventory; safe as a part of a path and as an argument.
        connection: How it is reached.
        variables: Merged variables by key. Keys of ours are in their one spelling: `program.recording.duration`.
        groups: All its groups but `all`, the ones that win last.
        origin: The line that names the host first.
    """

    name: str
    connection: Connection
    variables: Mapping[str, Variable]
    groups: tuple[str, ...]
    origin: Origin
