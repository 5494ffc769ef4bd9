"""The store: what it is told once, it knows for good, whoever else is told, killed or corrupted meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from acoupi_runtime.data import (
    BoundingBox,
    Deployment,
    Detection,
    Message,
    ModelOutput,
    PredictedTag,
    Recording,
    Response,
    ResponseStatus,
    Tag,
    now,
)
from acoupi_runtime.errors import DeploymentError, StoreError
from acoupi_runtime.store import Attempt, Correction, Outcome, State, Store
from acoupi_runtime.store.database import Database
from tests.recordings import PLACE, SetClock, describe
from tests.support import must

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
OPEN = "import os, sys; from pathlib import Path; from acoupi_runtime.store import Store; "
OPEN += "store = Store.open(Path(sys.argv[1]))"


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def store(tmp_path: Path, clock: SetClock) -> Iterator[Store]:
    opened = Store.open(tmp_path / "metadata.db", clock)
    yield opened
    opened.close()


def stored(store: Store, number: int = 1, **facts: Any) -> list[Recording]:
    described = [describe(Path(f"/spool/{uuid.uuid4()}.wav"), **facts) for _ in range(number)]
    store.add_recordings(described)
    return [recording for recording, _ in described]


def is_sound(path: Path) -> bool:
    with sqlite3.connect(path) as connection:
        answer = connection.execute("PRAGMA integrity_check").fetchone()[0]
        broken = connection.execute("PRAGMA foreign_key_check").fetchall()
    connection.close()
    return answer == "ok" and not broken


def heard(recording: Recording, detections: int = 2, tags: int = 2) -> ModelOutput:
    return ModelOutput(
        name_model="ears",
        recording=recording,
        detections=tuple(
            Detection(
                detection_score=0.5,
                location=BoundingBox.from_coordinates(number, 1000, number + 0.25, 2000) if number else None,
                tags=tuple(
                    PredictedTag(tag=Tag(key="species", value=f"s{tag}"), confidence_score=0.25) for tag in range(tags)
                ),
            )
            for number in range(detections)
        ),
    )


# Recordings ------------------------------------------------------------------------------------------


def test_a_recording_that_is_stored_twice_is_there_once_and_counted_once(store: Store) -> None:
    recording, capture = describe(Path("/spool/a.wav"), overflows=((5, 480), (9, 0)), clipped=3, silent=True)
    assert store.add_recording(recording, capture)
    assert not store.add_recording(recording, capture)
    assert store.get_recording(recording.id) == recording
    counters = store.counters()
    assert counters == {"recordings": 1, "overflows": 2, "frames_lost": 480, "clipped": 1, "silent": 1}


def test_an_instant_comes_back_to_the_microsecond(store: Store) -> None:
    made = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    (recording,) = stored(store, created_on=made)
    assert store.get_recording(recording.id).created_on == made


def test_threads_that_claim_at_once_never_get_the_same_recording(store: Store) -> None:
    wanted = {recording.id for recording in stored(store, 60)}
    got: list[uuid.UUID] = []

    def work(owner: str) -> None:
        while claims := store.claim_next(3, "oldest_first", owner=owner, lease=1000):
            got.extend(claim.recording.id for claim in claims)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(got) == sorted(wanted)


def test_claims_come_in_the_order_that_is_asked_for(store: Store) -> None:
    days = [datetime(2026, 5, day, tzinfo=UTC) for day in (3, 1, 2)]
    for day in days:
        stored(store, created_on=day)
    newest = store.claim_next(1, "newest_first", owner="1", lease=1000)
    oldest = store.claim_next(5, "oldest_first", owner="1", lease=1000)
    assert [claim.recording.created_on.day for claim in (*newest, *oldest)] == [3, 1, 2]


def test_a_claim_ends_by_time_by_a_boot_and_with_its_process(store: Store, clock: SetClock) -> None:
    (recording,) = stored(store)

    def claimed(owner: str) -> int | None:
        claim = store.claim(recording.id, owner=owner, lease=60)
        return None if claim is None else claim.attempts

    assert claimed("1:5") == 1
    assert claimed("2:6") is None
    clock.since_boot += 61
    assert claimed("2:6") == 2
    clock.boot_id = "boot-2"
    assert claimed("3:7") == 3
    assert store.lease_owners() == {"3:7"}
    store.release_leases("3:7")
    assert claimed("4:8") == 4


def test_a_failed_attempt_is_not_repeated_before_its_pause_is_over(store: Store, clock: SetClock) -> None:
    (recording,) = stored(store)
    assert store.claim(recording.id, owner="1", lease=60)
    store.failed(recording.id, "no", pause=300)
    assert store.claim_next(9, "oldest_first", owner="1", lease=60) == ()
    clock.since_boot += 301
    (claim,) = store.claim_next(9, "oldest_first", owner="1", lease=60)
    assert claim.attempts == 2
    store.give_back((claim,))
    assert must(store.claim(recording.id, owner="1", lease=60)).attempts == 2  # what was not its fault is not counted


def test_what_is_decided_twice_is_stored_once(store: Store) -> None:
    (recording,) = stored(store)
    message = Message(content="{}")
    outcome = Outcome(recording, State.KEPT, Path("/kept/a.wav"), None, (heard(recording),), (message,))
    other = Outcome(recording, State.DROPPED, None, None, (heard(recording),), (Message(content="?"),))
    (move,) = store.finish((outcome,), ("http",))
    assert (move.source, move.target) == (recording.path, Path("/kept/a.wav"))
    assert store.finish((outcome, other), ("http",)) == ()
    assert store.outbox() == {"http": 1}
    assert store.counters()["kept"] == 1
    assert store.moves() == (move,)
    store.settled((move,))
    assert store.moves() == ()
    assert len(store.get_model_outputs(store.get_recording(recording.id))) == 1
    assert store.backlog() == 0


def test_a_decision_from_before_a_correction_of_the_time_is_not_stored(store: Store, clock: SetClock) -> None:
    (recording,) = stored(store, boot_id="boot-1", boottime=50.0, clock_synced=False)
    assert store.claim(recording.id, owner="1", lease=60)
    store.correct_times((Correction(recording.id, datetime(2026, 7, 1, tzinfo=UTC)),))
    assert store.finish((Outcome(recording, State.KEPT, Path("/kept/1970.wav")),), ()) == ()
    assert must(store.claim(recording.id, owner="1", lease=60)).recording.created_on.month == 7


def test_a_settlement_of_an_older_decision_does_not_hide_a_newer_one(store: Store) -> None:
    (recording,) = stored(store)
    (first,) = store.finish((Outcome(recording, State.KEPT, Path("/kept/a.wav")),), ())
    store.settled((first,))
    (second,) = store.let_go(10, "room", uploaded_only=False).moves
    store.settled((first,))
    assert store.moves() == (second,)


# Model outputs ---------------------------------------------------------------------------------------


def test_an_output_comes_back_as_it_was_stored_and_is_stored_once(store: Store) -> None:
    (recording,) = stored(store)
    output = heard(recording, detections=3, tags=4)
    store.add_model_outputs((output, output))
    store.add_model_outputs((output,))
    assert store.get_model_outputs(recording) == (output,)


def test_an_output_of_an_unknown_recording_is_refused_and_nothing_of_it_stays(store: Store) -> None:
    (recording,) = stored(store)
    unknown, _ = describe(Path("/spool/b.wav"))
    with pytest.raises(StoreError, match=str(unknown.id)):
        store.add_model_outputs((heard(recording), heard(unknown)))
    assert store.get_model_outputs(recording) == ()


# Deployments -----------------------------------------------------------------------------------------


def test_one_deployment_runs_at_a_time_and_one_that_ended_stays_ended(store: Store) -> None:
    assert store.current_deployment() is None
    store.start_deployment(PLACE)
    store.start_deployment(PLACE)
    assert store.current_deployment() == PLACE
    with pytest.raises(DeploymentError, match="meadow"):
        store.start_deployment(Deployment(name="wood"))
    store.end_deployment(PLACE.id, datetime(2026, 6, 1, tzinfo=UTC))
    store.end_deployment(PLACE.id, datetime(2026, 6, 2, tzinfo=UTC))
    assert store.current_deployment() is None
    last = store.last_deployment()
    assert last is not None
    assert last.ended_on == datetime(2026, 6, 1, tzinfo=UTC)


# Outbox ----------------------------------------------------------------------------------------------


def response(message: Message, status: ResponseStatus = ResponseStatus.SUCCESS) -> Response:
    return Response(status=status, message=message, content="said")


def test_a_recording_is_uploaded_when_every_messenger_acknowledged_every_message(store: Store) -> None:
    (recording,) = stored(store)
    messages = (Message(content="1"), Message(content="2"))
    store.finish((Outcome(recording, State.KEPT, recording.path, None, (), messages),), ("http", "radio"))

    def goes() -> int:
        return len(store.let_go(10, "room", uploaded_only=True).moves)

    store.attempted("http", [Attempt(response(message)) for message in messages])
    store.attempted("radio", [Attempt(response(messages[0]))])
    assert store.outbox() == {"radio": 1}
    assert goes() == 0
    store.attempted("radio", [Attempt(response(messages[1]))])
    assert store.outbox() == {}
    assert goes() == 1


def test_a_recording_without_messages_is_not_taken_for_uploaded(store: Store) -> None:
    (recording,) = stored(store)
    store.finish((Outcome(recording, State.KEPT, recording.path),), ("http",))
    assert store.let_go(10, "room", uploaded_only=True).moves == ()
    assert store.mark_archived(datetime(2027, 1, 1, tzinfo=UTC)) == 1
    assert len(store.let_go(10, "room", uploaded_only=True).moves) == 1


@pytest.mark.parametrize("uploaded_only", [True, False])
def test_what_may_go_is_found_by_an_index_however_much_there_is(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, uploaded_only: bool
) -> None:
    asked: list[str] = []
    writing = store._database.writing

    @contextlib.contextmanager
    def watched() -> Iterator[sqlite3.Connection]:
        with writing() as connection:
            connection.set_trace_callback(asked.append)
            yield connection
            connection.set_trace_callback(None)

    monkeypatch.setattr(store._database, "writing", watched)
    store.let_go(10, "room", uploaded_only=uploaded_only)
    (query,) = (one for one in asked if one.startswith("SELECT"))
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    looks = [step for step in plan if "recording" in step]
    indexes = ("recording_uploaded", "recording_quarantined_uploaded") if uploaded_only else ("recording_state",) * 2
    assert len(looks) == 2
    assert all(f"INDEX {index}" in step for index, step in zip(indexes, looks, strict=True)), plan


def test_a_message_that_was_refused_waits_and_lets_others_pass(store: Store, clock: SetClock) -> None:
    first, second = Message(content="1"), Message(content="2")
    store.put_messages((first, second, first), ("http",))
    store.attempted("http", [Attempt(response(first, ResponseStatus.ERROR), pause=60)])

    def waiting() -> list[str]:
        return [one.message.content for one in store.waiting_messages("http", 10, "oldest_first")]

    assert waiting() == ["2"]
    clock.since_boot += 61
    assert waiting() == ["1", "2"]
    clock.since_boot -= 61
    clock.boot_id = "boot-2"  # a pause does not outlive a boot: boottime begins anew
    assert waiting() == ["1", "2"]


def test_messages_of_no_messenger_and_beyond_the_limit_do_not_stay(store: Store) -> None:
    store.put_messages([Message(content=str(number)) for number in range(10)], ())
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("SELECT count(*) FROM message").fetchone() == (0,)
    messages = [Message(content=str(number)) for number in range(10)]
    store.put_messages(messages, ("http", "radio"))
    store.attempted("http", [Attempt(response(message)) for message in messages[:3]])
    store.prune_messages(datetime(2100, 1, 1, tzinfo=UTC), ("http",), 4)
    assert [one.message.content for one in store.waiting_messages("http", 10, "oldest_first")] == ["6", "7", "8", "9"]
    assert store.outbox() == {"http": 4}
    assert store.counters()["messages_dropped"] == 10 + 3  # of a messenger that is no more, and beyond the limit


def test_beyond_the_limit_acknowledged_messages_go_first_and_are_not_counted_as_dropped(store: Store) -> None:
    messages = [Message(content=str(number)) for number in range(10)]
    store.put_messages(messages, ("http",))
    store.attempted("http", [Attempt(response(message)) for message in messages[4:7]])

    def waiting_after(limit: int) -> list[str]:
        store.prune_messages(datetime(2000, 1, 1, tzinfo=UTC), ("http",), limit)
        return [one.message.content for one in store.waiting_messages("http", 10, "oldest_first")]

    assert waiting_after(8) == ["0", "1", "2", "3", "7", "8", "9"]
    assert "messages_dropped" not in store.counters()
    assert waiting_after(5) == ["2", "3", "7", "8", "9"]
    assert store.counters()["messages_dropped"] == 2


def test_what_waits_for_a_messenger_that_is_configured_no_more_is_counted_as_dropped(store: Store) -> None:
    store.put_messages([Message(content=str(number)) for number in range(3)], ("http",))
    for _ in range(2):
        store.prune_messages(datetime(2000, 1, 1, tzinfo=UTC), (), 100)
    assert store.outbox() == {}
    assert store.counters() == {"messages_dropped": 3}


# The file --------------------------------------------------------------------------------------------


def test_a_database_of_the_reference_system_is_refused_with_one_line_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE recording (id TEXT)")
        foreign.execute("PRAGMA user_version = 1")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(StoreError) as refused:
        Store.open(path)
    assert "paths.db_metadata" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before


def test_what_was_stored_survives_kill_9_at_any_instant(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    code = f"""{OPEN}
from tests.recordings import describe
while True:
    recording, capture = describe(Path("/spool/a.wav"))
    store.add_recording(recording, capture)
    print(recording.id, flush=True)
