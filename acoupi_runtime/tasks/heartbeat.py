"""heartbeat: what a sensor says of itself from time to time, as a message. Reads the system; stores nothing."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acoupi_runtime.audio.state import read_state
from acoupi_runtime.clock import Clock
from acoupi_runtime.data import Message, Metric
from acoupi_runtime.home import Home
from acoupi_runtime.store import Store
from acoupi_runtime.tasks.board import Board
from acoupi_runtime.tasks.retention import Room, days_left

_SERIAL = Path("/sys/firmware/devicetree/base/serial-number")
_NOTHING_KNOWN: dict[str, Any] = {"bytes_per_day": 0.0, "outbox": {}, "counters": {}}


def heartbeat(
    store: Store | None, home: Home, recordings: Path, reserve: float, clock: Clock, *, trouble: str | None = None
) -> Message:
    """A heartbeat, as the reference system's receivers read it, and with the recorder and the counters beside.

    Args:
        store: What has happened; None where it says nothing.
        home: Whose recorder.
        recordings: On which file system.
        reserve: Megabytes that are kept free.
        clock: What time it is.
        trouble: What is wrong with the store.
    """
    sent_on = datetime.fromtimestamp(clock.wall(), UTC)
    summary = _NOTHING_KNOWN if store is None else store.summary()
    room = Room.at(recordings)
    recorder = read_state(home)
    board = Board.read()
    troubles = [
        word
        for word, is_so in (
            (trouble or "", trouble is not None),
            ("no recorder", recorder is None),
            ("no microphone", recorder is not None and recorder.state == "no-microphone"),
            ("recording is paused", recorder is not None and recorder.state == "paused"),
            ("recorder in error", recorder is not None and recorder.state == "error"),
            ("silent", recorder is not None and recorder.silent),
        )
        if is_so
    ]
    troubles += board.troubles
    left = days_left(room, reserve, summary["bytes_per_day"])
    deployment = None if store is None else store.current_deployment()
    metrics = [
        Metric(name=name, value=value, unit=unit, captured_on=sent_on)
        for name, value, unit in (
            ("storage_free", room.free, "B"),
            ("storage_total", room.total, "B"),
            *((("storage_days_left", left, "d"),) if left is not None else ()),
            *((("backlog", summary["backlog"], "recordings"),) if store is not None else ()),
            *((f"outbox_{name}", number, "messages") for name, number in summary["outbox"].items()),
            ("uptime", clock.steady(), "s"),
            *_system_metrics(board),
        )
    ]
    content = {
        "sent_on": sent_on.isoformat(),
        "device_id": device_id(),
        "status": "OK" if not troubles else ", ".join(troubles),
        "metrics": [metric.model_dump(mode="json") for metric in metrics],
        "deployment": None if deployment is None else deployment.model_dump(mode="json"),
        "recorder": None if recorder is None else recorder.model_dump(mode="json"),
        "counters": summary["counters"],
        "clock_synced": clock.synced(),
    }
    return Message(content=json.dumps(content), created_on=sent_on)


def device_id() -> str:
    """The board's serial number; without one, the network card's."""
    try:
        return _SERIAL.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return f"{uuid.getnode():012x}"


def _system_metrics(board: Board) -> Iterator[tuple[str, float, str]]:
    yield "load", os.getloadavg()[0], "processes"
    if board.temperature is not None:  # not every machine says it
        yield "temperature", board.temperature, "degC"
    if board.undervoltage is not None:
        yield "undervoltage", float(board.undervoltage), "bool"
