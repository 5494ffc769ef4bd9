"""restart: start everything of ours anew, and look until it works again. Touches the units of one scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import files, health, system
from acoupi_fleet.device.layout import TARGET, Layout, Refusal

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call

STOPPING_SECONDS = 120.0


def restart(call: Call) -> dict[str, Any]:
    """The verb: `scope`, `seconds` to get well and `require_sound` in; `restarted` units, `problems`, `warnings` out.

    What counts is what is seen afterwards: other invocations of the units than before, and frames that arrive.
    """
    asked = call.args
    layout = Layout(asked["scope"])
    if files.points_to(layout.current) is None:
        raise Refusal("nothing is provisioned here; run acoupi-fleet provision first")
    if system.found("systemctl") is None:
        raise Refusal("there is no systemctl here, so nothing can be restarted; use a device with systemd")
    before = invocations(layout)
    call.say("progress", text="restarting " + TARGET)
    system.must(system.systemctl(layout, "restart", TARGET, timeout=STOPPING_SECONDS), "systemctl restart " + TARGET)
    units = sorted(invocations(layout))
    seen = health.wait(
        layout,
        {
            "units": units,
            "workers": [name[len("acoupi-worker@") : -len(".service")] for name in units if "@" in name],
            "seconds": asked["seconds"],
            "require_sound": asked["require_sound"],
        },
        call,
    )
    after = invocations(layout)
    same = sorted(name for name in before if after.get(name) == before[name])
    if same:
        seen.problems["same"] = ", ".join(same) + " did not restart: systemd shows the same invocation as before"
    return dict(seen.as_dict(), restarted=sorted(name for name in after if after[name] != before.get(name)))


def invocations(layout: Layout) -> dict[str, str]:
    """Which run of each unit is the present one; a unit that never ran has none."""
    states = system.units(layout, [TARGET])
    return {name: state.get("InvocationID", "") for name, state in states.items() if state.get("LoadState") == "loaded"}
