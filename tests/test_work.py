"""What happens to a recording after it is complete: it comes to one end, whatever fails on the way."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import sqlite3
import subprocess
import uuid
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import soundfile

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.components.http import HTTPMessenger
from acoupi_runtime.components.messages import DetectionMessageBuilder
from acoupi_runtime.components.saving import DateFileManager
from acoupi_runtime.configuration import BasicConfig, HTTPConfig, MessagingConfig
from acoupi_runtime.data import Detection, Message, ModelOutput, Recording, Response, ResponseStatus, derived_id
from acoupi_runtime.errors import MessageSendError, StoreError
from acoupi_runtime.home import Home
from acoupi_runtime.programs import load_program_class
from acoupi_runtime.programs.energy import EnergyConfig
from acoupi_runtime.programs.energy import Program as Energy
from acoupi_runtime.store import Claim, State, Store
from acoupi_runtime.tasks.filing import Filing
from acoupi_runtime.tasks.pipeline import Pipeline
from acoupi_runtime.tasks.work import Work
from tests.receiver import Receiver, answers, receiving
from tests.recordings import PLACE, SetClock, describe, files_below, record, spool_of, tone
from tests.support import must, wait_until


@dataclass
class Ears:
    """A model that hears one thing in each recording, unless it is told to fail."""

    name: str = "ears"
    version: str = "1"
    fails_for: set[uuid.UUID] = field(default_factory=set)
    heard: list[uuid.UUID] = field(default_factory=list)

    def run(self, recording: Recording) -> ModelOutput:
        self.heard.append(recording.id)
        if recording.id in self.fails_for:
            raise ValueError("a recording that it cannot bear")
        return ModelOutput(name_model="whatever", recording=recording, detections=(Detection(), Detection()))


@dataclass
class Letterbox:
    """A messenger that keeps what it is given, or is closed."""

    name: str
    open: bool = True
    got: list[uuid.UUID] = field(default_factory=list)
    tried: int = 0

    def send_message(self, message: Message) -> Response:
        self.tried += 1
        if not self.open:
            raise MessageSendError(f"{self.name}: closed")
        self.got.append(message.id)
        return Response(status=ResponseStatus.SUCCESS, message=message)


class DropAll:
    def should_save_recording(self, recording: Recording, model_outputs: object) -> bool:
        del recording, model_outputs
        return False


@dataclass
class Bench:
    """A program's work over folders of its own."""

    config: BasicConfig
    work: Work
    clock: SetClock
    spool: Path
    recordings: Path

    @property
    def store(self) -> Store:
        return self.work.store

    def record(self, **facts: Any) -> Recording:
        """A recording that is complete, and stored."""
        recording, capture = record(self.spool, **facts)
        self.store.add_recording(recording, capture)
        return recording

    def filed(self) -> set[str]:
        return {name for name in files_below(self.recordings) if not name.startswith((".spool", "quarantine"))}

    def state(self, recording: Recording) -> State:
        return self.store.known((recording.id,))[recording.id].state


class MakeBench:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._benches: list[Bench] = []

    def __call__(
        self, pipeline: dict[str, Any] | None = None, messaging: dict[str, Any] | None = None, **settings: Any
    ) -> Bench:
        paths = {"recordings": str(self._folder / "recordings"), "db_metadata": str(self._folder / "metadata.db")}
        config = BasicConfig(**{"paths": paths, **settings})
        recordings = Path(config.paths.recordings)
        parts = Pipeline(**({"manager": DateFileManager(recordings)} | (pipeline or {})))
        clock = SetClock()
        work = Work(
            config, Home(self._folder / "home"), parts, messaging=MessagingConfig(**(messaging or {})), clock=clock
        )
        bench = Bench(config, work, clock, Path(config.paths.tmp_audio or spool_of(config)), recordings)
        self._benches.append(bench)
        return bench

    def close(self) -> None:
        for bench in self._benches:
            bench.work.close()


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    make = MakeBench(tmp_path)
    yield make
    make.close()


NAME = "2026/05/07/20260507_193015_{}.wav"


# Filing -------------------------------------------------------------------------------------------------------------


