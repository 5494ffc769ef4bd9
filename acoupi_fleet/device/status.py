"""status: what this sensor does now: its release, units and clock, and what its program says. Writes nothing."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import files, system
from acoupi_fleet.device.layout import TARGET, Layout

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call

ASKING_SECONDS = 60.0


def status(call: Call) -> dict[str, Any]:
    """The verb: `scope` and `watch` (seconds of counting frames) in; acoupi_fleet.status reads what comes out."""
    asked = call.args
    layout = Layout(asked["scope"])
    call.say("clock", clock=time.time())  # at once, so that only the link's delay can falsify it
    if files.points_to(layout.current) is None:
        return {"release": None, "clock": time.time()}
    units = system.units(layout, [TARGET]) if system.found("systemctl") else {}
    answer = {
        "release": layout.current.resolve().name,
        "units": {name: state.get("ActiveState", "") for name, state in units.items()},
        "since_boot": {name: state.get("ActiveEnterTimestampMonotonic", "") for name, state in units.items()},
        "runtime": None,
        "error": "",
    }
    if not os.access(str(layout.python), os.X_OK):
        return dict(answer, error="its Python environment is damaged; provision it again", clock=time.time())
    argv = [str(layout.python), "-m", "acoupi_runtime", "status", "--json", "--watch-frames", str(asked["watch"])]
    said = system.run_as_service(layout, argv, ASKING_SECONDS + float(asked["watch"]))
    try:
        answer["runtime"] = json.loads(said.out)
    except ValueError:
        answer["error"] = said.reason
    return dict(answer, clock=time.time())
