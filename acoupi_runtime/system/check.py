"""check: whether a sensor has what it needs. Asks the running recorder: a microphone in use is never opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.home import Home
from acoupi_runtime.programs import AcoupiProgram
from acoupi_runtime.system import files
from acoupi_runtime.system.status import open_store, responding_workers, watch_recorder
from acoupi_runtime.system.supervise import holder_of

LISTEN = 1.0
"""Seconds of live frames that the recorder is asked for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        verdict: `warning` says: it works, and is not as it should be.
        text: What was seen, and what to do.
    """

    what: str
    verdict: Literal["ok", "warning", "failed"]
    text: str


def check(home: Home) -> tuple[Finding, ...]:
    """Look at everything a sensor needs.

    Raises:
        ConfigurationError: If there is no home here, or its configuration is refused.
    """
    program = files.load_program(home)
    return tuple(_findings(program, home))


def _findings(program: AcoupiProgram[Any], home: Home) -> Iterator[Finding]:
    names = list(program.get_worker_config(program.config).names)
    if isinstance(program.config, BasicConfig):
        yield _microphone(program.config, home)
        yield _store(program)
    yield _workers(home, names)
    try:
        program.check(program.config)
    except AcoupiError as error:
        yield Finding("program", "failed", str(error))
    else:
        yield Finding("program", "ok", type(program).__module__)


def _microphone(config: BasicConfig, home: Home) -> Finding:
    state, frames = watch_recorder(home, LISTEN)
    if state is None:
        return _microphone_at_rest(config)
    if state.state in ("no-microphone", "error") or not frames:
        return Finding("microphone", "failed", f"{state.state}: {state.detail or 'no frames came in'}")
    heard = f"{state.device}: {frames} frames in about {LISTEN:g} s, {state.level_rms} dBFS"
    if state.silent:
        return Finding("microphone", "warning", f"{heard}; it is silent: see to its cable and its gain")
    if state.state == "paused":
        return Finding("microphone", "warning", f"{heard}; recording is paused: {state.detail}")
    return Finding("microphone", "ok", heard)


def _microphone_at_rest(config: BasicConfig) -> Finding:
    """No recorder runs: whether the one that is meant is there, without opening it."""
    from acoupi_runtime.audio import microphone
    from acoupi_runtime.audio.source import FILE

    wanted = config.microphone.device_name
    if wanted is not None and wanted.startswith(FILE):
        return Finding("microphone", "warning", f"{wanted}: no recorder runs, so that nothing was heard")
    try:
        name = microphone.find(wanted)
    except AcoupiError as error:
        return Finding("microphone", "failed", str(error))
    return Finding("microphone", "warning", f"{name}: it is there; no recorder runs, so that nothing was heard")


def _store(program: AcoupiProgram[Any]) -> Finding:
    try:
        store = open_store(program)
        if store is None:
            return Finding("store", "ok", "not there yet; it is made when the first recording is")
        try:
            backlog = store.backlog()
        finally:
            store.close()
    except (AcoupiError, OSError) as error:
        return Finding("store", "failed", str(error))
    return Finding("store", "ok", f"{store.path}: {backlog} recordings wait to be processed")


def _workers(home: Home, names: list[str]) -> Finding:
    missing = [name for name in names if holder_of(home.pid_file(name)) is None]
    if missing:
        return Finding("workers", "failed", f"{', '.join(missing)}: not running; `acoupi-runtime workers start`")
    answered = responding_workers(home, names)
    silent = [name for name in names if name not in answered]
    if silent:
        return Finding("workers", "failed", f"{', '.join(silent)}: no answer through Redis at {home.redis_socket}")
    return Finding("workers", "ok", f"{', '.join(answered)} answer")
