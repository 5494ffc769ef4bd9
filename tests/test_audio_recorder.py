"""The recorder in simulated time: every frame once, recordings as planned, trouble counted and outlived."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acoupi_runtime.audio.cuts import ScheduledCuts
from acoupi_runtime.audio.lane import Lane
from acoupi_runtime.audio.paths import spool_dir
from acoupi_runtime.audio.recorder import AlreadyRecordingError, Recorder, RestartNeededError
from acoupi_runtime.audio.ring import Ring
from acoupi_runtime.audio.state import RecorderState
from acoupi_runtime.audio.tape import Tape
from acoupi_runtime.data import Capture, Recording
from acoupi_runtime.home import Home
from acoupi_runtime.system import rescue, revival
from acoupi_runtime.system.missed import Missed
from tests.audio_rig import (
    NOON,
    PLACE,
    STEPS,
    Card,
    Kept,
    SimulatedClock,
    breaks,
    check_files,
    configured,
    counting_wav,
    joined,
    samples,
    simulate,
)


@pytest.mark.parametrize(
    ("rate", "bits", "channels", "seconds"),
    [(48_000, 16, 1, 60), (384_000, 16, 1, 12), (8_000, 24, 2, 30), (250_000, 24, 1, 6)],
)
def test_consecutive_recordings_of_a_file_meet_at_the_frame(
    tmp_path: Path, rate: int, bits: int, channels: int, seconds: int
) -> None:
    sound = counting_wav(tmp_path / "count.wav", rate, bits=bits, channels=channels)
    config = configured(
        tmp_path,
        microphone={"device_name": f"file:{sound}", "samplerate": rate, "audio_channels": channels},
        recording={"duration": 1.37, "interval": 1.37, "bits": bits},
    )
    run = simulate(tmp_path, config, seconds, clock=SimulatedClock())
    check_files(run.kept)
    whole = run.kept.captures[:-1]
    assert {capture.frames for capture in whole} == {round(1.37 * rate)}
    assert [after.first_frame - before.first_frame for before, after in pairwise(run.kept.captures)] == [
        round(1.37 * rate)
    ] * len(whole)
    got = joined(run.kept)
    assert breaks(got >> (bits - 16)) == 0
    assert got[0] >> (bits - 16) == -(STEPS // 2), "the first frame of the stream is recorded"
    assert len(got) > (seconds - 1) * rate
    assert 0 <= len(got) - run.states[-1].frames < rate
    assert (run.states[-1].overflows, run.states[-1].lost_seconds) == (0, 0)


@pytest.mark.parametrize(("ppm", "jitter"), [(0, 0.0), (120, 0.001), (-90, 0.002)])
def test_recordings_with_pauses_start_as_planned_and_have_exactly_the_frames_asked_for(
    tmp_path: Path, ppm: float, jitter: float
) -> None:
    clock = SimulatedClock()
    card = Card(clock, samplerate=8000, block=1024, ppm=ppm, jitter=jitter)
    config = configured(tmp_path, microphone={"samplerate": 8000}, recording={"duration": 3, "interval": 10})
    run = simulate(tmp_path, config, 1805, clock=clock, source=card)
    check_files(run.kept)
    assert len(run.kept.all) == 181
    for number, (recording, capture) in enumerate(run.kept.all):
        heard = 5000 + capture.first_frame / (8000 * (1 + ppm * 1e-6))
        assert capture.frames == 24_000
        assert abs(heard - (5000 + 10 * number)) < 0.020, "it starts as planned"
        assert abs(capture.boottime - heard) < 0.005
        assert abs(recording.created_on.timestamp() - (NOON + heard - 5000)) < 0.005
    assert run.kept.captures[-1].true_samplerate == pytest.approx(8000 * (1 + ppm * 1e-6), rel=5e-6)
    assert run.kept.captures[0].true_samplerate is None


def test_recording_keeps_to_its_window_of_the_day(tmp_path: Path) -> None:
    clock = SimulatedClock(wall=datetime(2026, 6, 1, 18, 58, 30, tzinfo=UTC).timestamp())
    config = configured(
        tmp_path,
        microphone={"samplerate": 8000},
        recording={"duration": 3, "interval": 10, "schedule_start": "19:00", "schedule_end": "19:01"},
    )
    run = simulate(tmp_path, config, 600, clock=clock, source=Card(clock, samplerate=8000))
    starts = [recording.created_on.strftime("%H:%M:%S.%f")[:-4] for recording in run.kept.recordings]
    assert starts == ["19:00:00.00", "19:00:10.00", "19:00:20.00", "19:00:30.00", "19:00:40.00", "19:00:50.00"]
    assert {state.state for state in run.states} == {"starting", "listening", "recording"}


def test_when_the_clock_is_set_the_window_moves_and_the_grid_and_the_names_stay(tmp_path: Path) -> None:
    clock = SimulatedClock(wall=datetime(1970, 1, 1, tzinfo=UTC).timestamp())

    def synchronise() -> None:
        clock.offset = NOON - clock.now
        clock.is_synced = True

    clock.at(62, synchronise)
    clock.at(125, lambda: setattr(clock, "offset", clock.offset - 3600))
    card = Card(clock, samplerate=8000)
    config = configured(tmp_path, microphone={"samplerate": 8000}, recording={"duration": 3, "interval": 10})
    run = simulate(tmp_path, config, 200, clock=clock, source=card)
    assert [round(capture.boottime - 5000) for capture in run.kept.captures] == [10 * n for n in range(20)]
    assert [capture.clock_synced for capture in run.kept.captures] == [False] * 6 + [True] * 14
    assert len({recording.path for recording in run.kept.recordings}) == 20, "a clock set back overwrites nothing"
    years = [recording.created_on.year for recording in run.kept.recordings]
    assert years == [1970] * 6 + [2026] * 14


def test_what_a_pause_of_the_whole_process_made_late_is_dropped_and_the_grid_stays(tmp_path: Path) -> None:
    clock = SimulatedClock()

    def stall() -> None:
        clock.now += 47.3

    clock.at(32.5, stall)
    card = Card(clock, samplerate=8000)
    config = configured(tmp_path, microphone={"samplerate": 8000}, recording={"duration": 3, "interval": 10})
    run = simulate(tmp_path, config, 120, clock=clock, source=card)
    starts = [round(capture.boottime - 5000, 2) for capture in run.kept.captures]
    assert [start % 10 for start in starts if start < 30 or start >= 80] == [0] * 7
    assert starts[:4] == [0, 10, 20, 30]
    assert sorted(starts) == starts
    assert run.kept.captures[3].frames + sum(lost for _, lost in run.kept.captures[3].overflows) == 24_000


def test_a_stall_shorter_than_the_buffer_loses_nothing(tmp_path: Path) -> None:
    clock = SimulatedClock()
    for second in range(5, 100, 9):
        clock.at(second, lambda: setattr(clock, "now", clock.now + 8))
    card = Card(clock)
    config = configured(tmp_path, recording={"duration": 5, "continuous": True, "buffer": 10})
    run = simulate(tmp_path, config, 200, clock=clock, source=card)
    assert breaks(joined(run.kept)) == 0
    assert len(joined(run.kept)) > 195 * 48_000
    assert run.states[-1].lost_seconds == 0


def test_a_stall_longer_than_the_buffer_is_counted_where_it_tore_the_recording(tmp_path: Path) -> None:
    clock = SimulatedClock()
    clock.at(20, lambda: setattr(clock, "now", clock.now + 15))
    card = Card(clock)
    config = configured(tmp_path, recording={"duration": 60, "continuous": True, "buffer": 10})
    run = simulate(tmp_path, config, 59, clock=clock, source=card)
    check_files(run.kept)
    ((recording, capture),) = run.kept.all
    ((frame, missing),) = capture.overflows
    assert recording.path is not None
    got = samples(recording.path)[:, 0]
    assert breaks(got) == 1
    assert (int(got[frame]) - int(got[frame - 1])) % STEPS == (missing + 1) % STEPS
    assert run.states[-1].lost_seconds == pytest.approx(missing / 48_000, abs=1e-3)
    assert 5 <= missing / 48_000 < 7
    assert run.states[-1].overflows == 1


@pytest.mark.parametrize("says_so", [True, False])
def test_sound_that_the_card_lost_is_counted_with_its_place(tmp_path: Path, *, says_so: bool) -> None:
    clock = SimulatedClock()
    card = Card(clock, block=4800)
    clock.at(61.05, lambda: card.lose(12_000, says_so=says_so))
    config = configured(tmp_path, recording={"duration": 30, "continuous": True})
    run = simulate(tmp_path, config, 121, clock=clock, source=card)
    check_files(run.kept)
    (torn,) = [each for each in run.kept.all if each[1].overflows]
    ((frame, missing),) = torn[1].overflows
    assert torn[0].path is not None
    place = int(np.flatnonzero(np.diff(samples(torn[0].path)[:, 0].astype(int)) % STEPS != 1)[0]) + 1
    assert missing == pytest.approx(12_000, abs=10)
    assert frame == place
    assert run.states[-1].overflows == 1
    last = run.kept.captures[3]
    assert last.boottime == pytest.approx(5000 + (last.first_frame + 12_000) / 48_000, abs=0.001), "its time is right"


def test_pre_roll_puts_the_sound_before_the_planned_start_in_front(tmp_path: Path) -> None:
    clock = SimulatedClock()
    card = Card(clock, samplerate=8000)
    config = configured(
        tmp_path, microphone={"samplerate": 8000}, recording={"duration": 3, "interval": 10, "pre_roll": 2.5}
    )
    run = simulate(tmp_path, config, 55, clock=clock, source=card)
    check_files(run.kept)
    first, *rest = run.kept.captures
    assert first.frames == 24_000, "before the first frame there is nothing"
    assert {capture.frames for capture in rest} == {44_000}
    assert [round(capture.boottime - 5000, 2) for capture in rest] == [7.5, 17.5, 27.5, 37.5, 47.5]


def test_a_pre_roll_longer_than_the_buffer_is_there_in_full(tmp_path: Path) -> None:
    clock = SimulatedClock()
    recording = {"duration": 100, "continuous": True, "pre_roll": 60, "buffer": 2}
    config = configured(tmp_path, microphone={"samplerate": 8000}, recording=recording)
    run = simulate(tmp_path, config, 405, clock=clock, source=Card(clock, samplerate=8000, block=512))
    assert [capture.frames for capture in run.kept.captures[1:4]] == [160 * 8000] * 3
    assert [round(capture.boottime - 5000, 2) for capture in run.kept.captures[1:]] == [40, 140, 240, 340]


def test_pre_roll_of_recordings_without_pause_repeats_the_end_of_the_one_before(tmp_path: Path) -> None:
    clock = SimulatedClock()
    config = configured(
        tmp_path, microphone={"samplerate": 8000}, recording={"duration": 3, "continuous": True, "pre_roll": 1}
    )
    run = simulate(tmp_path, config, 15, clock=clock, source=Card(clock, samplerate=8000))
    assert [capture.first_frame for capture in run.kept.captures] == [0, 16_000, 40_000, 64_000, 88_000]
    assert {capture.frames for capture in run.kept.captures[1:4]} == {32_000}


def test_what_is_loud_is_recorded_beside_the_schedule(tmp_path: Path) -> None:
    clock = SimulatedClock()

    def calls(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        second = numbers / 8000
        loud = ((second > 21) & (second < 21.5)) | ((second > 40) & (second < 44))
        found: np.ndarray[Any, Any] = np.where(loud, 20_000, 20) * np.where(numbers % 2, 1, -1)
        return found

    trigger = {"level": -20, "pre_roll": 1, "post_roll": 2, "max_duration": 60}
    config = configured(
        tmp_path,
        microphone={"samplerate": 8000},
        recording={"duration": 3, "interval": 20, "trigger": trigger},
    )
    run = simulate(tmp_path, config, 70, clock=clock, source=Card(clock, samplerate=8000, sound=calls))
    check_files(run.kept)
    found = [
        (capture.trigger, round(capture.first_frame / 8000, 1), round(capture.frames / 8000, 1))
        for _, capture in sorted(run.kept.all, key=lambda each: each[1].first_frame)
    ]
    assert [each for each in found if each[0] == "level"] == [("level", 20.0, 3.5), ("level", 39.0, 7.0)]
    assert [each[1] for each in found if each[0] == "schedule"] == [0, 20, 40, 60]


def test_what_is_loud_is_recorded_after_the_microphone_was_opened_anew(tmp_path: Path) -> None:
    clock = SimulatedClock()

    def call(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        loud = (numbers > 5 * 8000) & (numbers < 6 * 8000)
        found: np.ndarray[Any, Any] = np.where(loud, 20_000, 20) * np.where(numbers % 2, 1, -1)
        return found

    card = Card(clock, samplerate=8000, sound=call)
    clock.at(30, lambda: setattr(card, "plugged", False))
    clock.at(40, lambda: setattr(card, "plugged", True))
    trigger = {"level": -20, "pre_roll": 1, "post_roll": 2}
    config = configured(
        tmp_path, microphone={"samplerate": 8000}, recording={"duration": 3, "interval": 20, "trigger": trigger}
    )
    run = simulate(tmp_path, config, 70, clock=clock, source=card)
    check_files(run.kept)
    loud = [capture for capture in run.kept.captures if capture.trigger == "level"]
    assert [(capture.first_frame, capture.frames) for capture in loud] == [(32_000, 32_000)] * 2
    assert loud[0].stream != loud[1].stream


def test_a_recording_that_outgrows_its_file_goes_on_in_another_at_the_frame(tmp_path: Path) -> None:
    clock, made = SimulatedClock(), Kept()
    config = configured(tmp_path, recording={"duration": 10, "continuous": True})
    tape = Tape(48_000, Ring(480_000, 1, "<i2"), 120_000, clock)
    cuts = ScheduledCuts(config)
    lane = Lane(config, spool_dir(config), cuts, lambda: PLACE, made.completed, most_bytes=300_001)
    stream = Card(clock, block=4800).open(tape.ring)
    while clock.now < 5025:
        clock.now += 1
        stream.poll()
        tape.listen()
        lane.advance(tape, clock.now)
    lane.finish(tape, clock.now)
    check_files(made)
    assert [capture.frames for capture in made.captures] == [150_000, 150_000, 150_000, 30_000] * 2 + [150_000, 90_000]
    assert breaks(joined(made)) == 0


def test_an_unplugged_microphone_is_awaited_and_its_partial_file_kept(tmp_path: Path) -> None:
    clock = SimulatedClock()
    card = Card(clock, plugged=False)
    clock.at(30, lambda: setattr(card, "plugged", True))
    clock.at(61, lambda: setattr(card, "plugged", False))
    clock.at(3600, lambda: setattr(card, "plugged", True))
    config = configured(tmp_path, recording={"duration": 10, "continuous": True})
    run = simulate(tmp_path, config, 3630, clock=clock, source=card)
    check_files(run.kept)
    assert card.resets > 100, "PortAudio sees what was plugged in later only when it looks anew"
    assert card.opened == 2
    streams = {capture.stream for capture in run.kept.captures}
    assert len(streams) == 2
    for stream in streams:
        part = Kept([each for each in run.kept.all if each[1].stream == stream])
        assert breaks(joined(part)) == 0
        assert len(joined(part)) > 18 * 48_000
    before = [capture for capture in run.kept.captures if capture.boottime < 6000]
    assert sum(capture.frames for capture in before) == next(
        state.frames for state in run.states if "is gone" in state.detail
    ), "to the last block"
    times = [state.boottime for state in run.states]
    assert max(after - before for before, after in pairwise(times)) <= 5, "the watchdog is fed while it is looked for"
    missing = [state for state in run.states if state.state == "no-microphone" and state.boottime > 5060]
    assert len(missing) > 3000
    assert "plug it in" in missing[0].detail
    assert run.states[-1].state == "recording"


def test_a_microphone_that_gives_no_sound_is_opened_anew_and_then_only_a_new_process_helps(tmp_path: Path) -> None:
    clock = SimulatedClock()
    card = Card(clock, dead=True)
    with pytest.raises(RestartNeededError, match="restart"):
        simulate(tmp_path, configured(tmp_path), 3600, clock=clock, source=card)
    assert card.opened > 1
    assert card.resets > 0
    assert clock.now - 5000 < 60


def test_a_microphone_that_opens_and_never_gives_a_frame_is_missing_until_the_first_one(tmp_path: Path) -> None:
    clock = SimulatedClock()
    card = Card(clock, dead=True)
    clock.at(13, lambda: setattr(card, "dead", False))
    run = simulate(tmp_path, configured(tmp_path), 30, clock=clock, source=card)
    seen = [state for state, _ in groupby(state.state for state in run.states)]
    assert seen[:3] == ["starting", "no-microphone", "recording"]
    missing = [state for state in run.states if state.state == "no-microphone"]
    assert all("no sound" in state.detail for state in missing)
    assert card.opened > 2


def test_a_microphone_that_hangs_reaches_the_reset_of_its_port_over_all_its_new_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, home = SimulatedClock(), Home(tmp_path / "home")
    config = configured(tmp_path).model_copy(update={"recovery": "usb-reset"})
    asked: list[float] = []
    counted: Counter[str] = Counter()

    def state(_: Home = home) -> RecorderState | None:  # the real one asks for the machine's own clock
        try:
            return RecorderState.model_validate_json(home.recorder_file.read_bytes())
        except OSError:
            return None

    class Shelf:
        def count_all(self, tally: Counter[str]) -> None:
            counted.update(tally)

    monkeypatch.setattr(revival, "read_state", state)
    while clock.now < 5000 + 2 * revival.USB_EVERY:
        watching = revival.Revival(config, home, clock)  # type: ignore[arg-type]
        missed = Missed(Shelf(), state, clock)  # type: ignore[arg-type]

        def look(watching: revival.Revival = watching, missed: Missed = missed) -> None:
            watching.look()
            missed.look()
            if rescue.take(home.run_dir / rescue.REQUEST) == rescue.USB_RESET:
                asked.append(clock.now - 5000)

        for second in range(3, 60, 5):
            clock.at(second, look)
        with pytest.raises(RestartNeededError):
            simulate(tmp_path, config, 3600, clock=clock, source=Card(clock, dead=True))
        clock._events.clear()
        missed.close()
        clock.now += 5
    assert revival.USB_AFTER <= asked[0] < revival.USB_AFTER + 30
    assert [round((after - before) / revival.USB_EVERY, 1) for before, after in pairwise(asked)] == [1.0]
    assert counted["microphone_gone_seconds"] > revival.USB_EVERY / 2


def test_a_microphone_that_dies_while_open_is_opened_anew(tmp_path: Path) -> None:
    clock = SimulatedClock()
    card = Card(clock)
    clock.at(20, lambda: setattr(card, "dead", True))
    clock.at(28, lambda: setattr(card, "dead", False))
    config = configured(tmp_path, recording={"duration": 10, "continuous": True})
    run = simulate(tmp_path, config, 60, clock=clock, source=card)
    check_files(run.kept)
    assert card.opened >= 2
    assert run.states[-1].state == "recording"
    assert any("no sound" in state.detail for state in run.states)


def test_three_silent_recordings_running_are_reported_and_one_with_sound_ends_it(tmp_path: Path) -> None:
    clock = SimulatedClock()

    def sound(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = np.where(numbers < 100 * 8000, 1000, numbers % 500)
        return found

    card = Card(clock, samplerate=8000, sound=sound)
    config = configured(tmp_path, microphone={"samplerate": 8000}, recording={"duration": 3, "interval": 10})
    run = simulate(tmp_path, config, 126, clock=clock, source=card)
    silent = [state.recordings for state in run.states if state.silent]
    assert min(silent) == 3
    assert max(silent) == 10
    assert [capture.silent for capture in run.kept.captures] == [True] * 10 + [False] * 3


def test_a_second_recorder_in_one_home_is_refused_and_the_state_goes_with_the_recorder(tmp_path: Path) -> None:
    home, config = Home(tmp_path / "home"), configured(tmp_path)
    clock, refused = SimulatedClock(), list[str]()

    def second() -> None:
        other = Recorder(
            config,
            home,
            deployment=lambda: PLACE,
            sink=Kept(),
            alive=lambda _: None,
            clock=clock,
            source=Card(clock),
        )
        with pytest.raises(AlreadyRecordingError, match="already") as error:
            other.run(threading.Event())
        refused.append(str(error.value))

    clock.at(5, second)
    run = simulate(tmp_path, config, 10, clock=clock, source=Card(clock))
    assert len(refused) == 1
    assert run.states[-1].state == "recording"
    assert not home.recorder_file.exists()
    simulate(tmp_path, config, 10, clock=clock, source=Card(clock))


def test_a_store_or_a_sink_that_fails_never_stops_the_recorder(tmp_path: Path) -> None:
    clock, seen = SimulatedClock(), list[Recording]()

    class Broken:
        def completed(self, recording: Recording, capture: Capture) -> None:
            del capture
            seen.append(recording)
            raise RuntimeError("the store is gone")

    def deployment() -> Any:
        raise RuntimeError("the store is gone")

    clock.end = clock.now + 35
    config = configured(tmp_path, recording={"duration": 3, "interval": 10})
    Recorder(
        config,
        Home(tmp_path / "home"),
        deployment=deployment,
        sink=Broken(),
        alive=lambda _: None,
        clock=clock,
        source=Card(clock),
    ).run(threading.Event())
    assert len(seen) == 4
    assert all(recording.path is not None and recording.path.exists() for recording in seen)


def test_the_state_says_what_a_reader_needs(tmp_path: Path) -> None:
    clock = SimulatedClock()
    run = simulate(tmp_path, configured(tmp_path), 100, clock=clock, source=Card(clock))
    state: RecorderState = run.states[-1]
    assert (state.device, state.samplerate, state.channels) == ("card", 48_000, 1)
    assert state.frames == pytest.approx(100 * 48_000, abs=2 * 48_000)
    assert state.level_rms is not None
    assert -6 < state.level_rms < -3
    assert state.recordings == len(run.kept.all) - (1 if run.kept.captures[-1].frames < 144_000 else 0)
    assert state.last_recording is not None
    assert state.last_recording.duration == 3
    assert len(run.states) == pytest.approx(100, abs=15), "about once a second"
