"""energy: a detector that hears what is louder than its surroundings. Reads the recording's file; imports numpy late.

The sound is cut into overlapping windows of about 10 ms. A window belongs to an event when the energy of its band is
well above the floor, which is what the quieter windows around it have. Memory does not grow with the recording: half
a minute of it is looked at together, as a few numbers a window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acoupi_runtime.data import (
    BoundingBox,
    Detection,
    ModelOutput,
    PredictedTag,
    PredictionType,
    Recording,
    Tag,
)
from acoupi_runtime.errors import RecordingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_WINDOW = 0.01
"""Seconds, about: windows are a power of two long, for the FFT."""
_STRETCH = 30.0
"""Seconds that share one floor."""
_BLOCK = 1 << 17
"""Values that are read and transformed at once."""
_STRIPES = 64
"""Parts of the band whose energy is kept for each window, to say where in it an event is."""
_FLOOR_SHARE = 0.2
"""Share of the windows that are below the floor."""
_SILENCE = 1e-12
"""Energy below which there is nothing, whatever the floor: far below the steps of a converter of 16 bits."""
_LEAST = 6.0
"""dB over the floor at which a window belongs to an event; the energy of noise stays well within."""
_MOST = 30.0
"""dB over the floor at which the score is 1."""
_GAP = 0.02
"""Seconds of quiet within one event."""
_WIDTH = 0.1
"""Share of the loudest stripe's energy with which a stripe still belongs to the event."""


@dataclass(slots=True)
class _Event:
    """Windows that are louder than the floor."""

    first: int
    last: int
    excess: float
    stripes: Floats

    def joined(self, other: _Event) -> _Event:
        return _Event(self.first, other.last, max(self.excess, other.excess), self.stripes + other.stripes)


class EnergyDetector:
    """Finds events in a band of frequencies.

    Args:
        low_frequency: Hz.
        high_frequency: Hz; above half of the samplerate there is nothing to hear.
    """

    name = "energy"
    version = "1"

    def __init__(self, low_frequency: float, high_frequency: float) -> None:
        # All that listening needs is imported before it: where a card does not answer in the middle of an import, half
        # a module stays in the process. `ma` is what numpy's quantiles ask for.
        import numpy.fft
        import numpy.ma  # noqa: F401

        import acoupi_runtime.audio.wavfile  # noqa: F401

        self._low = low_frequency
        self._high = high_frequency

    def run(self, recording: Recording) -> ModelOutput:
        """What is heard in a recording.

        Raises:
            RecordingError: If its file cannot be read, or has nothing in the band.
        """
        import numpy as np

        rate = recording.samplerate
        size = 1 << max(5, round(float(np.log2(rate * _WINDOW))))
        hop = size // 2
        bins = np.fft.rfftfreq(size, 1 / rate)
        band = np.flatnonzero((bins >= self._low) & (bins <= self._high))
        if not band.size:
            raise RecordingError(
                f"{recording.path}: at {rate} Hz there is nothing from {self._low:g} to {self._high:g} Hz; lower them"
            )
        stripes = np.array_split(band, min(_STRIPES, band.size))
        edges = np.array([stripe[0] for stripe in stripes])
        tops = np.array([stripe[-1] + 1 for stripe in stripes])
        events: list[_Event] = []
        first = 0
        gap = max(1, round(_GAP * rate / hop))
        for energies in _stretches(_windows(recording, size, hop, edges, int(tops[-1])), round(_STRETCH * rate / hop)):
            for event in _events(energies, first, gap):
                if events and event.first - events[-1].last <= gap:
                    events[-1] = events[-1].joined(event)
                else:
                    events.append(event)
            first += len(energies)
        step = rate / size
        detections = tuple(
            self._detection(event, hop / rate, size / rate, edges * step, tops * step) for event in events
        )
        return ModelOutput(name_model=self.name, recording=recording, detections=detections)

    def _detection(self, event: _Event, hop: float, width: float, lows: Any, highs: Any) -> Detection:
        loud = event.stripes >= event.stripes.max() * _WIDTH
        score = min(1.0, (event.excess - _LEAST) / (_MOST - _LEAST))
        return Detection(
            prediction_type=PredictionType.EVENT,
            location=BoundingBox.from_coordinates(
                event.first * hop, float(lows[loud].min()), event.last * hop + width, float(highs[loud].max())
            ),
            detection_score=score,
            tags=(PredictedTag(tag=Tag(key="sound", value="event"), confidence_score=score),),
        )


