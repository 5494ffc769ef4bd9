"""sound: what the virtual sensors hear. Writes wav files; made here, so that nobody's recordings travel with us."""

from __future__ import annotations

import array
import math
import random
import sys
import wave
from pathlib import Path

SAMPLERATE = 48_000
_SECONDS = 6.0
_PEAK = 32_767


def silence(path: Path) -> None:
    """A microphone that hears nothing at all, as one with a broken cable does."""
    _write(path, array.array("h", bytes(2 * int(SAMPLERATE * _SECONDS))))


def calls(path: Path, pitch: float, seed: int) -> None:
    """An animal that calls over some wind.

    Args:
        path: The file.
        pitch: Hz at which a call begins; it falls by a quarter.
        seed: Whose voice it is: the same seed gives the same sound.
    """
    voice = random.Random(seed)  # noqa: S311 - a sound, not a secret
    samples = array.array("h", (int(voice.gauss(0, 60)) for _ in range(int(SAMPLERATE * _SECONDS))))
    start = 0.2
    while start < _SECONDS - 0.5:
        length = voice.uniform(0.15, 0.3)
        phase = 0.0
        for index in range(int(length * SAMPLERATE)):
            along = index / (length * SAMPLERATE)
            phase += 2 * math.pi * pitch * (1 - along / 4) / SAMPLERATE
            at = int(start * SAMPLERATE) + index
            loud = 0.3 * math.sin(math.pi * along) * math.sin(phase)
            samples[at] = max(-_PEAK, min(_PEAK, samples[at] + int(_PEAK * loud)))
        start += length + voice.uniform(0.1, 0.9)
    _write(path, samples)


def _write(path: Path, samples: array.array[int]) -> None:
    if sys.byteorder == "big":
        samples.byteswap()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLERATE)
        file.writeframes(samples.tobytes())
