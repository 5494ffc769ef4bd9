"""Proves that tests can fail: takes one behaviour away at a time, and expects its test to be red.

`python -m tests.prove` applies each change of the table to a copy of the sources and runs the test that it names;
`python -m tests.prove WORD` only those whose file or test has that word in it. A change that leaves its test green is
listed, and the exit code is 1: then that test shows nothing, or the change is no change any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("acoupi_runtime", "acoupi_fleet", "templates", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Change:
    """One behaviour less.

    Attributes:
        file: Where.
        old: What stands there, once.
        new: What stands there without the behaviour.
        test: Which tests must be red then.
    """

    file: str
    old: str
    new: str
    test: str


STORE, TASKS, PARTS = "acoupi_runtime/store", "acoupi_runtime/tasks", "acoupi_runtime/components"

CHANGES = (
    # A recording comes to one final state, once.
    Change(
        f"{STORE}/recordings.py",
        "WHERE id = ? AND state = 'recorded' AND created_on = ? RETURNING",
        "WHERE id = ? AND state != '' AND created_on = ? RETURNING",
        "test_store.py::test_what_is_decided_twice_is_stored_once",
    ),
    Change(
        f"{STORE}/recordings.py",
        "OR r.lease_until <= :now)",
        "OR 1)",
        "test_store.py::test_a_claim_ends_by_time_by_a_boot_and_with_its_process",
    ),
    Change(
        f"{STORE}/recordings.py",
        "moving_from = :source AND path IS :target AND id = :id",
        "id = :id",
        "test_store.py::test_a_settlement_of_an_older_decision_does_not_hide_a_newer_one",
    ),
    Change(
        f"{TASKS}/process.py",
        "            moves = self._store.finish(outcomes",
        "            for one in outcomes:\n"
        "                one.path.parent.mkdir(parents=True, exist_ok=True)\n"
        "                one.recording.path.rename(one.path)\n"
        "            moves = self._store.finish(outcomes",
        "test_work_crashes.py::test_whichever_write_is_the_one_at_which_it",
    ),
    Change(
        f"{TASKS}/pipeline.py",
        '"id": derived_id(recording.id, by),',
        '"id": output.id,',
        "test_work.py::test_ids_follow_from_the_recording_and_what_was_heard",
    ),
    Change(
        f"{TASKS}/rescan.py",
        "if not is_alive(owner):",
        "if not owner:",
        "test_work.py::test_a_recording_that_kills_its_process_is_quarantined_without_another_try",
    ),
    Change(
        f"{TASKS}/process.py",
        "if claim.attempts > self._config.max_attempts:",
        "if not claim.attempts:",
        "test_work.py::test_a_recording_that_kills_its_process_is_quarantined_without_another_try",
    ),
    Change(
        f"{TASKS}/process.py",
        "if claim.attempts >= self._config.max_attempts:",
        "if not claim.attempts:",
        "test_work.py::test_a_recording_that_fails_is_tried_again_then_quarantined_while_others_go_on",
    ),
    Change(
        f"{TASKS}/process.py",
        "            self._store.give_back(claims)\n",
        "",
        "test_work.py::test_a_result_that_does_not_fit_on_the_card_costs_its_recording_no_attempt",
    ),
    Change(
        f"{TASKS}/process.py",
        "        if excess <= 0:",
        "        if excess:",
        "test_work.py::test_analysis_that_falls_behind_keeps_the_rest_unanalysed_and_counts_it",
    ),
    # What a crash, a lost hint or a corrupt store left is found.
    Change(
        f"{TASKS}/rescan.py",
        "self._adopt(unknown, quarantine=True)",
        "unknown.clear()",
        "test_work.py::test_recordings_whose_hints_were_lost_are_found",
    ),
    Change(
        f"{TASKS}/rescan.py",
        "if self._store.rebuilding:",
        "if not self._store:",
        "test_work.py::test_a_store_that_was_lost_is_rebuilt_from_the_files_and_detections_are_the_same",
    ),
    Change(
        f"{TASKS}/rescan.py",
        "if not self._store.verify():",
        "if not self._store:",
        "test_work.py::test_a_store_that_is_corrupt_is_replaced_by_the_next_rescans_and_no_recording_is_lost",
    ),
    Change(
        f"{STORE}/database.py",
        "self._unclean.touch(mode=0o640)",
        "pass",
        "test_store.py::test_an_unclean_end_is_noticed_and_a_sound_store_passes",
    ),
    Change(
        f"{TASKS}/work.py",
        "if self.troubles.get(name) != str(error):",
        "if name:",
        "test_work.py::test_a_card_that_is_full_costs_no_recording_and_no_attempt",
    ),
    # Messages.
    Change(
        f"{TASKS}/sending.py",
        "self._clock.steady() + pause_after(pace.failures)",
        "self._clock.steady()",
        "test_work.py::test_a_server_that_was_down_gets_everything_in_order_once_it_is_back",
    ),
    Change(
        f"{STORE}/outbox.py",
        "WHERE m.recording = recording.seq AND d.acknowledged_on IS NULL)",
        "WHERE m.recording = recording.seq AND 0)",
        "test_store.py::test_a_recording_is_uploaded_when_every_messenger_acknowledged_every_message",
    ),
    Change(
        f"{STORE}/outbox.py",
        "    if not messengers:\n        return\n",
        "",
        "test_store.py::test_messages_of_no_messenger_and_beyond_the_limit_do_not_stay",
    ),
    Change(
        f"{PARTS}/http.py",
        '"Idempotency-Key": str(message.id)',
        '"Idempotency-Key": str(id(message))',
        "test_work.py::test_acknowledgements_that_are_lost_lead_to_repeats_that_the_receiver_absorbs",
    ),
    Change(
        f"{PARTS}/http.py",
        'again.remove_header("Authorization")',
        "pass",
        "test_components.py::test_a_token_does_not_follow_a_redirect_to_another_host",
    ),
    # Time, and room on the card.
    Change(
        f"{TASKS}/times.py",
        "or not clock.synced():",
        "or clock.synced():",
        "test_work.py::test_what_was_recorded_with_a_wrong_clock_is_corrected_once_before_it_is_sent",
    ),
    Change(
        f"{TASKS}/sending.py",
        "hold = self._clock.boot_id if self._clock_may_become_right() else None",
        "hold = None",
        "test_work.py::test_what_was_recorded_with_a_wrong_clock_is_corrected_once_before_it_is_sent",
    ),
    Change(
        f"{TASKS}/retention.py",
        "        if self._clock.synced():\n",
        "        if self._clock:\n",
        "test_work.py::test_recordings_go_by_age_only_when_the_clock_can_be_believed",
    ),
    Change(
        f"{TASKS}/retention.py",
        'if size > 0 and self._config.when_full == "drop_oldest":',
        "if size > 0:",
        "test_work.py::test_what_is_nowhere_else_stays_unless_the_configuration_says_otherwise",
    ),
    Change(
        f"{TASKS}/retention.py",
        "self._delete(reason, uploaded_only=True, size=size)",
        "0",
        "test_work.py::test_what_was_uploaded_goes_first_and_the_oldest_before_the_newer",
    ),
    Change(
        f"{TASKS}/retention.py",
        "if self._clock.steady() >= self._tidy_at:",
        "if self._clock:",
        "test_work.py::test_a_sensor_with_nothing_to_do_writes_next_to_nothing",
    ),
    # What is kept.
    Change(
        f"{PARTS}/saving.py",
        "moment = recording.created_on.astimezone(ZoneInfo(self.timezone)).time()",
        "moment = recording.created_on.time()",
        "test_components.py::test_a_window_of_the_local_day_may_cross_midnight",
    ),
    Change(
        f"{PARTS}/saving.py",
        "dawn_and_dusk(place.latitude, place.longitude, day)",
        "dawn_and_dusk(51.48, 0.0, day)",
        "test_components.py::test_dawn_and_dusk_are_those_of_the_sensors_place",
    ),
    Change(
        f"{PARTS}/saving.py",
        '_{recording.id}{suffix}"',
        '{suffix}"',
        "test_components.py::test_two_recordings_of_one_second_have_two_names_in_the_folder_of_their_day",
    ),
)


def copy_to(folder: Path) -> None:
    """Copy the sources, without what was compiled from them."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)


def is_red(change: Change, folder: Path) -> str | None:
    """Apply a change and run its test; None if it is red, else what is wrong."""
    path = folder / change.file
    text = path.read_text()
    if text.count(change.old) != 1:
        return f"{change.old!r} stands there {text.count(change.old)} times; correct the table"
    path.write_text(text.replace(change.old, change.new))
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{change.test}"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    path.write_text(text)
    if done.returncode == 1 and "skipped" not in done.stdout.splitlines()[-1]:
        return None
    return f"{change.test} is not red (exit code {done.returncode}): {done.stdout.strip().splitlines()[-1]}"


def main() -> int:
    """Apply all changes that the command line asks for."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [change for change in CHANGES if word in change.file or word in change.test]
    green = 0
    with tempfile.TemporaryDirectory(prefix="prove-") as name:
        copy_to(Path(name))
        for change in chosen:
            wrong = is_red(change, Path(name))
            print(f"{'red   ' if wrong is None else 'GREEN '} {change.file}: {change.new.strip()[:60]!r}", flush=True)
            if wrong is not None:
                green += 1
                print(f"       {wrong}", flush=True)
    print(f"{len(chosen) - green} of {len(chosen)} changes are noticed")
    return 1 if green or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
