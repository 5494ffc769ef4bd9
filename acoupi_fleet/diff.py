"""diff: the text of what differs between a sensor and its inventory, secrets masked. Reads devices, writes nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

from acoupi_fleet.desired import Desired
from acoupi_fleet.errors import understood
from acoupi_fleet.inventory import Host
from acoupi_fleet.remote import HostKeys, converse
from acoupi_fleet.render import PROGRAM, masked
from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.system.setup import masked_program

SHOWN = ("home/", "units/")
"""Our own code below `lib/` is a version of ours, and not what an operator wrote."""


def differences(
    host: Host, desired: Desired, keys: HostKeys, accepted: Callable[[str], None] | None = None
) -> tuple[str, ...]:
    """Lines as `diff -u` writes them, from what the device has to what it should have.

    Raises:
        HostError: If the device could not be asked.
    """
    with converse(host, desired.scope, keys=keys, accepted=accepted) as session:
        there = session.ask("texts", {"scope": desired.scope, "below": SHOWN})
    with understood():
        there = {path: str(text) for path, text in there.items()}
    if not there:
        return ("# nothing is provisioned there yet; acoupi-fleet render writes all that it would get",)
    raw = {file.path: file.content.decode("utf-8", "replace") for file in desired.files}
    shown = {file.path: file.content.decode("utf-8", "replace") for file in masked(desired)}
    program_class = there.get("home/config/name", raw["home/config/name"]).strip()
    return tuple(
        line
        for path in sorted({path for path in (*there, *raw) if path.startswith(SHOWN)})
        if there.get(path) != raw.get(path)
        for line in _file(path, _readable(program_class, path, there.get(path)), shown.get(path))
    )


def _file(path: str, old: str | None, new: str | None) -> Iterator[str]:
    lines = difflib.unified_diff(
        (old or "").splitlines(),
        (new or "").splitlines(),
        "/dev/null" if old is None else f"sensor/{path}",
        "/dev/null" if new is None else f"inventory/{path}",
        n=2,
        lineterm="",
    )
    found = False
    for line in lines:
        found = True
        yield line
    if not found:
        yield f"# {path}: only secrets differ, which are not shown"


def _readable(program_class: str, path: str, text: str | None) -> str | None:
    """The device's own file without its secrets; where they cannot be told from the rest, nothing of it."""
    if text is None or path != PROGRAM:
        return text
    try:
        return masked_program(program_class, text.encode()).decode()
    except (AcoupiError, ValueError):
        return "(not shown: it may hold secrets, and its program is not known here)"
