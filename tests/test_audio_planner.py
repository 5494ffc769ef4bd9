"""When recordings start: the window of the day, the grid of intervals, late ones, clock steps."""

from __future__ import annotations

from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acoupi_runtime.audio.planner import Window, next_start

BERLIN = "Europe/Berlin"


def window(start: str, end: str, zone: str = "UTC") -> Window:
    return Window(time.fromisoformat(start), time.fromisoformat(end), ZoneInfo(zone))


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("start", "end", "inside", "outside"),
    [
        ("06:00", "22:30", ["06:00:00", "12:00:00", "22:29:59"], ["05:59:59", "22:30:00", "23:59:59", "00:00:00"]),
        ("19:00", "07:00", ["19:00:00", "23:59:59", "00:00:00", "06:59:59"], ["18:59:59", "07:00:00", "12:00:00"]),
        ("00:00", "00:00", ["00:00:00", "12:00:00", "23:59:59"], []),
        ("09:00", "09:00", ["08:59:59", "09:00:00", "09:00:01"], []),
    ],
)
def test_a_window_contains_its_start_and_not_its_end(
    start: str, end: str, inside: list[str], outside: list[str]
) -> None:
    it = window(start, end)
    for text in inside:
        assert it.contains(at(f"2026-06-01T{text}")), text
    for text in outside:
        assert not it.contains(at(f"2026-06-01T{text}")), text


def test_the_window_is_of_the_configured_time_zone_in_summer_and_winter() -> None:
    it = window("19:00", "07:00", BERLIN)
    assert it.opens(at("2026-06-01T12:00:00")) == at("2026-06-01T17:00:00")
    assert it.opens(at("2026-12-01T12:00:00")) == at("2026-12-01T18:00:00")
    assert it.opened(at("2026-06-02T03:00:00")) == at("2026-06-01T17:00:00")


def test_an_opening_in_the_hour_that_summer_time_skips_or_repeats_exists_once() -> None:
    it = window("02:30", "05:00", BERLIN)
    skipped = it.opens(at("2026-03-28T23:00:00"))
    repeated = it.opens(at("2026-10-24T23:00:00"))
    assert skipped == at("2026-03-29T01:30:00")
    assert repeated == at("2026-10-25T00:30:00")


ALL_DAY = window("00:00", "00:00")
NIGHT = window("19:00", "07:00")


@pytest.mark.parametrize(
    ("name", "where", "previous", "earliest", "wall", "expected"),
    [
        # `wall` is the wall clock at steady 1000; times are in s of the steady clock.
        ("the first one starts at once", ALL_DAY, None, 1000, "2026-06-01T12:00:00", 1000),
        ("the next one is an interval later", ALL_DAY, 1000, 1000.5, "2026-06-01T12:00:00", 1010),
        ("what is due exactly now is not late", ALL_DAY, 1000, 1010, "2026-06-01T12:00:00", 1010),
        ("late ones are dropped, and the grid stays", ALL_DAY, 1000, 1034.2, "2026-06-01T12:00:00", 1040),
        ("it waits for the window", NIGHT, None, 1000, "2026-06-01T18:59:30", 1030),
        ("the opening starts the grid anew", NIGHT, 900, 1000, "2026-06-01T18:59:57", 1003),
        ("the opening is kept though it has just passed", NIGHT, 900, 1000, "2026-06-01T18:59:58", 1002),
        ("after the last one of the night comes the next evening", NIGHT, 995, 1000, "2026-06-01T06:59:58", 44202),
    ],
)
def test_the_next_start(
    name: str, where: Window, previous: float | None, earliest: float, wall: str, expected: float
) -> None:
    assert next_start(where, 10, previous, earliest, at(wall) - 1000) == pytest.approx(expected, abs=1e-3), name


def test_a_step_of_the_wall_clock_moves_the_window_and_not_the_grid() -> None:
    day = window("06:00", "22:00")
    before = at("2026-06-01T12:00:00") - 1000
    assert next_start(day, 10, 1000, 1001, before) == 1010
    assert next_start(day, 10, 1000, 1001, before + 3600) == 1010
    assert next_start(day, 10, 1000, 1001, before - 3600) == 1010
    closed = next_start(day, 10, 1000, 1001, before + 11 * 3600)
    assert closed == pytest.approx(1000 + 7 * 3600), "at 23 h it waits until 6 h"


@settings(deadline=None)
@given(
    start=st.times(),
    end=st.times(),
    period=st.floats(0.5, 5000),
    previous=st.none() | st.floats(0, 1e6),
    ahead=st.floats(-1e4, 1e6),
    wall=st.floats(0, 4e9),
    zone=st.sampled_from(["UTC", BERLIN, "America/St_Johns", "Pacific/Apia"]),
)
def test_a_start_is_never_late_never_early_and_always_in_the_window(
    start: time, end: time, period: float, previous: float | None, ahead: float, wall: float, zone: str
) -> None:
    where = Window(start.replace(microsecond=0), end.replace(microsecond=0), ZoneInfo(zone))
    earliest = (previous or 0) + ahead
    offset = wall - earliest
    found = next_start(where, period, previous, earliest, offset)
    assert found >= earliest - 1e-6 * period
    # An instant in s since 1970 has a resolution of some 100 ns, so that the edge itself may round to either side.
    assert where.contains(found + offset + 1e-3) or where.contains(found + offset)
