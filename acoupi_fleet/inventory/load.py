"""load: from an inventory's file to its frozen hosts. Reads files, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from acoupi_fleet.errors import InventoryError
from acoupi_fleet.inventory.ini import parse
from acoupi_fleet.inventory.keys import CONNECTION, NAMESPACES, WORDS
from acoupi_fleet.inventory.merge import merge
from acoupi_fleet.inventory.model import Host
from acoupi_fleet.inventory.patterns import select

_OTHER_FORMATS = {".yml", ".yaml", ".json", ".toml"}

# Unmistakably ours, as a key of the outermost level of a YAML file.
_OURS = [*NAMESPACES, *WORDS, "host_key", "sudo_password"]
_OURS += [spelling for names in CONNECTION.values() for spelling in names if spelling.startswith("ansible_")]
_OUR_LINE = re.compile(rf"""["']?({"|".join(_OURS)})(\.|__|["']?\s*[:=])""")


@dataclass(frozen=True, slots=True)
class Inventory:
    """All hosts of a file.

    Attributes:
        path: The file.
        hosts: Its hosts, in the order of its lines.
        groups: Each group's hosts by name, those of its children included; `all` and `ungrouped` too.
    """

    path: Path
    hosts: tuple[Host, ...]
    groups: Mapping[str, tuple[str, ...]]

    def limit(self, pattern: str | None) -> tuple[Host, ...]:
        """The hosts that a pattern means, in order; all of them without a pattern.

        Raises:
            UsageError: If it, or one of its terms, matches nothing.
        """
        if pattern is None:
            return self.hosts
        chosen = set(select(pattern, [host.name for host in self.hosts], self.groups))
        return tuple(host for host in self.hosts if host.name in chosen)


def load_inventory(path: Path) -> Inventory:
    """Read an inventory.

    Raises:
        InventoryError: If it is missing or unreadable, or at its first wrong line.
    """
    if path.suffix.lower() in _OTHER_FORMATS:
        raise InventoryError(f"{path}: only the INI format is read; write it as sensors.ini, a host a line")
    lines = parse(_text(path), path)
    if not lines.hosts:
        raise InventoryError(f"{path}: it holds no host; write one a line, such as: lab1 host=192.168.1.20 user=pi")
    _refuse_unread(path.parent, {*lines.hosts, *lines.groups})
    hosts, groups = merge(lines)
    return Inventory(path, hosts, groups)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InventoryError(
            f"{path}: there is no such file; name an inventory, such as inventory/sensors.ini"
        ) from None
    except IsADirectoryError:
        raise InventoryError(f"{path}: it is a folder; name the file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InventoryError(f"{path}: it cannot be read ({reason}); correct its name or its permissions") from None
    try:
        return content.decode("utf-8-sig")  # Excel and Notepad put a mark in front
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InventoryError(f"{path.name}:{line}: it is not UTF-8; save the file as UTF-8") from None


def _refuse_unread(folder: Path, names: set[str]) -> None:
    """Files of variables in YAML are not read yet; what they say of ours must not be lost without a word."""
    for file in _variable_files(folder, names):
        try:
            lines = file.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            found = _OUR_LINE.match(line)
            if found:
                raise InventoryError(
                    f"{file.relative_to(folder)}:{number}: {found[1]} is not read from files of variables yet; "
                    "write it into the inventory itself"
                )


def _variable_files(folder: Path, names: set[str]) -> Iterator[Path]:
    for kind in ("group_vars", "host_vars"):
        for entry in sorted((folder / kind).glob("*")):
            if entry.name in names or (entry.suffix in _OTHER_FORMATS and entry.stem in names):
                yield from sorted(file for file in entry.rglob("*") if file.is_file()) if entry.is_dir() else [entry]
