"""run: one command with fixed words, for verbs that need no code of their own here. Touches what the command does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import system
from acoupi_fleet.device.layout import Layout

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call


def run(call: Call) -> dict[str, Any]:
    """The verb: `scope`, `argv`, `as_service` (its user and environment) and `timeout` in; `code`, `out`, `err` out.

    `{python}` in a word stands for the interpreter of the release in force. No shell reads the words.
    """
    asked = call.args
    layout = Layout(asked["scope"])
    argv = [str(layout.python) if word == "{python}" else word for word in asked["argv"]]
    timeout = float(asked["timeout"])
    if asked["as_service"]:
        said = system.run_as_service(layout, argv, timeout)
    else:
        said = system.run(argv, layout.control_env(), timeout)
    return {"code": said.code, "out": said.out, "err": said.err}
