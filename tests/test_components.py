"""The parts that programs are made of: which recordings are kept, what is heard, how a message gets across."""

from __future__ import annotations

import tracemalloc
import uuid
from datetime import UTC, datetime, time, timedelta
from math import asin, atan2, cos, degrees, radians, sin
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acoupi_runtime.components.energy import EnergyDetector
from acoupi_runtime.components.http import HTTPMessenger
from acoupi_runtime.components.messages import DetectionMessageBuilder, ThresholdDetectionCleaner
from acoupi_runtime.components.saving import (
    DateFileManager,
    DawnDuskTimeInterval,
    FrequencySchedule,
    SaveIfInInterval,
    dawn_and_dusk,
    saving_filters,
)
from acoupi_runtime.configuration import HTTPConfig, SavingConfig
from acoupi_runtime.data import (
    Deployment,
    Detection,
    Message,
    ModelOutput,
    PredictedTag,
    Recording,
    ResponseStatus,
    Tag,
)
from acoupi_runtime.errors import MessageSendError, RecordingError
from tests.receiver import Receiver, answers, receiving
from tests.recordings import describe, record, tone


def at(moment: str, latitude: float | None = 51.5, longitude: float | None = -0.1) -> Recording:
    place = Deployment(name="p", latitude=latitude, longitude=longitude)
    return describe(Path("/a.wav"), created_on=datetime.fromisoformat(moment), deployment=place)[0]


# Which are kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "moment", "kept"),
    [
        (time(18), time(20), "2026-01-05T18:00:00+00:00", True),
        (time(18), time(20), "2026-01-05T19:59:59+00:00", True),
        (time(18), time(20), "2026-01-05T20:00:00+00:00", False),
        (time(22), time(4), "2026-01-05T23:00:00+00:00", True),
        (time(22), time(4), "2026-01-05T03:59:00+00:00", True),
        (time(22), time(4), "2026-01-05T12:00:00+00:00", False),
        (time(7), time(7), "2026-01-05T12:00:00+00:00", True),
        # In summer London's 18:00 is 17:00 UTC: the time zone is used, not only stored.
        (time(18), time(20), "2026-07-05T17:30:00+00:00", True),
        (time(18), time(20), "2026-07-05T19:30:00+00:00", False),
    ],
)
def test_a_window_of_the_local_day_may_cross_midnight(start: time, end: time, moment: str, *, kept: bool) -> None:
    assert SaveIfInInterval(start, end, "Europe/London").should_save_recording(at(moment), ()) is kept


@pytest.mark.parametrize(
    ("duration", "frequency", "moment", "kept"),
    [
        (5, 30, "2026-01-05T10:04:59+00:00", True),
        (5, 30, "2026-01-05T10:05:00+00:00", False),
        (5, 30, "2026-01-05T10:34:00+00:00", True),
        (5, 90, "2026-01-05T01:34:00+00:00", True),  # periods longer than an hour begin at midnight too
        (5, 90, "2026-01-05T01:04:00+00:00", False),
        (5, 90, "2026-01-05T03:04:00+00:00", True),
        (60, 1440, "2026-01-05T00:30:00+00:00", True),
        (60, 1440, "2026-01-05T01:30:00+00:00", False),
        (0.5, 1, "2026-01-05T10:00:29+00:00", True),
        (0.5, 1, "2026-01-05T10:00:31+00:00", False),
    ],
)
def test_the_first_minutes_of_any_period_are_kept(
    duration: float, frequency: float, moment: str, *, kept: bool
) -> None:
    rule = FrequencySchedule(duration, frequency, "Europe/London")
    assert rule.should_save_recording(at(moment), ()) is kept


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_over_whole_periods_the_share_that_is_kept_is_the_one_asked_for(first: int, second: int) -> None:
    duration, frequency = sorted((first, second))
    rule = FrequencySchedule(duration, frequency, "UTC")
    begin = datetime(2026, 1, 5, tzinfo=UTC)
    steps = 50
    kept = sum(
        rule.should_save_recording(at((begin + timedelta(minutes=frequency) * (step / steps)).isoformat()), ())
        for step in range(steps)
    )
    assert abs(kept / steps - duration / frequency) <= 1 / steps


