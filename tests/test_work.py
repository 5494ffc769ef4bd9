"""What happens to a recording after it is complete: it comes to one end, whatever fails on the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import uuid
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.components.saving import DateFileManager
from acoupi_runtime.data import ModelOutput, Recording, derived_id
from acoupi_runtime.home import Home
from acoupi_runtime.programs import load_program_class
from acoupi_runtime.programs.energy import EnergyConfig
from acoupi_runtime.programs.energy import Program as Energy
from acoupi_runtime.store import Claim, State
from acoupi_runtime.tasks.filing import Filing
from acoupi_runtime.tasks.pipeline import Pipeline
from tests.receiver import Receiver
from tests.recordings import PLACE, describe, files_below, leave_unfinished, record, spool_of, tone
from tests.support import must, wait_until
from tests.workbench import NAME, DropAll, Ears, Letterbox, MakeBench, detecting

ROOT = Path(__file__).parent.parent

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
        target = bench.recordings / NAME.format(recording.id)
        target.parent.mkdir(parents=True)
        target.with_name(f".{target.name}.4711-42.copy").touch()  # as a process leaves it that is killed there
        bench.work.process_recording(str(recording.id))
        assert (bench.recordings / NAME.format(recording.id)).read_bytes() == content
        assert files_below(bench.recordings) == {NAME.format(recording.id)}
        assert files_below(spool) == set()
        bench.work.rescan()
        assert bench.store.moves() == ()
        assert bench.state(recording) is State.KEPT
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


def test_whatever_is_raised_while_a_recording_is_stored_the_next_one_is_stored(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()
    hints: list[uuid.UUID] = []
    filing = Filing(bench.store, hint=hints.append)
    with monkeypatch.context() as broken:
        broken.setattr(bench.store, "add_recordings", lambda _: 1 / 0)
        filing.completed(*record(bench.spool))
        wait_until(lambda: "cannot be stored" in caplog.text, 60, "the failure to be said")
    second, capture = record(bench.spool)
    filing.completed(second, capture)
    filing.close()
    assert hints == [second.id]


def test_what_was_taken_is_stored_before_filing_closes(make_bench: MakeBench) -> None:
    bench = make_bench()
    filing = Filing(bench.store, hint=lambda _: None)
    for _ in range(300):
        filing.completed(*describe(bench.spool / f"{uuid.uuid4()}.wav"))
    filing.close()
    assert bench.store.backlog() == 300


@pytest.mark.parametrize("filed", [False, True])
def test_a_file_that_cannot_be_read_for_a_while_is_learnt_of_when_it_can(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, filed: bool
) -> None:
    bench = make_bench()
    if filed:  # and its store is lost
        bench.record()
        bench.work.process_backlog()
        bench.work.close()
        for path in bench.recordings.parent.glob("metadata.db*"):
            path.unlink()
    else:
        bench.work.rescan()
        record(bench.spool)
    with monkeypatch.context() as loose:

        def read(path: Path) -> Any:
            if files_below(bench.recordings):
                raise OSError(errno.EIO, "Input/output error", str(path))
            return read_guano(path)

        loose.setattr("acoupi_runtime.tasks.rescan.read_guano", read)
        bench.work.rescan()
        bench.work.rescan()
    assert bench.store.backlog() == 0
    assert bench.store.rebuilding == filed, "a new store is not complete yet"
    assert bench.store.counters()["unreadable"] == 1
    assert caplog.text.count("cannot be read") == 1
    bench.work.rescan()
    assert bench.store.backlog() == 1
    assert not bench.store.rebuilding


# Detection ----------------------------------------------------------------------------------------------------------


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


def unreadable(monkeypatch: pytest.MonkeyPatch, *paths: Path | None) -> None:
    """Let a look at these files, or at what is in these folders, fail as on a card that comes loose."""
    looked = Path.stat

    def stat(path: Path, **how: bool) -> os.stat_result:
        if path in paths or path.parent in paths:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return looked(path, **how)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.parametrize("ears", [Ears(), None])
def test_files_that_cannot_be_read_cost_no_recording_an_attempt_and_are_said_once(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, ears: Ears | None
) -> None:
    bench = make_bench({"model": ears})
    made = [bench.record() for _ in range(3)]
    with monkeypatch.context() as loose:
        unreadable(loose, bench.spool)
        with pytest.raises(OSError, match="Input/output"):
            bench.work.process_recording(str(made[0].id))
        for attempt in range(8):
            with pytest.raises(OSError, match="Input/output") if attempt == 0 else contextlib.nullcontext():
                bench.work.process_backlog()
            bench.clock.since_boot += 30
    bench.clock.since_boot += 61
    attempts = [must(bench.store.claim(one.id, owner="1", lease=0)).attempts for one in made]
    assert attempts == [1, 1, 1]
    bench.work.process_backlog()
    assert {bench.state(one) for one in made} == {State.KEPT}


def test_a_part_of_the_program_that_cannot_be_imported_costs_no_recording_an_attempt(make_bench: MakeBench) -> None:
    class Deaf(Ears):
        def run(self, recording: Recording) -> ModelOutput:
            if not self.heard:
                raise ImportError("cannot import name 'core' from partially initialized module")
            return super().run(recording)

    ears = Deaf()
    bench = make_bench({"model": ears})
    recording = bench.record()
    for _ in range(4):
        with pytest.raises(ImportError):
            bench.work.process_backlog()
        bench.clock.since_boot += 61
    ears.heard.append(recording.id)
    bench.work.process_backlog()
    assert bench.state(recording) is State.KEPT


@pytest.mark.parametrize("ears", [Ears(), None])
def test_one_file_that_cannot_be_read_does_not_hold_up_those_behind_it(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, ears: Ears | None
) -> None:
    bench = make_bench({"model": ears})
    bad = bench.record(created_on=datetime(2026, 5, 1, tzinfo=UTC))
    good = [bench.record() for _ in range(3)]
    unreadable(monkeypatch, bad.path)
    with pytest.raises(OSError, match="Input/output"):
        bench.work.process_backlog()
    bench.work.process_backlog()
    assert {bench.state(one) for one in good} == {State.KEPT}
    assert bench.state(bad) is State.RECORDED


def test_what_failed_before_another_could_not_be_read_keeps_its_attempt_and_its_pause(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fussy:
        def save_recording(self, recording: Recording, model_outputs: object) -> Path:
            del model_outputs
            raise ValueError(f"no name for {recording.id}")

    bench = make_bench()
    fussy = make_bench({"manager": Fussy()})
    failing = bench.record(created_on=datetime(2026, 5, 1, tzinfo=UTC))
    bad = bench.record()
    unreadable(monkeypatch, bad.path)
    with pytest.raises(OSError, match="Input/output"):
        fussy.work.process_backlog()
    assert bench.store.claim(failing.id, owner="1", lease=0) is None
    bench.clock.since_boot += 61
    assert must(bench.store.claim(failing.id, owner="1", lease=0)).attempts == 2


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


IMPORTED = """
import sys
from pathlib import Path
from acoupi_runtime.home import Home
from acoupi_runtime.programs.energy import EnergyConfig, Program
config = EnergyConfig.model_validate_json(sys.argv[1])
program = Program(config, Home(Path(sys.argv[2])))
program.setup(config)
for task in program.tasks.values():
    if task.prepare is not None:
        task.prepare()
before = set(sys.modules)
for name in ("rescan", "process_backlog", "rescan", "heartbeat", "send_messages", "housekeeping"):
    program.tasks[name].function()
print(*sorted(set(sys.modules) - before))
"""


def test_a_worker_has_imported_all_that_it_needs_before_its_first_task(tmp_path: Path, receiver: Receiver) -> None:
    """Where a card does not answer in the middle of an import, half a module stays in the process."""
    paths = {"recordings": str(tmp_path / "recordings"), "db_metadata": str(tmp_path / "m.db")}
    config = EnergyConfig.model_validate({"paths": paths, "messaging": {"http": {"base_url": receiver.url}}})
    record(spool_of(config), tone(2, 48_000, 6000, at=1, length=0.2))
    leave_unfinished(spool_of(config), tone(2, 48_000, 6000, at=1, length=0.2), 48_000)
    command = [sys.executable, "-c", IMPORTED, config.model_dump_json(), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == ([], 0), done.stderr
    assert len(receiver.stored) == 3
