"""times: corrects, once, what was recorded before the clock was right. Writes the store, moves files.

A sensor without a clock chip starts in the past, and records at once all the same. Each recording knows the boottime
of its first frame; when the wall clock is synchronised, in the same boot, that says when it really was.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime

from acoupi_runtime.audio.guano import correct_time
from acoupi_runtime.clock import UNKNOWN_BOOT, Clock, wall_offset
from acoupi_runtime.store import Correction, Store, Unsynced
from acoupi_runtime.tasks.files import follow
from acoupi_runtime.tasks.pipeline import Pipeline

logger = logging.getLogger(__name__)

_BATCH = 200


def correct_times(store: Store, pipeline: Pipeline, clock: Clock) -> int:
    """Correct this boot's recordings if the clock is right by now, their messages and places too; returns how many."""
    if clock.boot_id == UNKNOWN_BOOT or not clock.synced():
        return 0
    corrected = 0
    while found := store.unsynced(clock.boot_id, _BATCH):
        offset = wall_offset(clock)
        corrections = [_correction(store, pipeline, one, offset) for one in found]
        follow(store.correct_times(corrections), durable=False)
        corrected += len(corrections)
        if len(found) < _BATCH:
            break
    if corrected:
        logger.warning("the clock is right now: the times of %d recordings were corrected", corrected)
    return corrected


def _correction(store: Store, pipeline: Pipeline, unsynced: Unsynced, offset: float) -> Correction:
    right = datetime.fromtimestamp(unsynced.boottime + offset, UTC)
    recording = unsynced.recording.model_copy(update={"created_on": right})
    if recording.path is not None:
        # Before the row, so that a crash between the two leads to both once more. A file that is gone has no time.
        with contextlib.suppress(OSError):
            correct_time(recording.path, right)
    outputs = store.get_model_outputs(recording)
    return Correction(
        recording.id,
        right,
        pipeline.manager.save_recording(recording, outputs),
        pipeline.messages(outputs),
    )