def altitude_of_the_sun(moment: datetime, latitude: float, longitude: float) -> float:
    """Degrees, by the low-precision formulas of the Astronomical Almanac: an independent opinion."""
    days = (moment - datetime(2000, 1, 1, 12, tzinfo=UTC)) / timedelta(days=1)
    anomaly = radians(357.528 + 0.9856003 * days)
    ecliptic = radians(280.460 + 0.9856474 * days + 1.915 * sin(anomaly) + 0.020 * sin(2 * anomaly))
    tilt = radians(23.439 - 4e-7 * days)
    ascension = atan2(cos(tilt) * sin(ecliptic), cos(ecliptic))
    declination = asin(sin(tilt) * sin(ecliptic))
    sidereal = radians((280.46062 + 360.98564737 * days + longitude) % 360)
    place = radians(latitude)
    height = sin(place) * sin(declination) + cos(place) * cos(declination) * cos(sidereal - ascension)
    return degrees(asin(height))


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [(51.5, -0.1), (-33.9, 151.2), (0.0, -78.5), (40.7, -74.0), (64.1, -21.9), (-17.7, 178.0)],
)
def test_dawn_and_dusk_are_those_of_the_sensors_place(latitude: float, longitude: float) -> None:
    start = datetime(2026, 3, 10, tzinfo=UTC)
    steps = [start + timedelta(minutes=minute) for minute in range(24 * 60)]
    heights = [altitude_of_the_sun(step, latitude, longitude) for step in steps]
    crossings = [steps[i] for i in range(1, len(steps)) if (heights[i - 1] < -6) != (heights[i] < -6)]
    assert len(crossings) == 2
    before, after = DawnDuskTimeInterval(10, "before"), DawnDuskTimeInterval(10, "after")
    for crossing in crossings:
        early, late = (
            at((crossing + timedelta(minutes=minutes)).isoformat(), latitude, longitude) for minutes in (-5, 5)
        )
        assert [before.should_save_recording(early, ()), before.should_save_recording(late, ())] == [True, False]
        assert [after.should_save_recording(early, ()), after.should_save_recording(late, ())] == [False, True]


def test_without_dawn_or_a_place_nothing_is_kept_by_that_rule() -> None:
    rule = DawnDuskTimeInterval(600, "before")
    assert not rule.should_save_recording(at("2026-06-21T12:00:00+00:00", 78.2, 15.6), ())  # Svalbard's midnight sun
    assert not rule.should_save_recording(at("2026-06-21T12:00:00+00:00", None, None), ())
    assert len(dawn_and_dusk(51.5, 0.0, datetime(2026, 6, 21, tzinfo=UTC).date())) == 2


def test_a_configuration_without_filters_keeps_everything_and_zero_switches_a_rule_off() -> None:
    assert saving_filters(None, "UTC") == ()
    off = SavingConfig(before_dawndusk_duration=0, after_dawndusk_duration=0, frequency_duration=0)
    assert len(saving_filters(off, "UTC")) == 1
    assert len(saving_filters(SavingConfig(), "UTC")) == 4


def test_two_recordings_of_one_second_have_two_names_in_the_folder_of_their_day() -> None:
    manager = DateFileManager(Path("/r"))
    one, other = (describe(Path("/s/a.flac"), id=uuid.UUID(int=number))[0] for number in (1, 2))
    assert manager.save_recording(one) == Path(f"/r/2026/05/07/20260507_193015_{one.id}.flac")
    assert manager.save_recording(one) != manager.save_recording(other)


# What is heard and reported -----------------------------------------------------------------------------------------


def test_what_is_too_unsure_is_dropped_and_an_output_without_detections_is_not_reported() -> None:
    def detection(score: float) -> Detection:
        tags = tuple(PredictedTag(tag=Tag(key="k", value=str(one)), confidence_score=one) for one in (0.2, 0.5))
        return Detection(detection_score=score, tags=tags)

    output = ModelOutput(
        name_model="m", recording=at("2026-01-05T18:00:00"), detections=(detection(0.3), detection(0.6))
    )
    cleaned = ThresholdDetectionCleaner(0.5).clean(output)
    assert [one.detection_score for one in cleaned.detections] == [0.6]
    assert [one.confidence_score for one in cleaned.detections[0].tags] == [0.5]
    builder = DetectionMessageBuilder()
    message = builder.build_message(cleaned)
    assert message is not None
    assert ModelOutput.model_validate_json(message.content) == cleaned
    assert builder.build_message(ThresholdDetectionCleaner(0.9).clean(output)) is None


@pytest.mark.parametrize(
    ("samplerate", "hertz", "bits", "kind", "channels"),
    [
        (16_000, 4_000, 16, "wav", 1),
        (48_000, 6_000, 16, "wav", 2),
        (48_000, 6_000, 24, "flac", 1),
        (384_000, 45_000, 24, "wav", 1),
    ],
)
def test_a_tone_is_heard_where_it_is(
    tmp_path: Path, samplerate: int, hertz: float, bits: int, kind: str, channels: int
) -> None:
    sound = np.repeat(tone(2, samplerate, hertz, at=0.7, length=0.1)[:, None], channels, axis=1)
    recording, _ = record(tmp_path, sound, samplerate, bits, kind)
    (detection,) = EnergyDetector(1000, 150_000).run(recording).detections
    assert detection.location is not None
    start, low, end, high = detection.location.coordinates
    assert abs(start - 0.7) < 0.02
    assert abs(end - 0.8) < 0.02
    assert low < hertz < high
    assert high - low < samplerate / 8
    assert 0.5 < detection.detection_score <= 1


