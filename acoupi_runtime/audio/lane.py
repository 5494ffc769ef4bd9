"""lane: writes the frames that are due from the ring into files, one file at a time. Touches the spool.

A file that cannot be written is closed with what is in it, and tried again while the ring still holds the rest: trouble
shorter than the buffer costs nothing. What then falls out of the ring is counted.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acoupi_runtime.audio.cuts import Cuts
from acoupi_runtime.audio.paths import make_spool
from acoupi_runtime.audio.ring import ring_dtype
from acoupi_runtime.audio.take import Take
from acoupi_runtime.audio.tape import Tape
from acoupi_runtime.audio.trigger import Span
from acoupi_runtime.audio.wavfile import MOST_BYTES
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.data import Capture, Deployment, Recording
from acoupi_runtime.disk import require_room
from acoupi_runtime.errors import RecordingError

log = logging.getLogger(__name__)

_AT_ONCE = 1 << 16
"""Frames that are copied out of the ring in one go."""
_TRY_AGAIN = 1.0
"""Seconds until a file that could not be written is tried again."""
_MOST_OVERFLOWS = 64
"""Positions that are kept with one recording: the metadata has its room."""
_ENOUGH = 64e6
"""Bytes of room with which a recording is begun, however long it is to be."""
_HIGHER_BITS = 8
"""A ring holds 24 bits in the upper three bytes of four."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why nothing can be written now."""

    full: bool
    text: str


