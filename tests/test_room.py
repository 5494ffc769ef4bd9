"""The room on the card: what goes for want of it, what stays when there is none, how little is written."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acoupi_runtime.data import Message, ModelOutput, Recording, derived_id
from acoupi_runtime.errors import StoreError
from acoupi_runtime.store import State
from tests.recordings import files_below, record
from tests.workbench import NAME, Bench, DropAll, Ears, Letterbox, MakeBench, detecting, kept

# Retention ----------------------------------------------------------------------------------------------------------


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


def quarantined(bench: Bench, number: int) -> list[Recording]:
    """Recordings of about 100 kB that the model raised at, made on the days before those of `kept`."""
    first = datetime(2026, 4, 1, 12, tzinfo=UTC)
    made = [bench.record(sound=np.zeros(50_000), created_on=first + timedelta(days=day)) for day in range(number)]
    for _ in range(bench.config.processing.max_attempts):
        bench.work.process_backlog()
        bench.clock.since_boot += 1000
    bench.work.rescan()
    return made


class Deaf(Ears):
    """A model that raises whatever it is given."""

    def run(self, recording: Recording) -> ModelOutput:
        raise ValueError(f"it cannot hear {recording.id}")


@pytest.mark.parametrize(
    ("settings", "rest"), [({"max_size": 0.00035, "when_full": "drop_oldest"}, 3), ({"max_age": 3}, 2)]
)
def test_what_a_model_that_always_raises_quarantined_goes_like_what_was_kept(
    make_bench: MakeBench, settings: dict[str, Any], rest: int
) -> None:
    bench = make_bench(detecting(Deaf()), retention=settings)
    made = quarantined(bench, 6)
    assert {bench.state(one) for one in made} == {State.QUARANTINED}
    bench.clock.offset = datetime(2026, 4, 8, 0, tzinfo=UTC).timestamp() - bench.clock.since_boot
    bench.work.housekeeping()
    assert files_below(bench.recordings / "quarantine") == {f"{one.id}.wav" for one in made[6 - rest :]}
    assert [bench.state(one) for one in made] == [State.DROPPED] * (6 - rest) + [State.QUARANTINED] * rest
    assert bench.store.counters()["deleted_not_uploaded"] == 6 - rest
    assert not bench.work._home.full_file.exists()


def test_what_was_quarantined_and_archived_goes_before_what_is_nowhere_else(make_bench: MakeBench) -> None:
    ears = Ears()
    bench = make_bench(detecting(ears), retention={"max_size": 0.00045})
    kept(bench, 3)
    ears.run = Deaf().run  # type: ignore[method-assign]
    made = quarantined(bench, 3)
    assert bench.store.mark_archived(datetime(2026, 4, 3, tzinfo=UTC)) == 2
    bench.work.housekeeping()
    assert [bench.state(one) for one in made] == [State.DROPPED, State.DROPPED, State.QUARANTINED]
    assert remaining(bench) == [1, 2, 3]
    assert "deleted_not_uploaded" not in bench.store.counters()
    assert not bench.work._home.full_file.exists()


def test_rows_of_deleted_recordings_are_forgotten_after_a_year(make_bench: MakeBench) -> None:
    bench = make_bench({"saving_filters": (DropAll(),)})
    (recording,) = kept(bench, 1)
    for month, known in ((4, True), (6, False)):
        bench.clock.offset = datetime(2027, month, 1, tzinfo=UTC).timestamp()
        bench.clock.since_boot += 3600
        bench.work.housekeeping()
        assert bool(bench.store.known((recording.id,))) is known
    assert "forgotten" not in bench.store.counters()


def test_of_deleted_recordings_only_so_many_are_remembered_and_what_nobody_was_told_is_still_sent(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acoupi_runtime.tasks.retention.HISTORY_LIMIT", 3)
    box = Letterbox("box", open=False)
    bench = make_bench(detecting(Ears(), box) | {"saving_filters": (DropAll(),)})
    made = kept(bench, 5)
    bench.work.send_messages()
    bench.work.housekeeping()
    assert set(bench.store.known(one.id for one in made)) == {one.id for one in made[2:]}
    assert bench.store.counters()["forgotten"] == 2
    box.open = True
    bench.clock.since_boot += 3600
    bench.work.send_messages()
    assert len(box.got) == 5


def test_what_is_too_old_and_too_much_was_not_forgotten_for_the_limit(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acoupi_runtime.tasks.retention.HISTORY_LIMIT", 1)
    bench = make_bench({"saving_filters": (DropAll(),)}, retention={"max_history": 3})
    made = kept(bench, 5)
    bench.clock.offset = datetime(2026, 5, 5, 18, tzinfo=UTC).timestamp() - bench.clock.since_boot
    bench.work.housekeeping()
    assert set(bench.store.known(one.id for one in made)) == {made[4].id}
    assert bench.store.counters()["forgotten"] == 2  # those of the 3rd and the 4th


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


def test_what_is_copied_from_memory_to_the_card_leaves_its_reserve(
    make_bench: MakeBench, card: Path, tmp_path: Path
) -> None:
    paths = {"recordings": str(card / "recordings"), "db_metadata": str(card / "metadata.db")}
    bench = make_bench(detecting(Ears()), paths=paths | {"tmp_audio": str(tmp_path / "spool")})
    reserve = bench.config.retention.reserve * 1e6
    recordings = [bench.record(sound=np.zeros(500_000)) for _ in range(3)]
    filler = card / "filler"
    filler.write_bytes(bytes(int(shutil.disk_usage(card).free - reserve - 2_200_000)))
    bench.work.process_backlog()
    with pytest.raises(OSError, match="reserve"):
        bench.work.rescan()
    assert len(bench.filed()) == 2
    assert shutil.disk_usage(card).free >= reserve
    assert {bench.state(recording) for recording in recordings} == {State.KEPT}, "that is decided, and stored"
    filler.unlink()
    bench.work.rescan()
    assert bench.filed() == {NAME.format(recording.id) for recording in recordings}


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
