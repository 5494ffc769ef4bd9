"""units: reads the unit files that a virtual sensor was given, as systemd.syntax(7) has it. Reads files only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit as its file describes it, with specifiers replaced.

    Attributes:
        name: Its full name, with its instance.
        path: The file that it was read from.
        settings: The values of each `Section.Key`, in order.
    """

    name: str
    path: Path
    settings: Mapping[str, tuple[str, ...]]

    def words(self, key: str) -> tuple[str, ...]:
        """All words of a key that holds names or assignments, such as `Unit.Wants`."""
        return tuple(word for value in self.settings.get(key, ()) for word in shlex.split(value))

    def last(self, key: str, default: str = "") -> str:
        """The value that holds: the last one given."""
        return (self.settings.get(key) or (default,))[-1]

    def seconds(self, key: str, default: float) -> float:
        """A span of time in s, written as plain seconds; that is what our units use."""
        return float(self.last(key) or default)

    def command(self) -> list[str]:
        """The words of ExecStart."""
        return [word.replace("$$", "$") for word in shlex.split(self.last("Service.ExecStart"))]


def load(folder: Path, name: str, specifiers: Mapping[str, str]) -> Unit | None:
    """Read one unit.

    Args:
        folder: Where unit files, or links to them, stand.
        name: The unit's full name; an instance without a file of its own is read from its template.
        specifiers: What `%h` and `%t` stand for in this sensor, without the percent sign.

    Returns:
        The unit, or None where there is no such file.
    """
    prefix, at, rest = name.partition("@")
    instance, _, kind = rest.rpartition(".")
    candidates = [folder / name, *([folder / f"{prefix}@.{kind}"] if at else [])]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        return None
    known = {**specifiers, "i": instance, "n": name, "%": "%"}
    settings: dict[str, tuple[str, ...]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        if text[0] == "[":
            section = text.strip("[]")
            continue
        key, _, value = text.partition("=")
        value = re.sub("%(.)", lambda found: known.get(found[1], found[0]), value.strip())
        place = f"{section}.{key.strip()}"
        settings[place] = (*settings.get(place, ()), value) if value else ()
    return Unit(name, path, settings)