"""
    said = set()
    for seed in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        said.add(must(process.stdout).readline().strip())
        time.sleep(random.Random(seed).uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        # A line may be cut short by the kill: only whole ones were said.
        said.update(line.strip() for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n"))
    assert said
    assert is_sound(path)
    store = Store.open(path)
    assert set(store.known(uuid.UUID(one) for one in said)) == {uuid.UUID(one) for one in said}
    store.close()


def fill(store: Store) -> None:
    for _ in range(5):
        stored(store, 100)
        claims = store.claim_next(100, "oldest_first", owner="1", lease=60)
        store.finish([Outcome(one.recording, State.DROPPED) for one in claims], ())


def damage(path: Path, place: int, length: int = 4096) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(random.Random(1).randbytes(length))


def test_a_store_that_is_corrupt_in_the_middle_is_moved_aside_and_replaced_while_others_have_it_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metadata.db"
    made = Store.open(path)
    fill(made)
    made.close()
    damage(path, path.stat().st_size // 2 // 4096 * 4096, 4 * 4096)
    path.with_name("metadata.db.unclean").touch()  # as a power cut leaves it
    first, second = Store.open(path), Store.open(path)
    second.counters()
    assert not first.verify()
    second.let_go_if_suspect()
    stored(first)
    assert first.backlog() == second.backlog() == 1
    assert first.rebuilding
    assert first.counters()["store_rebuilt"] == 1
    assert path.with_name("metadata.db.corrupt-1").exists()
    assert first.verify()
    first.close()
    second.close()
    assert is_sound(path)


def test_a_store_whose_first_page_is_gone_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    made = Store.open(path)
    fill(made)
    made.close()
    damage(path, 0)
    again = Store.open(path)
    assert again.counters() == {"store_rebuilt": 1}
    again.close()


def test_of_files_that_were_moved_aside_the_newest_two_stay(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    stranger = tmp_path / "metadata.db.corrupt-1.copy-of-mine"
    stranger.touch()
    (tmp_path / "99").touch()
    for number in range(11):  # 10 comes after 9
        path.write_bytes(f"no database, {number}".encode())
        Store.open(path).close()
        path.with_name(f"metadata.db.corrupt-{number + 1}-wal").touch()
        aside = {one.name for one in tmp_path.glob("*.corrupt-*")} - {stranger.name}
        numbers = range(max(number, 1), number + 2)
        assert aside == {f"metadata.db.corrupt-{one}{suffix}" for one in numbers for suffix in ("", "-wal")}
    assert path.with_name("metadata.db.corrupt-11").read_bytes() == b"no database, 10"
    assert stranger.exists()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_store_that_could_not_be_opened_once_is_opened_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    with contextlib.closing(Store.open(tmp_path / "metadata.db")) as store:
        store.count("before")
    connect = Database._connect
    tries = 0

    def refuse_once(database: Database) -> sqlite3.Connection:
        nonlocal tries
        tries += 1
        if tries == failing:  # as SQLite does where the card does not let it read the first page
            raise sqlite3.DatabaseError("database disk image is malformed")
        return connect(database)

    monkeypatch.setattr(Database, "_connect", refuse_once)
    with contextlib.suppress(StoreError):
        Store.open(tmp_path / "metadata.db").close()
    assert tries >= failing
    with contextlib.closing(Store.open(tmp_path / "metadata.db")) as store:
        assert store.counters() == {"before": 1}, "it is the same one"


def test_a_mark_that_cannot_be_looked_for_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Store.open(tmp_path / "metadata.db")) as store:

        def stat(path: Path, **_: bool) -> os.stat_result:
            raise OSError(errno.EIO, "Input/output error", str(path))

        monkeypatch.setattr(Path, "stat", stat)
        store.count("works")
        store.let_go_if_suspect()
        assert store.counters() == {"works": 1}


def test_a_connection_at_which_something_failed_is_not_used_again(tmp_path: Path) -> None:
    """SQLite keeps a lock that it could not give up for as long as any connection of the process is open."""
    database = Database(tmp_path / "metadata.db")
    with contextlib.closing(database):
        with database.reading() as one, database.reading() as two:
            pass
        with pytest.raises(StoreError), database.reading() as broken:
            broken.execute("SELECT no_such_function()")
        with database.reading() as connection:
            assert connection not in {one, two}
        with database.reading() as again:
            assert again is connection


def test_corruption_that_is_met_in_the_middle_of_work_is_one_clear_error_and_then_over(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    made = Store.open(path)
    fill(made)
    made.close()
    for page in range(10, path.stat().st_size // 4096):
        damage(path, page * 4096)
    store = Store.open(path)
    with pytest.raises(StoreError, match="rebuilt from the files"):
        store.summary()
    stored(store)
    assert store.summary()["backlog"] == 1
    store.close()


def test_a_false_alarm_keeps_the_store(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    made = Store.open(path)
    (recording,) = stored(made)
    path.with_name("metadata.db.suspect").touch()
    assert made.get_recording(recording.id) == recording
    assert not path.with_name("metadata.db.suspect").exists()
    made.close()


def test_an_unclean_end_is_noticed_and_a_sound_store_passes(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    code = f"{OPEN}; store.count('x'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=False)
    store = Store.open(path)
    unclean = path.with_name("metadata.db.unclean")
    assert unclean.exists()
    assert store.verify()
    assert not unclean.exists()
    assert store.counters() == {"x": 1}
    store.close()


def test_processes_that_open_a_new_store_at_once_make_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"{OPEN}; store.count('x')", str(tmp_path / "m.db")]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    store = Store.open(tmp_path / "m.db")
    assert store.counters() == {"x": 4}
    store.close()


def test_the_pace_of_the_last_day_is_that_of_all_files_whatever_became_of_them(store: Store, tmp_path: Path) -> None:
    made: list[Recording] = []
    for number, hours in enumerate((30, 20, 15, 10, 5)):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(bytes(10**number))
        recording, capture = describe(path, created_on=now() - timedelta(hours=hours))
        store.add_recording(recording, capture)
        made.append(recording)
    states = (State.QUARANTINED, State.QUARANTINED, State.KEPT, State.DROPPED)  # and one that waits
    store.finish([Outcome(one, state, Path("/x")) for one, state in zip(made[:4], states, strict=True)], ())
    assert store.summary()["bytes_per_day"] == 10 + 100 + 10_000


def test_a_new_sensor_whose_model_fails_has_a_pace_from_its_first_recording_on(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(bytes(1000))
    recording, capture = describe(path, created_on=now() - timedelta(hours=6))
    store.add_recording(recording, capture)
    assert store.summary()["bytes_per_day"] == pytest.approx(4000, rel=0.01)
    store.finish((Outcome(recording, State.QUARANTINED, Path("/x")),), ())
    assert store.summary()["bytes_per_day"] == pytest.approx(4000, rel=0.01)


def test_the_summary_is_plain_json_with_what_status_shows(store: Store) -> None:
    stored(store, 2)
    summary = json.loads(json.dumps(store.summary()))
    assert summary["backlog"] == 2
    assert summary["states"]["recorded"]["recordings"] == 2
    assert summary["last_recording"]["duration"] == 0.1
    assert summary["outbox"] == {}