class Lane:
    """Recordings of one kind, one after the other.

    Attributes:
        trouble: Why nothing can be written now; None if it can.
        lost: Frames that should have been recorded and were not.
    """

    def __init__(
        self,
        config: BasicConfig,
        spool: Path,
        cuts: Cuts,
        deployment: Callable[[], Deployment],
        completed: Callable[[Recording, Capture], None],
        *,
        full_file: Path | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._config = config
        self._spool = spool
        self._cuts = cuts
        self._deployment = deployment
        self._completed = completed
        self._full_file = full_file
        microphone = config.microphone
        frame_size = microphone.audio_channels * config.recording.bits // 8
        self._most = most_bytes // frame_size
        self._needs = min(config.recording.duration * microphone.samplerate * frame_size, _ENOUGH)
        self._out = np.zeros((_AT_ONCE, microphone.audio_channels), ring_dtype(config.recording.bits))
        self._span: Span | None = None
        self._position = 0
        self._take: Take | None = None
        self._gaps: list[tuple[int, int]] = []
        self._try_again = 0.0
        self.trouble: Trouble | None = None
        self.lost = 0

    @property
    def recording(self) -> bool:
        """Whether a file is being written."""
        return self._take is not None

    @property
    def until(self) -> int | None:
        """The frame at which the current recording ends, as far as is known; None if there is none."""
        return None if self._span is None else self._span.end

    def advance(self, tape: Tape, now: float) -> None:
        """Write all that has come in and is due."""
        while self._begin(tape, now) and self._write(tape, now):
            pass

    def finish(self, tape: Tape, now: float) -> None:
        """Close what is being written: the tape ends here."""
        if self._take is None and self._span is not None:
            self._try_again = now  # what could not be written a moment ago has no later moment
            self.advance(tape, now)
        if self._take is not None:
            self._close(tape, now)
        elif self._span is not None:
            self.lost += max(0, min(tape.head, self._span.end) - self._position)
        if self._span is not None:
            self._cuts.done(self._span, tape)
            self._span = None

    def _begin(self, tape: Tape, now: float) -> bool:
        """Have a file to write to. Says whether there is one."""
        if self._span is None:
            span = self._cuts.next(tape)
            if span is None or span.start >= tape.head:
                return False
            self._span, self._position = span, span.start
        if self._take is None:
            if self._gave_up(tape, self._span):
                return True
            if now < self._try_again:
                return False
            return self._open(tape, now)
        return True

    def _gave_up(self, tape: Tape, span: Span) -> bool:
        """Count what has fallen out of the ring. Says whether that is all of the span."""
        gone = min(tape.ring.oldest, span.end) - self._position
        if gone > 0:
            self.lost += gone
            self._position += gone
        if self._position < span.end or not self._cuts.final(span):
            return False
        self._cuts.done(span, tape)
        self._span = None
        return True

    def _open(self, tape: Tape, now: float) -> bool:
        try:
            make_spool(self._spool)
            require_room(self._spool, self._config.retention.reserve * 1e6 + self._needs)
            self._require_share()
            self._take = Take(
                self._spool,
                self._config,
                self._deployment(),
                stream=tape.id,
                start=self._position,
                trigger=self._cuts.kind,
                moment=tape.moment(self._position),
            )
        except (OSError, RecordingError) as error:
            self._fail(error, now)
            return False
        self._gaps = []
        self._end_trouble()
        return True

    def _require_share(self) -> None:
        """See whether recordings may have more room than they take; who does the housekeeping says so."""
        if self._full_file is not None and self._full_file.exists():
            raise OSError(errno.ENOSPC, "recordings have reached program.retention.max_size")

    def _write(self, tape: Tape, now: float) -> bool:
        """Write one portion. Says whether there may be more to do."""
        span, take = self._span, self._take
        if span is None or take is None:
            return span is None
        room = min(span.end - self._position, len(self._out), self._most - take.frames)
        first, count = tape.read(self._position, self._out[:room])
        gone = min(first, span.end) - self._position
        if gone > 0:
            self._gaps.append((take.frames, gone))
            self.lost += gone
            self._position += gone
            tape.lost += 1
            return True
        block = self._out[:count]
        if self._out.dtype.itemsize > 2:  # noqa: PLR2004 - 16 bits stand as they are
            np.right_shift(block, _HIGHER_BITS, out=block)
        before = take.frames
        try:
            take.write(block)
        except OSError as error:
            self._position += take.frames - before
            self._close(tape, now)
            self._fail(error, now)
            return False
        self._position += count
        if self._position >= span.end and self._cuts.final(span):
            self._close(tape, now)
            self._cuts.done(span, tape)
            self._span = None
            return True
        if take.frames >= self._most:
            self._close(tape, now)
            return True
        return count > 0

    def _close(self, tape: Tape, now: float) -> None:
        take = self._take
        assert take is not None  # noqa: S101 - for the type checker
        self._take = None
        try:
            made = take.complete(tape.moment(take.start), self._overflows(tape, take))
        except OSError as error:
            # Its sound is in the .part, from which it is repaired later.
            self._fail(error, now)
            return
        if made is not None:
            self._completed(*made)

    def _overflows(self, tape: Tape, take: Take) -> list[tuple[int, int]]:
        found = list(self._gaps)
        for frame, missing in tape.overflows(take.start, self._position):
            skipped = sum(gone for at, gone in self._gaps if at + take.start < frame)
            found.append((frame - take.start - skipped, missing))
        return sorted(found)[:_MOST_OVERFLOWS]

    def _fail(self, error: Exception, now: float) -> None:
        trouble = _trouble(error, self._spool)
        if self.trouble != trouble:
            log.error("%s", trouble.text)
        self.trouble = trouble
        self._try_again = now + _TRY_AGAIN

    def _end_trouble(self) -> None:
        if self.trouble is not None:
            log.warning("%s: recordings can be written again", self._spool)
        self.trouble = None


def _trouble(error: Exception, spool: Path) -> Trouble:
    """What to say. It names no single file: the same trouble is said once, however many files it hits."""
    if not isinstance(error, OSError):
        return Trouble(full=False, text=str(error))
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    cure = "make room, or let program.retention do so" if full else "see whether the card is worn out or read-only"
    return Trouble(full, f"{spool}: {error.strerror or error}; {cure}")
