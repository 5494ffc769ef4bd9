"""texts: the small files of the release in force, for a person to compare. Reads; writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import files
from acoupi_fleet.device.layout import Layout

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call


def texts(call: Call) -> dict[str, Any]:
    """The verb: `scope` and `below` (beginnings of paths) in; the files by their path in the release out."""
    layout = Layout(call.args["scope"])
    if files.points_to(layout.current) is None:
        return {}
    root = layout.current.resolve()
    found = {}
    for path in files.walk(root):
        name = str(path.relative_to(root))
        if name.startswith(tuple(call.args["below"])) and "__pycache__" not in name and not path.is_symlink():
            found[name] = path.read_bytes().decode("utf-8", "replace")
    return found
