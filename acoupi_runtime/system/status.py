"""status: what a sensor does now, as it says itself. Reads live state, the store and the disk; changes nothing.

It asks whoever is at work: it never opens a microphone, and no list of files stands in for a recorder that lives.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import acoupi_runtime
from acoupi_runtime.audio.state import RecorderState, read_state
from acoupi_runtime.clock import SystemClock
from acoupi_runtime.configuration import BasicConfig, CeleryConfig
from acoupi_runtime.data import now
from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.home import Home
from acoupi_runtime.programs import AcoupiProgram
from acoupi_runtime.system import files
from acoupi_runtime.system.supervise import holder_of
from acoupi_runtime.tasks.board import Board

if TYPE_CHECKING:
    from acoupi_runtime.store import Store

PING_TIMEOUT = 2.0
"""Seconds that workers have to answer; when all have, nobody waits for the rest of it."""
_LATE_STATE = 5.0


def status(home: Home, *, watch_frames: float | None = None, responding: bool = True) -> dict[str, Any]:
    """What this sensor does now, as JSON has it.

    Args:
        home: ACOUPI_HOME.
        watch_frames: Seconds of live frames to wait for; their number is then `frames_delta` of the recorder.
        responding: Whether the workers are asked for an answer through Redis, which takes Celery's import time.

    Raises:
        ConfigurationError: If there is no home here, or its program cannot be loaded.
    """
    program = files.configured_program(home)
    pids = {name: holder_of(home.pid_file(name)) for name in program.get_worker_config(program.config).names}
    first = read_state(home)
    answers = responding_workers(home, list(pids)) if responding and any(pids.values()) else []
    stored, deployment, trouble = _stored(program)
    return {
        "home": str(home.root),
        "version": acoupi_runtime.__version__,
        "program": home.program_name_file.read_text(encoding="utf-8").strip(),
        "workers": {name: {"pid": pid, "alive": pid is not None} for name, pid in pids.items()},
        "recorder": _recorder(home, first, watch_frames),
        "celery": {"responding": answers},
        "store": stored,
        "store_error": trouble,
        "disk": _disk(program, stored),
        "board": dataclasses.asdict(Board.read()),
        "clock": {"synced": SystemClock().synced(), "now": now().isoformat()},
        "deployment": deployment,
    }


def responding_workers(home: Home, names: list[str], timeout: float = PING_TIMEOUT) -> list[str]:
    """The workers, of these, that answer through Redis; none where Redis is away."""
    if not home.redis_socket.exists():
        return []
    from acoupi_runtime.system import apps

    app = apps.bare_app(home, CeleryConfig())
    try:
        # Asked by name, exactly these answer: so their number tells when all have.
        replies = app.control.ping(list(map(files.node, names)), timeout=timeout, limit=len(names)) or []
    except Exception:  # noqa: BLE001 - of kombu, redis or the kernel: nobody answers
        return []
    finally:
        app.close()
    answered = {node for reply in replies for node in reply}
    return [name for name in names if files.node(name) in answered]


def watch_recorder(home: Home, seconds: float) -> tuple[RecorderState | None, int]:
    """The recorder's state after some seconds, and how many frames it took in meanwhile."""
    return _watched(home, read_state(home), seconds)


def _watched(home: Home, first: RecorderState | None, seconds: float) -> tuple[RecorderState | None, int]:
    """Wait until the recorder has written a state that is so many seconds younger than the first."""
    if first is None:
        return None, 0
    deadline = time.monotonic() + seconds + _LATE_STATE
    while True:
        state = read_state(home)
        if state is None or state.pid != first.pid:
            return state, 0
        if state.boottime - first.boottime >= seconds or time.monotonic() > deadline:
            return state, state.frames - first.frames
        time.sleep(0.1)


def _recorder(home: Home, first: RecorderState | None, watch_frames: float | None) -> dict[str, Any] | None:
    if watch_frames is None:
        return None if first is None else first.model_dump(mode="json")
    state, frames = _watched(home, first, watch_frames)
    return None if state is None else {**state.model_dump(mode="json"), "frames_delta": frames}


def open_store(program: AcoupiProgram[Any]) -> Store | None:
    """The program's store, if it keeps one and it is there already."""
    if not isinstance(program.config, BasicConfig):
        return None
    path = files.store_path(program.config)
    if not path.exists():
        return None
    from acoupi_runtime.store import Store

    return Store.open(path)


def _stored(program: AcoupiProgram[Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str | None]:
    """The store's summary, the running deployment, and what is wrong with the store."""
    try:
        store = open_store(program)
        if store is None:
            return None, None, None
        try:
            deployment = store.current_deployment()
            return store.summary(), None if deployment is None else deployment.model_dump(mode="json"), None
        finally:
            store.close()
    except (AcoupiError, OSError) as error:
        return None, None, str(error)


def _disk(program: AcoupiProgram[Any], stored: dict[str, Any] | None) -> dict[str, Any] | None:
    """The file system of the recordings, and for how many days it lasts at the pace of the last day."""
    if not isinstance(program.config, BasicConfig):
        return None
    place = Path(program.config.paths.recordings).expanduser().absolute()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    a_day = (stored or {}).get("bytes_per_day") or 0.0
    room = usage.free - program.config.retention.reserve * 1e6
    return {
        "free": usage.free,
        "total": usage.total,
        "days_left": round(max(room, 0.0) / a_day, 1) if a_day > 0 else None,
    }