def test_two_calls_are_two_events_and_what_is_outside_the_band_is_none(tmp_path: Path) -> None:
    sound = tone(3, 16_000, 4_000, at=0.5, length=0.1) + tone(3, 16_000, 5_000, at=2, length=0.1)
    recording, _ = record(tmp_path, sound, 16_000)
    assert len(EnergyDetector(1000, 8000).run(recording).detections) == 2
    elsewhere = EnergyDetector(6500, 8000).run(recording)
    assert ThresholdDetectionCleaner(0.2).clean(elsewhere).detections == ()


@pytest.mark.parametrize("level", [0.0, 1e-5, 0.003, 0.3])
def test_in_noise_and_silence_nothing_is_heard(tmp_path: Path, level: float) -> None:
    recording, _ = record(tmp_path, np.random.default_rng(2).normal(0, level, 5 * 16_000).clip(-1, 1), 16_000)
    output = EnergyDetector(1000, 8000).run(recording)
    assert ThresholdDetectionCleaner(0.2).clean(output).detections == ()


def test_an_event_that_lasts_over_a_stretch_stays_one(tmp_path: Path) -> None:
    sound = tone(40, 8_000, 2_000, at=29, length=2)
    recording, _ = record(tmp_path, sound, 8_000)
    (detection,) = EnergyDetector(1000, 4000).run(recording).detections
    assert detection.location is not None
    assert abs(detection.location.coordinates[2] - 31) < 0.05


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    def peak(seconds: int) -> int:
        recording, _ = record(tmp_path, tone(seconds, 8_000, 2_000, at=1, length=0.1), 8_000)
        tracemalloc.start()
        try:
            EnergyDetector(1000, 4000).run(recording)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # imports
    assert peak(300) < 1.2 * peak(60)


def test_a_band_that_a_recording_does_not_have_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    recording, _ = record(tmp_path, samplerate=16_000)
    with pytest.raises(RecordingError, match="16000 Hz"):
        EnergyDetector(20_000, 90_000).run(recording)


def test_a_recording_shorter_than_a_window_holds_nothing(tmp_path: Path) -> None:
    recording, _ = record(tmp_path, np.ones(20) * 0.5, 48_000)
    assert EnergyDetector(1000, 8000).run(recording).detections == ()


# Over HTTP ----------------------------------------------------------------------------------------------------------

MESSAGE = Message(content='{"says": "grüß"}')


def test_a_message_is_sent_with_its_id_as_key_and_the_token(receiver: Receiver) -> None:
    messenger = HTTPMessenger(HTTPConfig(base_url=receiver.url, token="s3cret", method="PUT"))
    response = messenger.send_message(MESSAGE)
    assert (response.status, response.content) == (ResponseStatus.SUCCESS, "ok")
    assert receiver.stored == {str(MESSAGE.id): MESSAGE.content.encode()}
    method, path, headers = receiver.requests[0]
    assert (method, path) == ("PUT", "/messages")
    assert headers["Authorization"] == "Bearer s3cret"
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_followed_with_the_whole_message(receiver: Receiver, status: int) -> None:
    receiver.behave = lambda number, _: status if number == 1 else 200
    assert HTTPMessenger(HTTPConfig(base_url=receiver.url)).send_message(MESSAGE).status is ResponseStatus.SUCCESS
    assert [(method, path) for method, path, _ in receiver.requests] == [("POST", "/messages"), ("POST", "/elsewhere")]
    assert receiver.stored == {str(MESSAGE.id): MESSAGE.content.encode()}


def test_a_token_does_not_follow_a_redirect_to_another_host(receiver: Receiver) -> None:
    with receiving() as other:
        receiver.behave = answers(307)
        receiver.leads_to = other.url
        HTTPMessenger(HTTPConfig(base_url=receiver.url, token="s3cret")).send_message(MESSAGE)
        assert other.stored == {str(MESSAGE.id): MESSAGE.content.encode()}
        assert "Authorization" not in other.requests[0][2]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_an_answer_that_concerns_all_messages_is_an_error_without_the_token(receiver: Receiver, status: int) -> None:
    receiver.behave = answers(status)
    with pytest.raises(MessageSendError, match=str(status)) as refused:
        HTTPMessenger(HTTPConfig(base_url=receiver.url, token="s3cret")).send_message(MESSAGE)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_answer_about_this_message_is_not_a_success(receiver: Receiver, status: int) -> None:
    receiver.behave = answers(status)
    response = HTTPMessenger(HTTPConfig(base_url=receiver.url)).send_message(MESSAGE)
    assert response.status is ResponseStatus.ERROR
    assert response.content is not None
    assert response.content.startswith(str(status))


def test_nobody_there_and_no_answer_are_errors(receiver: Receiver) -> None:
    receiver.behave = lambda *_: None
    with pytest.raises(MessageSendError):
        HTTPMessenger(HTTPConfig(base_url=receiver.url)).send_message(MESSAGE)
    with receiving() as gone:
        url = gone.url
    with pytest.raises(MessageSendError, match="refused"):
        HTTPMessenger(HTTPConfig(base_url=url)).send_message(MESSAGE)
