"""ini: the text of an INI inventory, in Ansible's language, to sections with their lines. Touches nothing.

Nothing is merged here, and nothing refers to anything yet: this room only knows lines. `%` and `{{` are plain text.
"""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acoupi_fleet.errors import InventoryError
from acoupi_fleet.inventory.hostnames import NameProblemError, expand
from acoupi_fleet.inventory.keys import Assignment
from acoupi_fleet.inventory.model import Origin

_SECTION = re.compile(r"\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?")
_MEMBER = re.compile(r"([^:\]\s]+)\s*(?:#.*)?")
_GROUP = re.compile(r"\w[\w.-]*")  # what has no meaning in a pattern of --limit


@dataclass(slots=True)
class HostLines:
    """All that is said of one host, over all sections."""

    origin: Origin
    assignments: list[Assignment] = field(default_factory=list)
    port: Assignment | None = None
    """From `name:port`; it is the weakest of a host's own values."""


@dataclass(slots=True)
class GroupLines:
    """All that is said of one group, over all its sections."""

    name: str
    declared: bool = False
    """`[name]` or `[name:children]` stands somewhere; `[name:vars]` alone does not make a group."""
    mentioned: Origin | None = None
    """The first line that needs it to exist."""
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, Origin] = field(default_factory=dict)
    assignments: list[Assignment] = field(default_factory=list)


@dataclass(slots=True)
class Lines:
    """A whole inventory, in the order of its lines."""

    hosts: dict[str, HostLines] = field(default_factory=dict)
    groups: dict[str, GroupLines] = field(default_factory=dict)

    def group(self, name: str, origin: Origin | None) -> GroupLines:
        """The group of this name, made if it is new."""
        group = self.groups.setdefault(name, GroupLines(name))
        group.mentioned = group.mentioned or origin
        return group


def parse(text: str, path: Path) -> Lines:
    """Read an inventory.

    Args:
        text: The file's content.
        path: Where it comes from, for messages and for relative paths in it.

    Raises:
        InventoryError: At the first line that cannot be understood.
    """
    lines = Lines()
    for name in ("all", "ungrouped"):
        lines.group(name, None).declared = True
    group, kind = lines.groups["ungrouped"], "hosts"
    # Not splitlines(): it also breaks at form feeds and the like, and then no line number agrees with an editor's.
    for number, untrimmed in enumerate(text.split("\n"), 1):
        line = untrimmed.strip()
        if not line or line[0] in "#;":
            continue
        origin = Origin(path, number)
        section = _SECTION.fullmatch(line)
        if section:
            group, kind = _open_section(lines, section[1], section[2] or "hosts", origin)
        elif line.startswith("[") and line.endswith("]"):
            raise InventoryError(
                f"{origin}: {line[:80]!r} is no section; write [group], [group:vars] or [group:children]"
            )
        elif kind == "hosts":
            _host_line(lines, group, line, origin)
        elif kind == "children":
            child = lines.group(_group_name(line, origin), origin)
            group.children.setdefault(child.name, origin)
        else:
            key, raw = _split(line, origin)
            group.assignments.append(_assignment(key.strip(), raw.strip(), origin))
    return lines


def parse_value(raw: str) -> Any:
    """What a text means, as Ansible has it: a Python literal where it is one, else the text itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # '\d' in a text is no mistake of the person's
            value = ast.literal_eval(raw)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return raw
    try:
        return _plain(value, raw)
    except RecursionError:
        return raw


def _plain(value: Any, raw: str) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple() | set():
            return [_plain(item, raw) for item in value]
        case dict():
            return {key: _plain(item, raw) for key, item in value.items()}
        case _:  # bytes, complex numbers and `...` are no values of JSON
            return raw


def _open_section(lines: Lines, name: str, kind: str, origin: Origin) -> tuple[GroupLines, str]:
    if kind not in ("hosts", "vars", "children"):
        raise InventoryError(
            f"{origin}: [{name}:{kind}] is no kind of section; write [{name}], [{name}:vars] or [{name}:children]"
        )
    group = lines.group(_group_name(name, origin), origin)
    group.declared = group.declared or kind != "vars"
    return group, kind


def _group_name(text: str, origin: Origin) -> str:
    member = _MEMBER.fullmatch(text)
    if not member or not _GROUP.fullmatch(member[1]):
        raise InventoryError(f"{origin}: {text[:80]!r} is no name of a group; use letters, digits and _ . -")
    return member[1]


def _host_line(lines: Lines, group: GroupLines, line: str, origin: Origin) -> None:
    try:
        word, *settings = shlex.split(line, comments=True)
        names, port = expand(word)
    except NameProblemError as error:
        raise InventoryError(f"{origin}: {error}") from None
    except ValueError as error:  # shlex: a quotation without an end
        raise InventoryError(f"{origin}: {str(error).lower()}; quote values like key='a value'") from None
    assignments = [_assignment(*_split(setting, origin), origin) for setting in settings]
    for name in names:
        host = lines.hosts.setdefault(name, HostLines(origin))
        host.assignments.extend(assignments)
        if port is not None:
            host.port = Assignment("port", str(port), port, origin)
        group.hosts[name] = None


def _split(text: str, origin: Origin) -> tuple[str, str]:
    key, equals, raw = text.partition("=")
    if not equals:  # the text is not shown: it may be a part of a secret with a space in it
        raise InventoryError(f"{origin}: a word without '='; write key=value, and quote a value that has spaces")
    return key, raw


def _assignment(key: str, raw: str, origin: Origin) -> Assignment:
    if not key or not key.isprintable() or any(character.isspace() for character in key):
        raise InventoryError(f"{origin}: {key[:80]!r} is no key; write key=value, with a key without spaces")
    return Assignment(key, raw, parse_value(raw), origin)
