"""The ring, the frame clock and the levels: nothing torn, nothing unnoticed, times that stay right for days."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from acoupi_runtime.audio.frameclock import FrameClock
from acoupi_runtime.audio.levels import FLOOR, Levels
from acoupi_runtime.audio.ring import Ring
from acoupi_runtime.audio.trigger import LevelTrigger
from acoupi_runtime.configuration import TriggerConfig


def test_a_ring_gives_back_what_was_written_across_its_seam() -> None:
    ring = Ring(1000, 2, "<i2")
    out = np.zeros((1000, 2), "<i2")
    position = 0
    for count in (300, 300, 300, 300, 999, 1000, 1, 128):
        numbers = np.arange(ring.head, ring.head + count)
        ring.write(np.stack([numbers, -numbers], axis=1).astype("<i2"), 0.0)
        first, got = ring.read(position, out)
        assert (first, got) == (position, count)
        assert (out[:got, 0] == numbers).all()
        assert (out[:got, 1] == -numbers).all()
        position += got


def test_a_reader_that_is_too_slow_is_told_how_much_it_missed() -> None:
    ring = Ring(1000, 1, "<i2")
    for start in range(0, 2500, 500):
        ring.write(np.arange(start, start + 500, dtype="<i2"), 0.0)
    out = np.zeros((400, 1), "<i2")
    assert ring.read(200, out) == (1500, 400)
    assert (out[:, 0] == np.arange(1500, 1900)).all()
    assert ring.read(2500, out) == (2500, 0)


class Interrupted(np.ndarray[Any, np.dtype[np.int16]]):
    """An array into which a copy is held up in its middle, while the writer comes past."""

    ring: Ring | None = None

    def __setitem__(self, key: Any, value: Any) -> None:
        ring, Interrupted.ring = Interrupted.ring, None
        if ring is None:
            super().__setitem__(key, value)
            return
        half = len(value) // 2
        super().__setitem__(slice(0, half), value[:half])
        ring.write(np.arange(ring.head, ring.head + 900, dtype="<i2"), 0.0)
        super().__setitem__(slice(half, len(value)), value[half:])


def test_a_copy_that_the_writer_came_past_is_made_again() -> None:
    ring = Ring(1000, 1, "<i2")
    ring.write(np.arange(1000, dtype="<i2"), 0.0)
    out = np.zeros((600, 1), "<i2").view(Interrupted)
    Interrupted.ring = ring
    first, count = ring.read(100, out)
    assert (first, count) == (900, 600)
    assert (np.asarray(out)[:, 0] == np.arange(900, 1500)).all()


def test_a_reader_never_sees_a_torn_block_however_fast_the_writer_is() -> None:
    ring = Ring(40_000, 1, "<i4")
    done = threading.Event()

    def write() -> None:
        for start in range(0, 6_000_000, 3000):
            ring.write(np.arange(start, start + 3000, dtype="<i4"), 0.0)
        done.set()

    writer = threading.Thread(target=write)
    out = np.zeros((16_000, 1), "<i4")
    position = missed = 0
    writer.start()
    while not (done.is_set() and position == ring.head):
        first, count = ring.read(position, out)
        missed += first - position
        assert (out[:count, 0] == np.arange(first, first + count)).all()
        position = first + count
    writer.join()
    assert position == 6_000_000
    assert missed < position, "nothing at all was read"


@pytest.mark.parametrize("ppm", [-180.0, 0.0, 35.0, 250.0])
def test_times_stay_within_a_few_ms_over_a_day_of_drift_and_late_blocks(ppm: float) -> None:
    rate = 48_000 * (1 + ppm * 1e-6)
    clock, random = FrameClock(48_000), np.random.default_rng(7)
    worst, frame = 0.0, 0
    late = random.exponential(0.002, 600_000)
    late[random.random(len(late)) < 0.01] += 0.5  # stalls
    for step in range(24 * 3600 * 48_000 // 8192):
        frame += 8192
        clock.note(frame, 100 + frame / rate + float(late[step]))
        if step % 97 == 96:
            worst = max(worst, abs(clock.boottime_of(frame) - (100 + frame / rate)))
    assert worst < 0.005
    assert clock.true_samplerate == pytest.approx(rate, rel=1e-6)
    assert clock.lost() == ()
    assert abs(clock.frame_at(clock.boottime_of(frame + 12345)) - (frame + 12345)) <= 1


def test_the_rate_of_a_card_whose_crystal_warms_up_is_followed() -> None:
    clock, frame, now, worst = FrameClock(48_000), 0, 0.0, 0.0
    for step in range(6 * 3600 * 6):
        frame += 8000
        now += 8000 / (48_000 * (1 + 80e-6 * step / (6 * 3600 * 6)))
        clock.note(frame, now)
        if step > 1000:
            worst = max(worst, abs(clock.boottime_of(frame) - now))
    assert worst < 0.005


@pytest.mark.parametrize("says_so", [True, False])
def test_sound_that_a_card_lost_moves_the_times_of_what_follows(*, says_so: bool) -> None:
    clock, frame = FrameClock(48_000), 0
    for step in range(1200):
        lost = 24_000 if step >= 600 else 0
        if says_so and step == 600:
            clock.note_lost(frame)
        frame += 8000
        clock.note(frame, 100 + (frame + lost) / 48_000)
    assert clock.boottime_of(frame) == pytest.approx(100 + (frame + 24_000) / 48_000, abs=1e-6)
    assert clock.boottime_of(8000) == pytest.approx(100 + 8000 / 48_000, abs=1e-6)
    found = (600 * 8000,) if says_so else clock.lost()
    assert len(found) == 1
    assert 600 * 8000 - 5 * 48_000 <= found[0] <= 600 * 8000
    assert clock.missing_before(found[0]) == pytest.approx(24_000, abs=2)


def levels(values: list[int] | np.ndarray[tuple[int], np.dtype[np.int64]], bits: int = 16) -> Levels:
    found = Levels(bits)
    found.add(np.array(values, dtype="<i4")[:, None])
    return found


def test_levels_are_those_of_the_textbook() -> None:
    sine = np.round(32767 * np.sin(np.arange(48_000) * 0.1)).astype(np.int64)
    assert levels(sine).rms == pytest.approx(-3.01, abs=0.01)
    assert levels(sine).peak == pytest.approx(0, abs=0.01)
    assert levels(sine + 0).clipped > 0
    assert levels(sine // 10).rms == pytest.approx(-23.01, abs=0.01)
    assert levels(sine // 10).clipped == 0
    assert levels(sine * 256, bits=24).rms == pytest.approx(-3.01, abs=0.01)
    assert levels([]).rms is None


def test_levels_of_parts_are_those_of_the_whole() -> None:
    values = np.random.default_rng(3).integers(-9000, 9000, 30_000)
    parts = Levels(16)
    for start in range(0, 30_000, 777):
        parts.add(values[start : start + 777, None].astype("<i2"))
    whole = levels(values)
    assert (parts.peak, parts.clipped) == (whole.peak, whole.clipped)
    assert parts.rms == pytest.approx(whole.rms, abs=0.01)


@pytest.mark.parametrize(
    ("values", "silent"),
    [
        ([0] * 100, True),
        ([1234] * 100, True),
        ([0, 1, 2] * 100, True),
        ([0, 1, 3] * 100, False),
        ([5000 + n % 7 for n in range(1000)], False),
    ],
)
def test_a_dead_microphone_is_told_from_a_quiet_one(values: list[int], *, silent: bool) -> None:
    assert levels(values).silent is silent


def test_24_bits_of_faint_noise_below_90_db_are_silent() -> None:
    noise = np.random.default_rng(5).integers(-100, 100, 10_000)
    assert levels(noise, bits=24).silent
    assert not levels(noise * 100, bits=24).silent
    assert levels([0] * 10, bits=24).rms == FLOOR


def spans(trigger: LevelTrigger) -> list[tuple[int, int]]:
    return [(span.start, span.end) for span in trigger.spans]


@pytest.mark.parametrize("portion", [100, 333, 1000, 4096])
def test_a_trigger_keeps_the_sound_before_and_after_and_bridges_short_pauses(portion: int) -> None:
    rate = 1000
    trigger = LevelTrigger(TriggerConfig(level=-20, pre_roll=0.5, post_roll=1.0, max_duration=5), rate, 16)
    signal = np.zeros(40_000, "<i2")
    for start, end in ((5000, 5100), (5700, 5800), (20_000, 32_000)):
        signal[start:end] = np.where(np.arange(end - start) % 2, 20_000, -20_000)
    for start in range(0, len(signal), portion):
        trigger.hear(start, signal[start : start + portion, None])
    assert spans(trigger)[0] == (4500, 6800)
    assert spans(trigger)[1:] == [(19_500, 24_500), (24_500, 29_500), (29_500, 33_000)]
    assert trigger.over()


def test_a_trigger_stays_quiet_below_its_level() -> None:
    trigger = LevelTrigger(TriggerConfig(level=-20), 1000, 16)
    trigger.hear(0, np.tile(np.array([[3000], [-3000]], "<i2"), (5000, 1)))
    assert not trigger.spans
    trigger.hear(10_000, np.tile(np.array([[3400], [-3400]], "<i2"), (500, 1)))
    assert spans(trigger)[0][0] == 9000
