"""What `status` makes of what a sensor says: one word, and whether a person has to care."""

from __future__ import annotations

from typing import Any

import pytest

from acoupi_fleet.errors import HostError, HostKeyError, UnreachableError
from acoupi_fleet.inventory import Connection, Host, Origin
from acoupi_fleet.status import Health, State, beyond_delay, blind, judge

NOW = 1_795_528_886.0
CREATED = "2026-11-24T14:01:20+00:00"  # 6 s before


def answer(*, recorder: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A healthy sensor that records, with some of it changed."""
    live = {
        "state": "recording",
        "detail": "",
        "frames_delta": 48_000,
        "level_rms": -40.5,
        "silent": False,
        "memory_mode": False,
        "last_recording": {"created_on": CREATED, "duration": 3.0, "rms": -41.0, "path": "/x.wav"},
    }
    whole: dict[str, Any] = {
        "release": "9ad4e086b0b4",
        "units": {"acoupi.target": "active", "acoupi-worker@recording.service": "active"},
        "clock": NOW,
        "error": "",
        "runtime": {
            "workers": {"recording": {"pid": 1, "alive": True}},
            "recorder": live | (recorder or {}),
            "store": {"backlog": 2, "outbox": {"http": 3}},
            "disk": {"free": 20_000_000_000, "total": 30_000_000_000, "days_left": 12.5},
            "clock": {"synced": True},
        },
    }
    return whole | changes


def without_recorder(*, alive: bool) -> dict[str, Any]:
    said = answer()
    runtime = said["runtime"] | {"recorder": None, "workers": {"recording": {"alive": alive}}}
    return said | {"runtime": runtime, "units": {"acoupi-worker@recording.service": "active" if alive else "failed"}}


CASES: dict[str, tuple[dict[str, Any], State, Health]] = {
    "it records": (answer(), "recording", "well"),
    "it waits for its hour, and sound flows": (answer(recorder={"state": "listening"}), "listening", "well"),
    "no frames arrive": (answer(recorder={"frames_delta": 0}), "stuck", "problem"),
    "three recordings without sound": (answer(recorder={"silent": True}), "SILENT", "warning"),
    "silent in the pause between recordings": (
        answer(recorder={"state": "listening", "silent": True}),
        "SILENT",
        "warning",
    ),
    "the microphone is gone": (
        answer(recorder={"state": "no-microphone", "frames_delta": 0}),
        "no microphone",
        "warning",
    ),
    "it has just been started": (answer(recorder={"state": "starting", "frames_delta": 0}), "starting", "warning"),
    "the card is full": (answer(recorder={"state": "paused", "detail": "the card is full"}), "paused", "problem"),
    "the recorder gave up": (answer(recorder={"state": "error", "detail": "broken"}), "failed", "problem"),
    "a state of a newer release": (answer(recorder={"state": "dreaming"}), "failed", "problem"),
    "its recorder is dead": (without_recorder(alive=False), "stopped", "problem"),
    "its recorder hangs": (without_recorder(alive=True), "stuck", "problem"),
    "its program does not start": (answer(runtime=None, error="No module named celery"), "failed", "problem"),
    "nothing is there": ({"release": None, "clock": NOW}, "not provisioned", "problem"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sensor_has_one_word(name: str) -> None:
    said, state, health = CASES[name]
    look = judge("pond", said, clock_offset=0.0)
    assert (look.state, look.health) == (state, health)
    assert look.recording == (name in {"it records", "three recordings without sound"})
    if health == "problem":
        assert look.detail, "a problem says why"


@pytest.mark.parametrize(
    ("unit", "advice"),
    [("failed", "run acoupi-fleet restart"), ("activating", "systemd starts acoupi-worker@recording")],
)
def test_a_sensor_that_systemd_is_about_to_mend_is_left_to_it(unit: str, advice: str) -> None:
    said = without_recorder(alive=False) | {"units": {"acoupi-worker@recording.service": unit}}
    look = judge("pond", said, clock_offset=0.0)
    assert look.state == "stopped"
    assert advice in look.detail


def test_a_line_holds_what_a_person_asks_for() -> None:
    look = judge("pond", answer(), clock_offset=-75.0)
    assert (look.last_age, look.last_duration, look.last_level) == (6.0, 3.0, -41.0)
    assert (look.disk_free, look.days_left, look.backlog, look.clock_offset) == (20_000_000_000, 12.5, 5, -75.0)


def test_after_a_restart_the_store_knows_the_last_recording() -> None:
    said = answer(recorder={"last_recording": None})
    said["runtime"]["store"]["last_recording"] = {"created_on": CREATED, "duration": 2.0}
    look = judge("pond", said, clock_offset=None)
    assert (look.last_age, look.last_duration, look.last_level, look.clock_offset) == (6.0, 2.0, None, None)


@pytest.mark.parametrize(
    ("error", "state"),
    [(UnreachableError("off"), "unreachable"), (HostKeyError("other key"), "refused"), (HostError("no"), "failed")],
)
def test_a_sensor_that_cannot_be_asked_has_a_line_too(error: HostError, state: State) -> None:
    look = blind(Host("pond", Connection("pond"), {}, (), Origin(__file__, 1)), error)  # type: ignore[arg-type]
    assert (look.state, look.detail, look.health) == (state, str(error), "problem")


@pytest.mark.parametrize(
    ("device", "offset"),
    [(99.0, -1.0), (100.0, 0.0), (101.9, 0.0), (102.0, 0.0), (105.0, 3.0)],
)
def test_a_clock_is_wrong_only_beyond_what_the_link_explains(device: float, offset: float) -> None:
    assert beyond_delay(device, sent=100.0, received=102.0) == offset
