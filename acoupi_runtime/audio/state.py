"""state: what the recorder says of itself while it runs. Writes and reads one small file in ACOUPI_HOME/run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from acoupi_runtime.clock import SystemClock
from acoupi_runtime.data import Instant, Noun
from acoupi_runtime.home import Home

STALE_AFTER = 20.0
"""Seconds after which a state is not believed any more: a card that stalls holds the recorder up for some seconds."""

Situation = Literal["starting", "recording", "listening", "no-microphone", "paused", "error"]


class LastRecording(Noun):
    """The recording that was completed last."""

    path: Path
    created_on: Instant
    duration: float
    rms: float | None
    peak: float | None


class RecorderState(Noun):
    """The recorder's live state."""

    state: Situation
    detail: str = ""
    """What is wrong and what to do, or what is being done."""
    pid: int
    boot_id: str
    boottime: float
    """CLOCK_BOOTTIME when this was written."""
    device: str | None = None
    """Full name of the microphone."""
    samplerate: int
    channels: int
    frames: int = 0
    """Received since the start of the process."""
    level_rms: float | None = None
    """dBFS, over the last second."""
    level_peak: float | None = None
    """dBFS, over the last second."""
    silent: bool = False
    """The last three recordings held what a dead microphone gives."""
    overflows: int = 0
    """Times that sound was lost between the microphone and the file."""
    lost_seconds: float = 0.0
    """Sound that should have been recorded and could not be written."""
    clock_synced: bool = False
    true_samplerate: float | None = None
    """Hz, as measured against the clock."""
    last_recording: LastRecording | None = None
    recordings: int = 0
    """Completed since the start of the process."""
    stream: str = ""
    """The opening of the microphone."""
    memory_mode: bool = False
    """Unfinished recordings are in memory: a power cut takes them."""


def write_state(home: Home, state: RecorderState) -> None:
    """Replace the state, whole; it is gone after a boot anyway, so that it need not be durable.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = home.recorder_file.with_suffix(".tmp")
    temporary.write_text(state.model_dump_json(), encoding="utf-8")
    temporary.replace(home.recorder_file)


def read_state(home: Home) -> RecorderState | None:
    """The state of the recorder that runs now; None if none runs, or it has been stuck."""
    try:
        state = RecorderState.model_validate_json(home.recorder_file.read_bytes())
    except (OSError, ValidationError):
        return None
    age = SystemClock().steady() - state.boottime
    # Not compared: boot_id. What a hardened unit reads in its own /proc may differ from what is read outside it
    # (containers cover that file). A state of an earlier boot is not of the last seconds of this one.
    if not 0 <= age <= STALE_AFTER or not _runs(state.pid):
        return None
    return state


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
