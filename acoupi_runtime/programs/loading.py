"""loading: from a program's name to its class. Imports the program's module, and nothing else."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

from acoupi_runtime.errors import InvalidProgramError, ProgramNotFoundError
from acoupi_runtime.programs.base import AcoupiProgram

ENTRY_POINTS = "acoupi_runtime.programs"
"""The group of entry points under which other distributions offer their programs."""

BUILT_IN = {
    "default": "acoupi_runtime.programs.default:Program",
    "connected": "acoupi_runtime.programs.connected:Program",
    "energy": "acoupi_runtime.programs.energy:Program",
}
"""Short names; the reference system's module names lead to the same classes."""

ALIASES = {"acoupi.programs.default": "default", "acoupi.programs.connected": "connected"}


def program_names() -> tuple[str, ...]:
    """The short names that can be used here, sorted."""
    return tuple(sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def load_program_class(name: str) -> type[AcoupiProgram[Any]]:
    """The class of a program.

    Args:
        name: A short name such as `default`, or `module:Class`.

    Raises:
        ProgramNotFoundError: If there is no such program here.
        InvalidProgramError: If it is something else than an AcoupiProgram.
    """
    name = ALIASES.get(name, name)
    target = BUILT_IN.get(name)
    if target is None:
        points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
        target = points[0].value if points else name
    module_name, separator, class_name = target.partition(":")
    if not separator:
        near = difflib.get_close_matches(name, program_names(), 1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"there are {', '.join(program_names())}, or write module:Class"
        )
        raise ProgramNotFoundError(f"program {name!r}: there is none of this name; {hint}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ProgramNotFoundError(
            f"program {name!r}: no module named {error.name!r} here; install it, or correct the name"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ProgramNotFoundError(f"program {name!r}: module {module_name!r} has no {class_name!r}; correct the name")
    if not (isinstance(found, type) and issubclass(found, AcoupiProgram)):
        raise InvalidProgramError(f"program {name!r}: it is not an AcoupiProgram; derive it from that class")
    return found
