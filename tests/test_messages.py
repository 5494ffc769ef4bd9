"""What a device says of its recordings: it arrives once the way is free, in order, and with the right time."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import soundfile

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.components.http import HTTPMessenger
from acoupi_runtime.configuration import HTTPConfig
from acoupi_runtime.data import Message, Response
from tests.receiver import Receiver, answers
from tests.recordings import PLACE, tone
from tests.support import must
from tests.workbench import Bench, Ears, Letterbox, MakeBench, detecting

# Messages -----------------------------------------------------------------------------------------------------------


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
