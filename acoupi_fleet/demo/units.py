"""units: reads the unit files that a virtual sensor was given. Reads files only.

The format is that of systemd.syntax(7), as far as units of a user need it.
"""

from __future__ import annotations

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
        """All words of a key that holds names, such as `Unit.Wants`."""
        return tuple(word for value in self.settings.get(key, ()) for word in value.split())

    def last(self, key: str, default: str = "") -> str:
        """The value that holds: the last one given."""
        return (self.settings.get(key) or (default,))[-1]

    def seconds(self, key: str, default: float) -> float:
        """A span of time in s; only plain seconds and `min` are used by our units."""
        value = self.last(key)
        if not value:
            return default
        return float(value.removesuffix("min")) * 60 if value.endswith("min") else float(value.removesuffix("s"))

    def command(self, key: str) -> tuple[list[str], bool]:
        """The arguments of a command, and whether its failure is ignored (a leading `-`)."""
        value = self.last(key)
        bare = value.lstrip("-+!:@|")
        return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(bare)], "-" in value[
            : len(value) - len(bare)
        ]


def load(folder: Path, name: str, specifiers: Mapping[str, str]) -> Unit | None:
    """Read one unit.

    Args:
        folder: Where unit files, or links to them, stand.
        name: The unit's full name; an instance without a file of its own is read from its template.
        specifiers: What `%h` and `%t` stand for in this sensor, without the percent sign.

    Returns:
        The unit, or None where there is no such file.
    """
    path = folder / name
    stem, at, rest = name.partition("@")
    instance = rest.rpartition(".")[0]
    if not path.exists() and at:
        path = folder / f"{stem}@.{name.rpartition('.')[2]}"
    if not path.exists():
        return None
    known = {**specifiers, "i": instance, "I": instance, "n": name, "p": stem}
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
        name_of_key = f"{section}.{key.strip()}"
        value = _replace(value.strip(), known)
        settings[name_of_key] = (*settings.get(name_of_key, ()), value) if value else ()
    return Unit(name, path, settings)


def _replace(text: str, known: Mapping[str, str]) -> str:
    parts = text.split("%%")
    for letter, value in known.items():
        parts = [part.replace(f"%{letter}", value) for part in parts]
    return "%%".join(parts)