def _events(energies: Floats, offset: int, gap: int) -> Iterator[_Event]:
    """Events in one stretch; `energies` has a row for each window and a column for each stripe."""
    import numpy as np

    total = energies.sum(axis=1)
    floor = max(float(np.quantile(total, _FLOOR_SHARE)), _SILENCE)
    quiet = np.quantile(energies, _FLOOR_SHARE, axis=0)
    excess = 10 * np.log10(np.maximum(total, _SILENCE) / floor)
    loud = np.flatnonzero(excess >= _LEAST)
    for group in np.split(loud, np.flatnonzero(np.diff(loud) > gap) + 1):
        if group.size:
            first, last = int(group[0]), int(group[-1])
            above = np.maximum(energies[group] - quiet, 0).sum(axis=0)
            yield _Event(offset + first, offset + last, float(excess[group].max()), above)


def _stretches(windows: Iterator[Floats], length: int) -> Iterator[Floats]:
    import numpy as np

    held: list[Floats] = []
    count = 0
    for rows in windows:
        held.append(rows)
        count += len(rows)
        if count >= length:
            yield np.concatenate(held)
            held, count = [], 0
    if held:
        yield np.concatenate(held)


def _windows(recording: Recording, size: int, hop: int, edges: Any, top: int) -> Iterator[Floats]:
    """The energy of each window in each stripe, block by block."""
    import numpy as np

    shape = np.hanning(size + 1)[:size].astype(np.float32)
    scale = 1 / (np.sum(shape**2) * size)
    rest: Any = None
    for block in _blocks(recording):
        sound = block if rest is None else np.concatenate((rest, block))
        count = (len(sound) - size) // hop + 1
        if count < 1:
            rest = sound
            continue
        rows = np.zeros((count, len(edges)), np.float32)
        for channel in sound.T:
            cut = np.lib.stride_tricks.sliding_window_view(channel, size)[: count * hop : hop]
            power = np.abs(np.fft.rfft(cut * shape, axis=1)) ** 2
            rows += np.add.reduceat(power[:, :top], edges, axis=1) * np.float32(scale / sound.shape[1])
        yield rows
        rest = sound[count * hop :]


def _blocks(recording: Recording) -> Iterator[Floats]:
    """The sound of a file, full scale being 1: arrays of frames by channels."""
    path = recording.path
    if path is None:
        raise RecordingError(f"recording {recording.id}: it has no file; there is nothing to listen to")
    if path.suffix == ".wav":
        yield from _wav_blocks(path)
        return
    from acoupi_runtime.audio.flacfile import read_blocks

    yield from read_blocks(path, max(1, _BLOCK // recording.audio_channels))


def _wav_blocks(path: Path) -> Iterator[Floats]:
    # Without libsndfile, which costs memory that most sensors do not have to spend.
    import numpy as np

    from acoupi_runtime.audio.wavfile import read_head

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = read_head(descriptor)
        if head is None:
            raise RecordingError(f"{path}: is not a recording of ours; it cannot be listened to")
        form = head.form
        step = max(1, _BLOCK // form.channels) * form.frame_size
        for place in range(0, head.data_size, step):
            raw = os.pread(descriptor, min(step, head.data_size - place), head.start + place)
            raw = raw[: len(raw) // form.frame_size * form.frame_size]
            yield _unpack(np.frombuffer(raw, np.uint8), form.bits).reshape(-1, form.channels)
    finally:
        os.close(descriptor)


def _unpack(raw: Any, bits: int) -> Floats:
    import numpy as np

    if bits == 24:  # noqa: PLR2004
        wide = np.zeros((raw.size // 3, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        raw, bits = wide.reshape(-1), 32
    values: Floats = raw.view(f"<i{bits // 8}").astype(np.float32) / np.float32(2 ** (bits - 1))
    return values
