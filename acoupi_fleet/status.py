"""status: what sensors do now, one look each. Reads devices through `remote`; judging an answer touches nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from acoupi_fleet.configuration import scopes
from acoupi_fleet.desired import Scope
from acoupi_fleet.errors import HostError, HostKeyError, UnreachableError, understood
from acoupi_fleet.inventory import Host
from acoupi_fleet.remote import HostKeys, converse

State = Literal[
    "recording",
    "listening",
    "starting",
    "paused",
    "SILENT",
    "no microphone",
    "stuck",
    "stopped",
    "not provisioned",
    "unreachable",
    "refused",
    "failed",
]
"""`listening`: sound flows, and the schedule says not to record now. `stuck`: the recorder runs and no sound comes."""

Health = Literal["well", "warning", "problem"]

_HEALTH: Mapping[State, Health] = {
    "recording": "well",
    "listening": "well",
    "starting": "warning",
    "SILENT": "warning",
    "no microphone": "warning",
}
"""A state that is not named is a problem. A missing or silent microphone is for a person to see to."""

_OF_RECORDER: Mapping[str, State] = {
    "recording": "recording",
    "listening": "listening",
    "starting": "starting",
    "paused": "paused",
    "no-microphone": "no microphone",
}
WATCH_SECONDS = 1
HOT = 80.0
"""Degrees Celsius at which a Raspberry Pi begins to slow itself down."""


@dataclass(frozen=True, slots=True)
class Look:
    """One line of `status`; None is `not known`.

    Attributes:
        host: The sensor's name in the inventory.
        state: What it does.
        detail: Why, in one line, where the state alone does not say it.
        release: The release in force.
        recording: Whether a recording is being made at this moment.
        last_age: Seconds since the last recording began, by the device's own clock.
        last_duration: Its length in seconds.
        last_level: Its RMS level in dBFS.
        level: RMS level of the live sound in dBFS.
        disk_free: Bytes free where recordings are kept.
        disk_total: Bytes of that file system.
        days_left: Days until it is full, at the pace of this sensor's recordings.
        clock_offset: Seconds that the device's clock is ahead of this computer's, beyond the link's delay.
        clock_synced: Whether the device says that its clock is set by somebody.
        backlog: Recordings and messages that wait to be worked on.
        memory_mode: Whether unfinished recordings are only in memory.
        counters: What its store has counted since it is there, by name.
        troubles: What its board suffers from.
        last_recording: What the device says of its last recording, for programs.
        recorder: The recorder's live state as the device says it, for programs.
    """

    host: str
    state: State
    detail: str = ""
    release: str | None = None
    recording: bool = False
    last_age: float | None = None
    last_duration: float | None = None
    last_level: float | None = None
    level: float | None = None
    disk_free: int | None = None
    disk_total: int | None = None
    days_left: float | None = None
    clock_offset: float | None = None
    clock_synced: bool | None = None
    backlog: int | None = None
    memory_mode: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()
    last_recording: Mapping[str, Any] | None = None
    recorder: Mapping[str, Any] | None = None

    @property
    def health(self) -> Health:
        """How much a person has to care."""
        return _HEALTH.get(self.state, "problem")


def scope_of(host: Host) -> Scope:
    """Whose units a host runs.

    Raises:
        ConfigurationError: If the inventory names nobody's; whoever asks several hosts looks at all of them before.
    """
    return scopes([host])[host.name]


def look(host: Host, keys: HostKeys, accepted: Callable[[str], None] | None = None) -> Look:
    """One sensor's line, from one conversation.

    Raises:
        HostError: If it could not be asked; see `blind`.
    """
    scope = scope_of(host)
    with converse(host, scope, keys=keys, accepted=accepted) as session:
        clock = Clock()
        answer = session.ask("status", {"scope": scope, "watch": WATCH_SECONDS}, observe=clock.hear)
        return judge(host.name, answer, clock_offset=clock.offset)


def blind(host: Host, error: HostError) -> Look:
    """The line of a sensor that could not be asked."""
    state: State = "failed"
    if isinstance(error, UnreachableError):
        state = "unreachable"
    elif isinstance(error, HostKeyError):
        state = "refused"
    return Look(host.name, state, str(error))


@understood()
def judge(name: str, answer: Mapping[str, Any], *, clock_offset: float | None) -> Look:
    """What an answer of the device means.

    Args:
        name: The sensor.
        answer: What `device/status.py` says: the release, the units, and the program's own status.
        clock_offset: How far its clock is ahead, in seconds; None if it did not say.

    Raises:
        HostError: It is no such answer.
    """
    if answer["release"] is None:
        return Look(name, "not provisioned", "run acoupi-fleet provision")
    runtime = answer["runtime"] or {}
    recorder = runtime.get("recorder") or {}
    last = recorder.get("last_recording") or (runtime.get("store") or {}).get("last_recording") or {}
    disk = runtime.get("disk") or {}
    state, detail = _state(answer, runtime, recorder)
    return Look(
        host=name,
        state=state,
        detail=detail,
        release=answer["release"],
        recording=recorder.get("state") == "recording" and bool(recorder.get("frames_delta")),
        last_age=_age(last.get("created_on"), answer["clock"]),
        last_duration=_number(last, "duration"),
        last_level=_number(last, "rms"),
        level=_number(recorder, "level_rms"),
        disk_free=_number(disk, "free"),
        disk_total=_number(disk, "total"),
        days_left=_number(disk, "days_left"),
        clock_offset=clock_offset,
        clock_synced=(runtime.get("clock") or {}).get("synced"),
        backlog=_backlog(runtime.get("store")),
        memory_mode=bool(recorder.get("memory_mode")),
        counters=dict((runtime.get("store") or {}).get("counters") or {}),
        troubles=_troubles(runtime.get("board") or {}),
        last_recording=last or None,
        recorder=recorder or None,
    )


def _state(answer: Mapping[str, Any], runtime: Mapping[str, Any], recorder: Mapping[str, Any]) -> tuple[State, str]:
    """The one word for a sensor, worst things first."""
    asleep = sorted(name for name, state in answer["units"].items() if state != "active")
    if not runtime:
        return "failed", answer["error"] or "its program says nothing; look at journalctl -u 'acoupi-*' there"
    if not recorder:
        if (runtime.get("workers") or {}).get("recording", {}).get("alive"):
            return "stuck", "its recorder lives and has said nothing for a while; run acoupi-fleet restart"
        again = [name for name in asleep if answer["units"][name] == "activating"]
        if again:  # it waits some seconds after a crash; and where it crashes each time, only the journal knows why
            return "stopped", f"systemd starts {', '.join(again)} again; if it stays so, look at its journal there"
        return "stopped", f"{', '.join(asleep) or 'the recorder'} is not running; run acoupi-fleet restart"
    return _state_of(recorder, f"{', '.join(asleep)} is not active" if asleep else "")


def _state_of(recorder: Mapping[str, Any], otherwise: str) -> tuple[State, str]:
    """What a recorder that lives does; `otherwise` is said where it has nothing to say."""
    said, detail = recorder["state"], recorder.get("detail", "")
    if said not in _OF_RECORDER:
        return "failed", detail or f"the recorder is in state {said}"
    flows = bool(recorder.get("frames_delta"))
    if said in ("recording", "listening") and not flows:
        return "stuck", detail or "the microphone is open and delivers nothing; run acoupi-fleet restart"
    if said in ("recording", "listening") and recorder.get("silent"):
        return "SILENT", detail or "the last three recordings hold no sound; look at the microphone and its cable"
    return _OF_RECORDER[said], detail or otherwise


def _number(said: Mapping[str, Any], key: str) -> Any:
    """A number that a device says, or None where it says nothing."""
    value = said.get(key)
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"{key} is {value!r}")
    return value


def _age(created_on: str | None, device_now: float) -> float | None:
    return None if created_on is None else device_now - datetime.fromisoformat(created_on).timestamp()


def _troubles(board: Mapping[str, Any]) -> tuple[str, ...]:
    """What a person has to see to, in a few words each."""
    hot = (board.get("temperature") or 0.0) >= HOT
    return (
        *(("it is too hot",) if hot else ()),
        *(("its supply is too weak",) if board.get("undervoltage") else ()),
    )


def _backlog(store: Mapping[str, Any] | None) -> int | None:
    return None if store is None else int(store["backlog"]) + sum(store["outbox"].values())


class Clock:
    """How far a device's clock is ahead: it says its time first of all, and the moments before and after bound it."""

    def __init__(self) -> None:
        self._sent = time.time()
        self.offset: float | None = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Listen for the device's time among its events."""
        match event:
            case {"event": "clock", "clock": int() | float() as now}:
                self.offset = beyond_delay(now, self._sent, time.time())
            case _:
                pass


def beyond_delay(device: float, sent: float, received: float) -> float:
    """How far a device's clock is ahead, in seconds; 0 when the answer's time on its way can explain all of it.

    The device read its clock at some moment between `sent` and `received` (this computer's clock).
    """
    if device > received:
        return device - received
    return min(device - sent, 0.0)
