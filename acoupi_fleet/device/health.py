"""health: does what was started work: units active, workers answer, frames arrive. Only asks, writes nothing."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import system

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call

CRASHES_THAT_SAY_ENOUGH = 3
PAUSE_SECONDS = 0.5
STATUS = ["-m", "acoupi_runtime", "status", "--json", "--watch-frames", "1"]


class Health:
    """What was seen: problems and warnings by a stable key, so that two looks can be compared."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.warnings: dict[str, str] = {}

    def as_dict(self) -> dict[str, Any]:
        """For the answer."""
        return {"problems": self.problems, "warnings": self.warnings}

    def worse_than(self, before: Health) -> list[str]:
        """What is wrong now and was not wrong before."""
        return [text for key, text in self.problems.items() if key not in before.problems]


def wait(layout: Any, spec: dict[str, Any], call: Call) -> Health:
    """Look until all is well or the time is up. `spec`: `units`, `workers`, `seconds`, `require_sound`."""
    until = time.monotonic() + spec["seconds"]
    restarts = count_restarts(system.units(layout, spec["units"]))
    told = ""
    while True:
        health = look(layout, spec)
        if not health.problems or time.monotonic() >= until:
            return health
        if count_restarts(system.units(layout, spec["units"])) >= restarts + CRASHES_THAT_SAY_ENOUGH:
            return health
        now = "waiting: " + next(iter(health.problems.values()))
        if now != told:
            told = now
            call.say("progress", text=now)
        time.sleep(PAUSE_SECONDS)


def look(layout: Any, spec: dict[str, Any]) -> Health:
    """One look: systemd first, then the program itself, then systemd again, since a worker may have died meanwhile."""
    health = Health()
    first = system.units(layout, spec["units"])
    for name in spec["units"]:
        state = first.get(name, {})
        if state.get("ActiveState") != "active":
            said = "{} is {} ({})".format(name, state.get("ActiveState", "unknown"), state.get("SubState", "?"))
            health.problems["unit " + name] = said + (": " + state["StatusText"] if state.get("StatusText") else "")
    if health.problems:
        return health
    answer = system.run_as_service(layout, [str(layout.python), *STATUS], 30.0)
    try:
        status = json.loads(answer.out)
    except ValueError:
        health.problems["status"] = "the program does not answer: " + answer.reason
        return health
    judge(status, spec, health)
    again = system.units(layout, spec["units"])
    for name in spec["units"]:
        if again.get(name, {}).get("InvocationID") != first.get(name, {}).get("InvocationID"):
            health.problems["unit " + name] = f"{name} has just crashed and was started again"
    return health


def judge(status: dict[str, Any], spec: dict[str, Any], health: Health) -> None:
    """What the program says about itself, as problems and warnings."""
    responding = {name.partition("@")[0] for name in (status.get("celery") or {}).get("responding", [])}
    for worker in spec["workers"]:
        if not (status.get("workers") or {}).get(worker, {}).get("alive"):
            health.problems["worker " + worker] = f"worker {worker} is not alive"
        elif worker not in responding:
            health.problems["celery " + worker] = f"worker {worker} does not answer through the broker"
    recorder = status.get("recorder")
    if not recorder:
        if "recording" in spec["workers"]:  # a program without a microphone may have no such worker
            health.problems["recorder"] = "the recorder has not said anything of itself yet"
        return
    state, detail = recorder.get("state"), recorder.get("detail")
    device = recorder.get("device") or "the microphone"
    soundless = health.problems if spec["require_sound"] else health.warnings
    if state == "no-microphone":
        why = detail or f"{device} is not there; plug it in"
        soundless["sound"] = f"no microphone: {why}; the sensor records as soon as it is there"
    elif state == "starting":
        health.problems["recorder"] = "the recorder is still starting"
    elif not recorder.get("frames_delta"):
        health.problems["recorder"] = detail or f"{device} is open but delivers no frames ({state})"
    elif recorder.get("silent"):
        soundless["sound"] = f"{device} is silent: check its cable, its gain and its power"


def count_restarts(states: dict[str, dict[str, str]]) -> int:
    """How often systemd had to start something again."""
    return sum(int(state.get("NRestarts") or 0) for state in states.values())
