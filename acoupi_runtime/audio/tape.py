"""tape: one opening of the microphone: its frames, when they were heard, and where sound is missing. Opens nothing."""

from __future__ import annotations

from uuid import uuid4

from acoupi_runtime.audio.frameclock import FrameClock
from acoupi_runtime.audio.ring import Frames, Ring
from acoupi_runtime.audio.take import Moment
from acoupi_runtime.clock import Clock, wall_offset

_MOST_LOSSES = 10_000


class Tape:
    """What has been heard since the microphone was opened.

    Args:
        samplerate: Hz, as asked of the microphone.
        ring: Where it writes to: the last seconds.
        spare: Frames of the ring that a recording which is to begin leaves to the writer.
        clock: The machine's, or a simulation.

    Attributes:
        id: The opening's name, as recordings carry it.
        head: Frames that have come in, as far as `listen` has taken note of them.
        losses: Frames before which sound is missing, in order.
        lost: How often sound went missing.
    """

    def __init__(self, samplerate: int, ring: Ring, spare: int, clock: Clock) -> None:
        self.id = uuid4().hex
        self.samplerate = samplerate
        self.ring = ring
        self.head = 0
        self.losses: list[int] = []
        self.lost = 0
        self._spare = spare
        self._clock = clock
        self._frames = FrameClock(samplerate)

    def listen(self) -> bool:
        """Take in the notes about the blocks that have come in. Says whether any has."""
        heard = False
        while self.ring.marks:
            mark = self.ring.marks.popleft()
            if mark.lost_before is not None:
                self._missing(mark.lost_before)
                self._frames.note_lost(mark.lost_before)
            self._frames.note(mark.frame, mark.boottime)
            self.head = mark.frame
            heard = True
        for frame in self._frames.lost():
            self._missing(frame)
        return heard

    @property
    def reach(self) -> int:
        """The first frame that can still be recorded without haste: the writer is coming after it."""
        oldest = self.ring.oldest
        return oldest + self._spare if oldest else 0

    def read(self, start: int, out: Frames) -> tuple[int, int]:
        """Copy frames as `Ring.read` does, up to the head."""
        return self.ring.read(start, out[: max(0, self.head - start)])

    @property
    def true_samplerate(self) -> float | None:
        """Hz, as measured; None until it has been."""
        return self._frames.true_samplerate

    def boottime_of(self, frame: int) -> float:
        """CLOCK_BOOTTIME of a frame, in s."""
        return self._frames.boottime_of(frame)

    def frame_at(self, boottime: float) -> int:
        """The frame that is heard at an instant."""
        return self._frames.frame_at(boottime)

    def offset(self) -> float:
        """What is added to the steady clock to get the wall clock, now."""
        return wall_offset(self._clock)

    def moment(self, frame: int) -> Moment:
        """All that the clocks say of a frame, now."""
        clock = self._clock
        boottime = self._frames.boottime_of(frame)
        return Moment(clock.boot_id, boottime, self.offset(), clock.synced(), self.true_samplerate)

    def overflows(self, start: int, end: int) -> list[tuple[int, int]]:
        """Where sound is missing within some frames: the frame, and about how many are missing before it."""
        return [(frame, self._frames.missing_before(frame)) for frame in self.losses if start < frame < end]

    def _missing(self, frame: int) -> None:
        self.lost += 1
        self.losses.append(frame)
        del self.losses[:-_MOST_LOSSES]