def test_a_recording_is_filed_by_its_day_and_leaves_the_spool(make_bench: MakeBench) -> None:
    bench = make_bench()
    recording = bench.record()
    bench.work.process_recording(str(recording.id))
    assert bench.filed() == {NAME.format(recording.id)}
    assert files_below(bench.spool) == set()
    stored = bench.store.get_recording(recording.id)
    assert stored.path == bench.recordings / NAME.format(recording.id)
    bench.work.process_recording(str(recording.id))
    bench.work.rescan()
    assert bench.store.moves() == ()
    assert bench.store.counters()["kept"] == 1


def test_a_recording_that_no_filter_keeps_is_deleted(make_bench: MakeBench) -> None:
    bench = make_bench({"saving_filters": (DropAll(),)})
    recording = bench.record()
    bench.work.process_recording(str(recording.id))
    bench.work.rescan()
    assert files_below(bench.recordings) == set()
    assert bench.state(recording) is State.DROPPED


def test_recordings_whose_hints_were_lost_are_found(make_bench: MakeBench) -> None:
    bench = make_bench()
    recordings = [bench.record() for _ in range(5)]
    unknown, _ = record(bench.spool)
    bench.work.rescan()
    bench.work.process_backlog()
    assert bench.filed() == {NAME.format(recording.id) for recording in (*recordings, unknown)}
    assert bench.store.counters()["adopted"] == 1


def test_a_recording_that_a_power_cut_left_unfinished_is_repaired_and_kept(make_bench: MakeBench) -> None:
    bench = make_bench()
    recording, _ = record(bench.spool)
    whole = must(recording.path).read_bytes()
    must(recording.path).unlink()
    must(recording.path).with_name(must(recording.path).name + ".part").write_bytes(whole[:-4801])
    bench.work.rescan()
    bench.work.process_backlog()
    (filed,) = bench.filed()
    with wave.open(str(bench.recordings / filed)) as sound:
        assert sound.getnframes() == 2399
    assert must(read_guano(bench.recordings / filed))[1].truncated
    assert bench.store.counters()["truncated"] == 1


