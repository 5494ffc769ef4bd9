"""keys: which keys are ours, and the one spelling that each has. Touches nothing.

A key of ours may be written with dots (`program.recording.duration`), with double underscores, since Ansible's own
variable names have no dots (`program__recording__duration`), or as a dictionary (`program.recording={"duration": 3}`).
Merging needs leaves in one spelling: else a host's value would stand beside its group's instead of replacing it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from acoupi_fleet.errors import InventoryError
from acoupi_fleet.inventory.model import Origin, Variable

KeyPath = tuple[str, ...]
Level = dict[KeyPath, Variable]
"""The leaves that one host or one group sets."""

NAMESPACES = ("program", "celery", "deployment")

WORDS: dict[str, KeyPath] = {
    "isolation": ("program", "isolation"),
    "systemd_scope": ("systemd_scope",),
    "runtime": ("runtime",),
    "apt_via": ("apt_via",),
    "program_package": ("program_package",),
}
"""Words of their own, and what they are short for."""

CONNECTION: dict[str, tuple[str, ...]] = {
    "host": ("ansible_host", "ansible_ssh_host", "host"),
    "port": ("ansible_port", "ansible_ssh_port", "port"),
    "user": ("ansible_user", "ansible_ssh_user", "user"),
    "identity": ("ansible_ssh_private_key_file", "ansible_private_key_file", "identity"),
    "host_key": ("host_key",),
    "sudo_password": ("ansible_become_password", "ansible_become_pass", "sudo_password"),
    "connect_timeout": ("ansible_ssh_timeout", "ansible_timeout", "connect_timeout"),
}
"""Words of the connection, each with its spellings; at one level the first wins, so that Ansible and we agree."""

_SPELLINGS = {spelling: (word, rank) for word, names in CONNECTION.items() for rank, spelling in enumerate(names)}
_SEPARATOR = re.compile(r"\.|__")


@dataclass(frozen=True, slots=True)
class Assignment:
    """`key=value` as it stands in one line."""

    key: str
    raw: str
    value: Any
    origin: Origin

    def __repr__(self) -> str:
        return f"Assignment({self.key!r}, {self.origin})"  # the value may be a secret


def parts(key: str) -> KeyPath:
    """The parts of a key, at its dots and double underscores."""
    return tuple(_SEPARATOR.split(key))


def level(assignments: Iterable[Assignment]) -> Level:
    """The leaves of one level: a host's own variables, or one group's.

    Raises:
        InventoryError: If two spellings of one leaf stand side by side, since no rule says which of them is meant.
    """
    latest = {assignment.key: assignment for assignment in assignments}  # as in Ansible, a later line replaces
    found: Level = {}
    for assignment in latest.values():
        if assignment.key in _SPELLINGS:
            _add_connection(found, assignment)
            continue
        for path, value in _leaves(assignment.key, assignment.value):
            _refuse_second_spelling(found, path, assignment)
            raw = None if isinstance(assignment.value, dict) else assignment.raw
            found[path] = Variable(value, assignment.origin, assignment.key, raw, path)
    return found


def overlay(below: Level, above: Level) -> Level:
    """The leaves of two levels, where the upper one wins: over the leaf, over what is below it, over what holds it."""
    merged = dict(below)
    for path, variable in above.items():
        if path not in merged and path[0] in NAMESPACES:
            for other in [other for other in merged if _one_holds_the_other(other, path)]:
                del merged[other]
        merged[path] = variable
    return merged


def _add_connection(found: Level, assignment: Assignment) -> None:
    word, rank = _SPELLINGS[assignment.key]
    other = found.get((word,))
    if other is None or rank < _SPELLINGS[other.key][1]:
        found[(word,)] = Variable(assignment.value, assignment.origin, assignment.key, assignment.raw, (word,))


def _leaves(key: str, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    path = WORDS.get(key) or parts(key)
    if path[0] not in NAMESPACES and key not in WORDS:
        yield (key,), value
    elif path == ("program",) and not isinstance(value, dict):
        yield ("program", "class"), value
    else:
        yield from _flatten(path, value)


def _flatten(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    # Only names are steps of a path: {"X.Y": 1} or {1: 2} is a value.
    if isinstance(value, dict) and value and all(isinstance(key, str) and len(parts(key)) == 1 for key in value):
        for key, inner in value.items():
            yield from _flatten((*path, key), inner)
    else:
        yield path, value


def _one_holds_the_other(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one != other and one[:shorter] == other[:shorter]


def _refuse_second_spelling(found: Level, path: KeyPath, assignment: Assignment) -> None:
    for other, variable in found.items():
        if variable.key != assignment.key and (other == path or _one_holds_the_other(other, path)):
            raise InventoryError(
                f"{assignment.origin}: {assignment.key}: {'.'.join(path)} is set at {variable.origin} too, "
                f"as {variable.key}; keep one of the two"
            )
