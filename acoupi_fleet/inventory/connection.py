"""connection: from a host's merged variables to how it is reached. Resolved once; touches nothing.

Everything here ends up as an argument or a file's name on the workstation, so that its shape is checked here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from acoupi_fleet.errors import InventoryError
from acoupi_fleet.inventory.hostnames import MAX_PORT
from acoupi_fleet.inventory.model import DEFAULT_CONNECT_TIMEOUT, Connection, Variable

MAX_CONNECT_TIMEOUT = 3600.0

# Neither begins like an option of ssh. An IPv6 address may name its interface behind a %.
_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,254}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\+$-]{0,254}")
_HOST_KEY = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?|[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}( .*)?")


def resolve(name: str, variables: Mapping[str, Variable]) -> Connection:
    """How the host is reached.

    Args:
        name: The host's name, which is its address where nothing else is said.
        variables: Its merged variables. A relative `identity` starts at the folder of the file that names it.

    Raises:
        InventoryError: If a value cannot be what it should be.
    """
    texts = {key: _text(variables[key]) for key in variables if key in _CHECKS}
    for key, text in texts.items():
        cure = _CHECKS[key](text)
        if cure:
            raise _error(variables[key], cure)
    return Connection(
        address=texts.get("host", name),
        port=int(texts["port"]) if "port" in texts else None,
        user=texts.get("user"),
        identity=_file(variables["identity"], texts["identity"]) if "identity" in texts else None,
        host_key=texts.get("host_key"),
        sudo_password=SecretStr(texts["sudo_password"]) if "sudo_password" in texts else None,
        connect_timeout=float(texts.get("connect_timeout", DEFAULT_CONNECT_TIMEOUT)),
    )


def _text(variable: Variable) -> str:
    text = variable.value if isinstance(variable.value, str) else variable.raw or ""
    if not text:
        raise _error(variable, "it is empty; write a value, or leave the key out")
    if not text.isprintable():
        raise _error(variable, "a control character is in it; remove it")
    if "{{" in text:
        raise _error(
            variable, "'{{' is in it, and an inventory's values are never templates here; write the value itself"
        )
    return text


def _file(variable: Variable, text: str) -> Path:
    return variable.origin.path.parent / os.path.expanduser(text)  # noqa: PTH111 - Path's own raises for ~nobody


def _error(variable: Variable, cure: str) -> InventoryError:
    return InventoryError(f"{variable.origin}: {variable.key}: {cure}")


def _check_address(text: str) -> str | None:
    return None if _ADDRESS.fullmatch(text) else "it is no name and no address of a host; correct it"


def _check_user(text: str) -> str | None:
    return None if _USER.fullmatch(text) else "it is no name of a user; correct it"


def _check_port(text: str) -> str | None:
    right = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_PORT)) and 1 <= int(text) <= MAX_PORT
    return None if right else f"it is no port; write a number from 1 to {MAX_PORT}"


def _check_host_key(text: str) -> str | None:
    right = _HOST_KEY.fullmatch(text)
    return None if right else "it is no key; write 'ssh-ed25519 AAAA...' in quotes, or its fingerprint SHA256:..."


def _check_timeout(text: str) -> str | None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    right = 0 < seconds <= MAX_CONNECT_TIMEOUT
    return None if right else f"it is no time limit; write seconds, more than 0 and at most {MAX_CONNECT_TIMEOUT:g}"


def _check_nothing(text: str) -> str | None:
    del text
    return None


_CHECKS = {
    "host": _check_address,
    "port": _check_port,
    "user": _check_user,
    "identity": _check_nothing,
    "host_key": _check_host_key,
    "sudo_password": _check_nothing,
    "connect_timeout": _check_timeout,
}