def test_a_file_that_is_no_recording_of_ours_is_set_aside_once(make_bench: MakeBench) -> None:
    bench = make_bench()
    record(bench.spool)
    (bench.spool / "holiday.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    (bench.spool / f"{uuid.uuid4()}.wav").write_bytes(b"")
    bench.work.rescan()
    bench.work.rescan()
    assert len(files_below(bench.recordings / "quarantine")) == 2
    assert bench.store.counters()["strangers"] == 2
    assert bench.store.backlog() == 1


def test_a_file_that_went_away_is_noted_and_taken_back_when_it_comes_again(make_bench: MakeBench) -> None:
    bench = make_bench()
    recording = bench.record()
    away = must(recording.path).rename(bench.recordings / "away")
    bench.work.process_recording(str(recording.id))
    assert bench.state(recording) is State.MISSING
    away.rename(must(recording.path))
    bench.work.rescan()
    bench.work.process_backlog()
    assert bench.state(recording) is State.KEPT
    assert bench.filed() == {NAME.format(recording.id)}


def test_a_spool_on_another_file_system_is_emptied_by_copying(make_bench: MakeBench, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not a file system of its own here")
    spool = memory / f"acoupi-test-{uuid.uuid4()}"
    paths = {"recordings": str(tmp_path / "recordings"), "db_metadata": str(tmp_path / "m.db"), "tmp_audio": str(spool)}
    bench = make_bench(paths=paths)
    try:
        recording, capture = record(bench.spool)
        content = must(recording.path).read_bytes()
        bench.store.add_recording(recording, capture)
        bench.work.process_recording(str(recording.id))
        assert (bench.recordings / NAME.format(recording.id)).read_bytes() == content
        assert files_below(bench.recordings) == {NAME.format(recording.id)}
        assert files_below(spool) == set()
    finally:
        shutil.rmtree(spool)


def test_the_recorder_is_not_held_up_by_a_store_that_fails_and_nothing_is_lost(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()
    hints: list[uuid.UUID] = []
    filing = Filing(bench.store, hint=hints.append)
    first, capture = record(bench.spool)
    filing.completed(first, capture)
    wait_until(lambda: hints == [first.id], 60, "the first recording's hint")
    database = Path(bench.config.paths.db_metadata)
    aside = database.with_name("aside")
    bench.work.close()
    database.rename(aside)
    database.mkdir()  # nothing can be stored now
    late = [record(bench.spool) for _ in range(2)]
    for recording, capture in late:
        filing.completed(recording, capture)
    wait_until(lambda: "not stored yet" in caplog.text, 60, "the failure to be said")
    filing.close()
    assert hints == [first.id]
    database.rmdir()
    aside.rename(database)
    bench.work.rescan()
    bench.work.process_backlog()
    assert bench.filed() == {NAME.format(recording.id) for recording in (first, *(one for one, _ in late))}


def test_what_was_taken_is_stored_before_filing_closes(make_bench: MakeBench) -> None:
    bench = make_bench()
    filing = Filing(bench.store, hint=lambda _: None)
    for _ in range(300):
        filing.completed(*describe(bench.spool / f"{uuid.uuid4()}.wav"))
    filing.close()
    assert bench.store.backlog() == 300


# Detection ----------------------------------------------------------------------------------------------------------


def detecting(ears: Ears, *messengers: Letterbox) -> dict[str, Any]:
    return {"model": ears, "message_builders": (DetectionMessageBuilder(),), "messengers": messengers}


def test_ids_follow_from_the_recording_and_what_was_heard(make_bench: MakeBench) -> None:
    bench = make_bench(detecting(Ears(), Letterbox("box")))
    recording = bench.record()
    bench.work.process_recording(str(recording.id))
    (output,) = bench.store.get_model_outputs(recording)
    assert output.id == derived_id(recording.id, "ears@1")
    assert output.name_model == "ears"
    assert len({detection.id for detection in output.detections}) == 2  # equal detections are told apart
    again = Pipeline(manager=DateFileManager(bench.recordings), **detecting(Ears(), Letterbox("box"))).decide(recording)
    assert [one.id for one in again.outputs[0].detections] == [one.id for one in output.detections]
    (waiting,) = bench.store.waiting_messages("box", 10, "oldest_first")
    assert waiting.message.id == again.messages[0].id
    assert json.loads(waiting.message.content)["recording"]["id"] == str(recording.id)


def test_a_recording_that_fails_is_tried_again_then_quarantined_while_others_go_on(make_bench: MakeBench) -> None:
    ears = Ears()
    bench = make_bench(detecting(ears))
    bad = bench.record(created_on=datetime(2026, 5, 1, tzinfo=UTC))
    ears.fails_for.add(bad.id)
    good = [bench.record() for _ in range(3)]
    for _ in range(3):
        bench.work.process_backlog()
        bench.clock.since_boot += 200
    assert ears.heard.count(bad.id) == 3
    assert bench.state(bad) is State.QUARANTINED
    assert files_below(bench.recordings / "quarantine") == {f"{bad.id}.wav"}
    assert bench.filed() == {NAME.format(recording.id) for recording in good}


def test_a_recording_that_kills_its_process_is_quarantined_without_another_try(make_bench: MakeBench) -> None:
    ears = Ears()
    bench = make_bench(detecting(ears))
    poison = bench.record()
    for _ in range(3):  # processes that claimed it and were never heard of again
        died = subprocess.Popen(["sleep", "1000"])
        claim = bench.store.claim(poison.id, owner=f"{died.pid}:1", lease=1e6)
        died.kill()
        died.wait()
        assert isinstance(claim, Claim)
        bench.work.rescan()
    bench.work.process_backlog()
    assert ears.heard == []
    assert bench.state(poison) is State.QUARANTINED


def test_analysis_that_falls_behind_keeps_the_rest_unanalysed_and_counts_it(make_bench: MakeBench) -> None:
    ears = Ears()
    bench = make_bench(detecting(ears), processing={"max_backlog": 2, "order": "newest_first"})
    first = datetime(2026, 5, 1, tzinfo=UTC)
    recordings = [bench.record(created_on=first + timedelta(days=day)) for day in range(5)]
    bench.work.process_backlog()
    assert ears.heard == [recordings[4].id, recordings[3].id]
    assert bench.store.counters()["not_analysed"] == 3
    assert len(bench.filed()) == 5


def test_a_result_that_no_row_can_hold_concerns_its_own_recording_alone(make_bench: MakeBench) -> None:
    class Scribbler:
        """Files one recording under a name that is no text."""

        def save_recording(self, recording: Recording, model_outputs: object) -> Path:
            del model_outputs
            return bench.recordings / ("\udcff" if recording.id == bad.id else str(recording.id))

    bench = make_bench()
    bad, good = bench.record(), bench.record()
    scribbling = make_bench({"manager": Scribbler()})
    for _ in range(4):
        scribbling.work.process_backlog()
        scribbling.clock.since_boot += 1000
    assert bench.state(good) is State.KEPT
    assert bench.state(bad) is State.QUARANTINED


# Messages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def http(receiver: Receiver, **settings: Any) -> HTTPMessenger:
    return HTTPMessenger(HTTPConfig(base_url=receiver.url, **settings))


def queued(bench: Bench, number: int) -> list[str]:
    messages = [Message(content=json.dumps({"number": one})) for one in range(number)]
    bench.store.put_messages(messages, [messenger.name for messenger in bench.work._pipeline.messengers])
    return [str(message.id) for message in messages]


def test_a_server_that_was_down_gets_everything_in_order_once_it_is_back(
    make_bench: MakeBench, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench({"messengers": (http(receiver),)})
    keys = queued(bench, 250)
    receiver.behave = answers(503)
    for _ in range(200):  # every 15 s for most of an hour
        bench.work.send_messages()
        bench.clock.since_boot += 15
    assert 5 <= len(receiver.requests) <= 15  # it was asked less and less often
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1  # and the log was not flooded
    receiver.behave = answers(200)
    bench.clock.since_boot += 3600
    bench.work.send_messages()
    assert list(receiver.stored) == keys
    assert bench.store.outbox() == {"http": 0} or bench.store.outbox() == {}


def test_acknowledgements_that_are_lost_lead_to_repeats_that_the_receiver_absorbs(
    make_bench: MakeBench, receiver: Receiver
) -> None:
    bench = make_bench({"messengers": (http(receiver),)})
    keys = queued(bench, 12)
    receiver.behave = lambda number, _: None if number % 3 == 0 else 200
    for _ in range(30):
        bench.work.send_messages()
        bench.clock.since_boot += 3600
    assert set(receiver.stored) == set(keys)
    assert receiver.repeats > 0
    assert bench.store.outbox() == {}


def test_a_message_that_is_refused_does_not_stop_those_behind_it(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench({"messengers": (http(receiver),)})
    keys = queued(bench, 5)
    receiver.behave = lambda _, key: 422 if key == keys[0] else 200
    bench.work.send_messages()
    assert list(receiver.stored) == keys[1:]
    assert bench.store.outbox() == {"http": 1}


def test_a_messenger_that_is_down_does_not_hold_up_another_and_is_served_later(make_bench: MakeBench) -> None:
    up, down = Letterbox("up"), Letterbox("down", open=False)
    bench = make_bench(detecting(Ears(), up, down))
    recording = bench.record()
    bench.work.process_recording(str(recording.id))
    bench.work.send_messages()
    assert (len(up.got), len(down.got)) == (1, 0)
    assert bench.store.let_go(10, "room", uploaded_only=True).moves == ()
    down.open = True
    bench.clock.since_boot += 3600
    bench.work.send_messages()
    assert up.got == down.got
    bench.work.rescan()
    assert len(bench.store.let_go(10, "room", uploaded_only=True).moves) == 1


def test_a_messenger_with_a_mistake_in_it_fails_for_one_message_at_a_time(make_bench: MakeBench) -> None:
    class Clumsy(Letterbox):
        def send_message(self, message: Message) -> Response:
            if self.tried == 0:
                self.tried += 1
                raise KeyError("a mistake")
            return super().send_message(message)

    clumsy = Clumsy("clumsy")
    bench = make_bench({"messengers": (clumsy,)})
    queued(bench, 3)
    bench.work.send_messages()
    assert len(clumsy.got) == 2


def test_at_most_as_many_messages_go_out_at_once_as_the_configuration_says(make_bench: MakeBench) -> None:
    box = Letterbox("box")
    bench = make_bench({"messengers": (box,)}, {"max_messages": 150, "message_order": "newest_first"})
    keys = queued(bench, 200)
    bench.work.send_messages()
    bench.work.send_messages()
    assert [str(one) for one in box.got] == keys[:49:-1]
    bench.clock.since_boot += 120
    bench.work.send_messages()
    assert len(box.got) == 200


def test_without_messengers_nothing_waits_to_be_sent(make_bench: MakeBench) -> None:
    bench = make_bench(detecting(Ears()))
    recording = bench.record()
    bench.work.process_recording(str(recording.id))
    bench.work.heartbeat()
    assert bench.store.outbox() == {}


def test_a_heartbeat_says_what_is_wrong_and_how_much_waits(make_bench: MakeBench) -> None:
    bench = make_bench({"messengers": (Letterbox("box"),)})
    bench.record(silent=True)
    bench.store.start_deployment(PLACE)
    bench.work.heartbeat()
    (waiting,) = bench.store.waiting_messages("box", 10, "oldest_first")
    said = json.loads(waiting.message.content)
    metrics = {metric["name"]: metric["value"] for metric in said["metrics"]}
    assert said["status"] == "no recorder"
    assert said["counters"] == {"recordings": 1, "silent": 1}
    assert said["deployment"]["name"] == "meadow"
    assert metrics["backlog"] == 1
    assert metrics["storage_free"] > 0


# The clock ----------------------------------------------------------------------------------------------------------


def test_what_was_recorded_with_a_wrong_clock_is_corrected_once_before_it_is_sent(make_bench: MakeBench) -> None:
    box = Letterbox("box")
    bench = make_bench(detecting(Ears(), box))
    bench.clock.is_synced = False
    bench.clock.offset = 0.0  # 1970
    wrong = {"clock_synced": False, "boot_id": "boot-1", "created_on": datetime(1970, 1, 1, tzinfo=UTC)}
    filed = bench.record(**wrong, boottime=10.0)
    waits = bench.record(**wrong, boottime=20.0)
    earlier_boot = bench.record(**wrong | {"boot_id": "boot-0"}, boottime=10.0)
    bench.work.process_recording(str(filed.id))
    bench.work.rescan()
    bench.work.send_messages()
    assert box.got == []  # it waits for the clock
    bench.clock.is_synced = True
    bench.clock.offset = 1_780_000_000.0
    bench.clock.since_boot += 120
    bench.work.rescan()
    bench.work.send_messages()
    bench.work.rescan()
    right = datetime.fromtimestamp(1_780_000_010, UTC)
    assert bench.store.get_recording(filed.id).created_on == right
    assert bench.store.get_recording(waits.id).created_on == right + timedelta(seconds=10)
    assert bench.store.get_recording(earlier_boot.id).created_on.year == 1970
    assert bench.filed() == {f"{right:%Y/%m/%d/%Y%m%d_%H%M%S}_{filed.id}.wav"}
    assert len(box.got) == 1
    counters = bench.store.counters()
    assert counters["times_corrected"] == 2
    assert counters["clock_steps"] == 1
    bench.clock.offset += 7200
    bench.work.rescan()
    assert bench.store.get_recording(filed.id).created_on == right


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_the_file_itself_says_the_corrected_time_and_its_sound_is_untouched(make_bench: MakeBench, kind: str) -> None:
    bench = make_bench()
    bench.clock.is_synced = False
    sound = tone(0.5, 16_000, 4000, at=0.1, length=0.2)
    wrong = bench.record(sound=sound, samplerate=16_000, kind=kind, clock_synced=False, boot_id="boot-1", boottime=10.0)
    before = soundfile.read(wrong.path, dtype="int16")[0]
    bench.work.process_recording(str(wrong.id))
    bench.work.rescan()
    bench.clock.is_synced = True
    bench.work.rescan()
    filed = bench.store.get_recording(wrong.id)
    assert filed.path is not None
    assert filed.path.exists()
    said, capture = must(read_guano(filed.path))
    assert said.created_on == filed.created_on == datetime.fromtimestamp(1_780_000_010, UTC)
    assert capture.clock_synced
    assert f"Timestamp: {said.created_on:%Y-%m-%dT%H:%M:%S}".encode() in filed.path.read_bytes()
    assert (soundfile.read(filed.path, dtype="int16")[0] == before).all()


def test_the_message_carries_the_corrected_time(make_bench: MakeBench) -> None:
    bench = make_bench(detecting(Ears(), Letterbox("box")))
    bench.clock.is_synced = False
    recording = bench.record(clock_synced=False, boot_id="boot-1", boottime=10.0)
    bench.work.process_recording(str(recording.id))
    bench.work.rescan()
    bench.clock.is_synced = True
    bench.work.correct_times()
    (waiting,) = bench.store.waiting_messages("box", 10, "oldest_first")
    made = datetime.fromisoformat(json.loads(waiting.message.content)["recording"]["created_on"])
    assert made == datetime.fromtimestamp(1_780_000_010, UTC)


def test_a_sensor_whose_clock_is_never_synchronised_reports_all_the_same(make_bench: MakeBench) -> None:
    box = Letterbox("box")
    bench = make_bench(detecting(Ears(), box))
    bench.clock.is_synced = False
    recording = bench.record(clock_synced=False, boot_id="boot-1", boottime=10.0)
    bench.work.process_recording(str(recording.id))
    bench.work.send_messages()
    assert box.got == []
    bench.clock.since_boot += 600
    bench.work.send_messages()
    assert len(box.got) == 1


def test_where_nothing_will_synchronise_the_clock_nothing_waits_for_it(make_bench: MakeBench) -> None:
    box = Letterbox("box")
    bench = make_bench(detecting(Ears(), box))
    bench.clock.is_synced = bench.clock.keeper = False
    recording = bench.record(clock_synced=False, boot_id="boot-1", boottime=10.0)
    bench.work.process_recording(str(recording.id))
    bench.work.send_messages()
    assert len(box.got) == 1


# Retention ----------------------------------------------------------------------------------------------------------


def kept(bench: Bench, number: int, size: int = 100_000) -> list[Recording]:
    """Kept recordings of about `size` bytes, a day apart."""
    first = datetime(2026, 5, 1, 12, tzinfo=UTC)
    frames = size // 2
    import numpy as np

    made = [bench.record(sound=np.zeros(frames), created_on=first + timedelta(days=day)) for day in range(number)]
    bench.work.process_backlog()
    bench.work.rescan()
    return made


def remaining(bench: Bench) -> list[int]:
    return sorted(int(name.split("/")[2]) for name in bench.filed())


def test_what_was_uploaded_goes_first_and_the_oldest_before_the_newer(make_bench: MakeBench) -> None:
    bench = make_bench(retention={"max_size": 0.00055, "when_full": "drop_oldest"})
    made = kept(bench, 8)
    with contextlib.closing(sqlite3.connect(bench.config.paths.db_metadata)) as connection, connection:
        elsewhere = [(recording.id.bytes,) for recording in made[2:6]]
        connection.executemany("UPDATE recording SET uploaded_on = 1 WHERE id = ?", elsewhere)
    bench.work.housekeeping()
    assert remaining(bench) == [1, 2, 6, 7, 8]
    assert "deleted_not_uploaded" not in bench.store.counters()


def test_what_is_nowhere_else_stays_unless_the_configuration_says_otherwise(make_bench: MakeBench) -> None:
    bench = make_bench(retention={"max_size": 0.00055})
    kept(bench, 8)
    bench.work.housekeeping()
    assert len(remaining(bench)) == 8
    asked = make_bench(retention={"max_size": 0.00055, "when_full": "drop_oldest"})
    asked.work.housekeeping()
    assert remaining(asked) == [4, 5, 6, 7, 8]
    assert asked.store.counters()["deleted_not_uploaded"] == 3


def test_recordings_go_by_age_only_when_the_clock_can_be_believed(make_bench: MakeBench) -> None:
    bench = make_bench(retention={"max_age": 3})
    kept(bench, 8)
    bench.clock.offset = datetime(2026, 5, 8, 18, tzinfo=UTC).timestamp() - bench.clock.since_boot
    bench.clock.is_synced = False
    bench.work.housekeeping()
    assert len(remaining(bench)) == 8
    bench.clock.is_synced = True
    bench.work.housekeeping()
    assert remaining(bench) == [6, 7, 8]


def test_rows_of_deleted_recordings_are_forgotten_after_a_year(make_bench: MakeBench) -> None:
    bench = make_bench({"saving_filters": (DropAll(),)})
    (recording,) = kept(bench, 1)
    bench.clock.offset = datetime(2027, 4, 1, tzinfo=UTC).timestamp()
    bench.work.housekeeping()
    assert bench.state(recording) is State.DROPPED
    bench.clock.offset = datetime(2027, 6, 1, tzinfo=UTC).timestamp()
    bench.work.housekeeping()
    assert bench.store.known((recording.id,)) == {}


# A store that is new, over files that are not -----------------------------------------------------------------------


def test_a_store_that_was_lost_is_rebuilt_from_the_files_and_detections_are_the_same(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    box = Letterbox("box")
    bench = make_bench(detecting(Ears(), box))
    recordings = [bench.record() for _ in range(4)]
    bench.work.process_backlog()
    bench.work.rescan()
    bench.work.send_messages()
    before, files = set(box.got), bench.filed()
    unsent = bench.record()
    bench.work.process_backlog()
    bench.work.close()
    for path in tmp_path.glob("metadata.db*"):
        path.unlink()
    again = make_bench(detecting(Ears(), box))
    again.work.rescan()
    again.work.process_backlog()
    again.work.rescan()
    again.work.send_messages()
    assert not again.store.rebuilding
    assert again.filed() == files | {NAME.format(unsent.id)}
    assert len(set(box.got) - before) == 1  # what had been sent was sent again under the same ids
    assert len(box.got) > len(recordings) + 1
    assert all(again.state(recording) is State.KEPT for recording in recordings)
    assert again.store.current_deployment() == PLACE


def test_a_store_that_is_corrupt_is_replaced_by_the_next_rescans_and_no_recording_is_lost(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(detecting(Ears(), Letterbox("box")))
    recordings = [bench.record() for _ in range(60)]
    bench.work.process_backlog()
    bench.work.rescan()
    waiting = bench.record()
    bench.work.close()
    database = Path(bench.config.paths.db_metadata)
    noise = random.Random(1)
    with database.open("r+b") as file:
        for page in range(10, database.stat().st_size // 4096, 2):
            file.seek(page * 4096)
            file.write(noise.randbytes(4096))
    database.with_name(f"{database.name}.unclean").touch()  # as a power cut leaves it
    bench.work.rescan()
    assert "rebuilt from the files" in caplog.text
    bench.work.rescan()
    bench.work.process_backlog()
    bench.work.rescan()
    assert {bench.state(recording) for recording in (*recordings, waiting)} == {State.KEPT}
    assert bench.filed() == {NAME.format(recording.id) for recording in (*recordings, waiting)}
    assert bench.store.counters()["store_rebuilt"] == 1
    assert database.with_name(f"{database.name}.corrupt-1").exists()


# Programs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "messaging", "tasks"),
    [
        ("default", None, {"process_recording", "process_backlog", "rescan", "housekeeping"}),
        ("connected", {}, {"process_recording", "process_backlog", "rescan", "housekeeping"}),
        (
            "connected",
            {"http": {"base_url": "https://example.org"}},
            {"process_recording", "process_backlog", "rescan", "housekeeping", "send_messages", "heartbeat"},
        ),
    ],
)
def test_a_program_adds_the_tasks_that_its_configuration_needs(
    name: str, messaging: dict[str, Any] | None, tasks: set[str], tmp_path: Path
) -> None:
    program_class = load_program_class(name)
    settings: dict[str, Any] = {"paths": {"recordings": str(tmp_path / "r"), "db_metadata": str(tmp_path / "m.db")}}
    settings |= {} if messaging is None else {"messaging": messaging}
    config = program_class.config_schema(**settings)
    program = program_class(config, Home(tmp_path))
    program.setup(config)
    assert set(program.tasks) == tasks
    assert not (tmp_path / "m.db").exists()  # nothing is opened before there is work


def test_the_energy_program_hears_reports_and_files(tmp_path: Path, receiver: Receiver) -> None:
    config = EnergyConfig.model_validate(
        {
            "paths": {"recordings": str(tmp_path / "recordings"), "db_metadata": str(tmp_path / "m.db")},
            "messaging": {"http": {"base_url": receiver.url}},
        }
    )
    program = Energy(config, Home(tmp_path))
    program.setup(config)
    recording, _ = record(spool_of(config), tone(2, 48_000, 6000, at=1, length=0.2))
    quiet, _ = record(spool_of(config), tone(2, 48_000, 6000, at=1, length=0))
    program.work.rescan()
    program.work.process_backlog()
    program.work.send_messages()
    (body,) = receiver.stored.values()
    said = json.loads(body)
    assert said["recording"]["id"] == str(recording.id)
    start, low, end, high = said["detections"][0]["location"]["coordinates"]
    assert abs(start - 1) < 0.05
    assert abs(end - 1.2) < 0.05
    assert low < 6000 < high
    assert program.work.store.get_model_outputs(quiet)[0].detections == ()
    program.work.close()


# A card that takes nothing any more ---------------------------------------------------------------------------------


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MB of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mount = tmp_path / "card"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", mount], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def on_card(make_bench: MakeBench, card: Path, **settings: Any) -> Bench:
    paths = {"recordings": str(card / "recordings"), "db_metadata": str(card / "metadata.db")}
    return make_bench(detecting(Ears()), paths=paths, **settings)


def test_a_card_that_is_full_costs_no_recording_and_no_attempt(make_bench: MakeBench, card: Path) -> None:
    bench = on_card(make_bench, card)
    recordings = [bench.record() for _ in range(3)]
    filler = card / "filler"
    with filler.open("wb", 0) as file:
        for size in (1 << 20, 4096):  # to the last page
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    with pytest.raises(StoreError, match="disk"):
        bench.work.process_backlog()
    for _ in range(5):
        bench.clock.since_boot += 1000
        bench.work.process_backlog()  # it fails again, and is not said again
    assert bench.store.backlog() == 3
    filler.unlink()
    bench.work.process_backlog()
    bench.work.rescan()
    assert bench.filed() == {NAME.format(recording.id) for recording in recordings}
    assert {bench.state(recording) for recording in recordings} == {State.KEPT}


def test_a_result_that_does_not_fit_on_the_card_costs_its_recording_no_attempt(
    make_bench: MakeBench, card: Path
) -> None:
    class Novelist:
        def build_message(self, output: ModelOutput) -> Message:
            return Message(id=derived_id(output.recording.id, "novel"), content="x" * 8_000_000)

    paths = {"recordings": str(card / "recordings"), "db_metadata": str(card / "metadata.db")}
    parts = detecting(Ears(), Letterbox("box")) | {"message_builders": (Novelist(),)}
    bench = make_bench(parts, paths=paths)
    recording = bench.record()
    filler = card / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(card).free - 2_000_000))
    for attempt in range(5):
        with pytest.raises(StoreError) if attempt == 0 else contextlib.nullcontext():  # said once
            bench.work.process_backlog()
    assert bench.state(recording) is State.RECORDED
    filler.unlink()
    bench.work.process_backlog()
    assert bench.state(recording) is State.KEPT


def test_room_is_made_before_the_card_is_full(make_bench: MakeBench, card: Path) -> None:
    room = {"high_watermark": 0.5, "low_watermark": 0.4, "when_full": "drop_oldest", "reserve": 16}
    bench = on_card(make_bench, card, retention=room)
    kept(bench, 16, 4_000_000)
    bench.work.housekeeping()
    used = shutil.disk_usage(card)
    assert used.used / used.total < 0.5
    assert remaining(bench)[-1] == 16
    assert remaining(bench) == list(range(17 - len(remaining(bench)), 17))


def test_a_card_that_became_read_only_is_said_once_and_reported_past_the_store(
    make_bench: MakeBench, card: Path
) -> None:
    box = Letterbox("box")
    paths = {"recordings": str(card / "recordings"), "db_metadata": str(card / "metadata.db")}
    bench = make_bench(detecting(Ears(), box), paths=paths)
    recording = bench.record()
    bench.work.close()
    subprocess.run(["mount", "-o", "remount,ro", card], check=True)
    try:
        with pytest.raises(StoreError):
            bench.work.process_backlog()
        bench.work.process_backlog()
        with pytest.raises(StoreError):
            bench.work.heartbeat()
        assert len(box.got) == 1
    finally:
        subprocess.run(["mount", "-o", "remount,rw", card], check=True)
    bench.work.process_backlog()
    assert bench.state(recording) is State.KEPT


# What it costs ------------------------------------------------------------------------------------------------------


def written() -> int:
    """Bytes that this process has handed to the kernel."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def test_a_recording_costs_the_card_less_than_100_kb_beyond_its_sound(make_bench: MakeBench) -> None:
    bench = make_bench(detecting(Ears(), Letterbox("box")))
    described = [record(bench.spool) for _ in range(100)]
    before = written()
    for recording, capture in described:
        bench.store.add_recording(recording, capture)
        bench.work.process_recording(str(recording.id))
    bench.work.rescan()
    assert (written() - before) / len(described) < 100_000


def test_a_sensor_with_nothing_to_do_writes_next_to_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(detecting(Ears(), Letterbox("box")))
    recording = bench.record()
    bench.work.process_recording(str(recording.id))

    def minute() -> None:
        bench.clock.since_boot += 60
        bench.work.rescan()
        for _ in range(3):
            bench.work.process_backlog()
        bench.work.send_messages()
        bench.work.housekeeping()

    for _ in range(3):
        minute()
    before = written()
    for _ in range(60):
        minute()
    assert (written() - before) * 24 < 1_000_000  # a day of it
