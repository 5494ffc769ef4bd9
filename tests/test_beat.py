"""Tests of the beat: simulated clocks, every kind of schedule, nothing sent twice and nothing made up."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

from acoupi_runtime.system.beat import Beat, Entry

NOON = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)


@dataclass
class Clocks:
    """Time that goes on when it is told to, and a wall clock that can be set."""

    elapsed: float = 1000.0
    set_by: timedelta = timedelta()

    def monotonic(self) -> float:
        return self.elapsed

    def wall(self) -> datetime:
        return NOON + timedelta(seconds=self.elapsed - 1000) + self.set_by


@dataclass
class Redis:
    """Takes what is sent while it is there, and notes when."""

    clocks: Clocks
    away: bool = False
    sent: list[tuple[str, datetime]] = field(default_factory=list)
    lifetimes: dict[str, float] = field(default_factory=dict)

    def send(self, entry: Entry, lifetime: float) -> bool:
        if self.away:
            return False
        self.sent.append((entry.name, self.clocks.wall()))
        self.lifetimes[entry.name] = lifetime
        return True

    def times(self, name: str = "task") -> list[str]:
        return [f"{at:%H:%M:%S}" for sent, at in self.sent if sent == name]


@dataclass
class Simulation:
    """A beat over simulated clocks."""

    entries: list[Entry]
    clocks: Clocks = field(default_factory=Clocks)

    def __post_init__(self) -> None:
        self.redis = Redis(self.clocks)
        self.beat = Beat(self.entries, self.redis.send, self.clocks)

    def run(self, seconds: float) -> None:
        """Let time pass as `Beat.run` does: from one wake-up to the next."""
        end = self.clocks.elapsed + seconds
        while self.clocks.elapsed < end:
            pause = self.beat.tick()
            assert pause > 0
            self.clocks.elapsed = min(self.clocks.elapsed + pause, end)
        self.beat.tick()


def every(seconds: float) -> Simulation:
    return Simulation([Entry("task", "celery", seconds)])


def at(**fields: str) -> Simulation:
    """A beat with one crontab, in UTC."""
    app = Celery(set_as_current=False)
    return Simulation([Entry("task", "celery", crontab(app=app, **fields))])


def test_an_interval_starts_at_once_and_keeps_its_pace() -> None:
    simulation = every(20)
    simulation.run(61)
    assert simulation.redis.times() == ["12:00:30", "12:00:50", "12:01:10", "12:01:30"]


def test_an_interval_does_not_notice_that_the_clock_is_set() -> None:
    simulation = every(10)
    simulation.run(1)
    for step in (timedelta(hours=-1), timedelta(hours=2), timedelta(days=-20_000)):
        simulation.clocks.set_by = step
        simulation.run(30)
    assert len(simulation.redis.sent) == 10


def test_intervals_missed_while_redis_is_away_become_one() -> None:
    simulation = every(10)
    simulation.redis.away = True
    simulation.run(3600)
    simulation.redis.away = False
    simulation.run(29)
    assert 3 <= len(simulation.redis.sent) <= 4
    assert simulation.redis.lifetimes == {"task": 10}


def test_intervals_missed_while_the_machine_was_asleep_become_one() -> None:
    simulation = every(10)
    simulation.run(1)
    simulation.clocks.elapsed += 3600
    simulation.run(1)
    assert len(simulation.redis.sent) == 2


def test_a_time_of_day_is_sent_once_in_each_of_its_slots() -> None:
    simulation = at(minute="*/5")
    simulation.run(900)
    assert simulation.redis.times() == ["12:05:00", "12:10:00", "12:15:00"]


def test_a_time_of_day_is_not_repeated_when_the_clock_is_corrected_back() -> None:
    simulation = at(minute="*/5")
    simulation.run(271)
    assert simulation.redis.times() == ["12:05:00"]
    simulation.clocks.set_by = timedelta(seconds=-60)
    simulation.run(120)
    assert simulation.redis.times() == ["12:05:00"]
    simulation.run(300)
    assert simulation.redis.times() == ["12:05:00", "12:10:00"]


@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(hours=1), timedelta(days=-3000), timedelta(days=3000)])
def test_a_time_of_day_goes_on_after_the_clock_was_set_far(step: timedelta) -> None:
    simulation = at(minute="*")
    simulation.run(100)
    before = len(simulation.redis.sent)
    simulation.clocks.set_by = step
    simulation.run(600)
    assert len(simulation.redis.sent) - before in (9, 10, 11)


def test_a_time_of_day_that_was_jumped_over_is_dropped() -> None:
    simulation = at(minute="30")
    simulation.run(60)
    simulation.clocks.set_by = timedelta(minutes=45)
    simulation.run(60)
    assert simulation.redis.times() == []
    simulation.run(3600)
    assert simulation.redis.times() == ["13:30:00"]


def test_a_time_of_day_is_tried_again_for_a_minute_and_then_dropped() -> None:
    simulation = at(minute="5")
    simulation.redis.away = True
    simulation.run(300)
    simulation.redis.away = False
    simulation.run(10)
    assert len(simulation.redis.sent) == 1
    simulation = at(minute="5")
    simulation.redis.away = True
    simulation.run(400)
    simulation.redis.away = False
    simulation.run(600)
    assert simulation.redis.sent == []


def test_a_schedule_of_celery_that_is_an_interval_follows_the_monotonic_clock() -> None:
    simulation = Simulation([Entry("task", "celery", schedule(timedelta(seconds=20)))])
    simulation.run(1)
    simulation.clocks.set_by = timedelta(hours=-5)
    simulation.run(40)
    assert len(simulation.redis.sent) == 3


def test_several_tasks_do_not_hold_each_other_up() -> None:
    simulation = Simulation([Entry("fast", "celery", 1), Entry("slow", "celery", 7.5)])
    simulation.run(15)
    assert (len(simulation.redis.times("fast")), len(simulation.redis.times("slow"))) == (16, 3)


def test_a_beat_without_tasks_waits_until_it_is_stopped() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=Beat([], lambda _entry, _lifetime: True).run, args=(stop,), daemon=True)
    thread.start()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
