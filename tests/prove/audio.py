"""What is taken away from the capture path, to prove that its tests can fail."""

from __future__ import annotations

from tests.prove.change import Change

AUDIO = "acoupi_runtime/audio"
RECORDER, FAULTS, FILES, SIGNAL = (f"tests/test_audio_{room}.py" for room in ("recorder", "faults", "files", "signal"))

CHANGES: tuple[Change, ...] = (
    # Every frame once, in order.
    Change(
        0,
        f"{AUDIO}/ring.py",
        "if first >= self.oldest:",
        "if first >= 0:",
        f"{SIGNAL}::test_a_copy_that_the_writer_came_past_is_made_again",
    ),
    Change(
        49,
        f"{AUDIO}/cuts.py",
        "if after is not None and self._window",
        "if not after and self._window",
        f"{RECORDER}::test_a_stall_shorter_than_the_buffer_loses_nothing",
    ),
    Change(
        33,
        f"{AUDIO}/cuts.py",
        "previous = None if self._joined else self._previous",
        "previous = self._previous",
        "tests/test_audio_microphone.py::test_a_microphone_is_heard_to_the_bit_held_up_pulled_out_and_plugged_in_again",
    ),
    Change(
        33,
        f"{AUDIO}/recorder.py",
        "            if tape.head:\n                self._take_in(tape)\n",
        "            if tape.head:\n",
        f"{RECORDER}::test_an_unplugged_microphone_is_awaited_and_its_partial_file_kept",
    ),
    Change(
        0,
        f"{AUDIO}/recorder.py",
        "spare = round(recording.buffer * microphone.samplerate / 4)",
        "spare = capacity // 4",
        f"{RECORDER}::test_a_pre_roll_longer_than_the_buffer_is_there_in_full",
    ),
    Change(
        0,
        f"{AUDIO}/tape.py",
        "                self._missing(mark.lost_before)\n",
        "",
        f"{RECORDER}::test_sound_that_the_card_lost_is_counted_with_its_place",
    ),
    # Times.
    Change(
        0,
        f"{AUDIO}/frameclock.py",
        "return sorted(arrivals)[len(arrivals) // 4]",
        "return arrivals[-1]",
        f"{SIGNAL}::test_times_stay_within_a_few_ms_over_a_day_of_drift_and_late_blocks",
    ),
    Change(
        0,
        f"{AUDIO}/frameclock.py",
        "if surprise > _JUMP:",
        "if surprise > 1e9:",
        f"{SIGNAL}::test_sound_that_a_card_lost_moves_the_times_of_what_follows",
    ),
    Change(
        0,
        f"{AUDIO}/planner.py",
        "math.ceil(round((earliest - previous) / period, 9))",
        "1",
        "tests/test_audio_planner.py::test_the_next_start",
    ),
    # The microphone goes, stays dead, is silent.
    Change(
        33,
        f"{AUDIO}/recorder.py",
        "                    self._source.reset()\n",
        "                    pass\n",
        f"{RECORDER}::test_an_unplugged_microphone_is_awaited_and_its_partial_file_kept",
    ),
    Change(
        34,
        f"{AUDIO}/recorder.py",
        "elif now - last_heard > patience:",
        "elif now < last_heard:",
        f"{RECORDER}::test_a_microphone_that_dies_while_open_is_opened_anew",
    ),
    Change(
        34,
        f"{AUDIO}/recorder.py",
        "if dead >= _DEAD_OPENINGS:",
        "if dead < 0:",
        f"{RECORDER}::test_a_microphone_that_gives_no_sound_is_opened_anew_and_then_only_a_new_process_helps",
    ),
    Change(
        33,
        f"{AUDIO}/recorder.py",
        "silent=self._silent >= _SILENT_RECORDINGS",
        "silent=False",
        f"{RECORDER}::test_three_silent_recordings_running_are_reported_and_one_with_sound_ends_it",
    ),
    Change(
        57,
        f"{AUDIO}/recorder.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        f"{RECORDER}::test_a_second_recorder_in_one_home_is_refused_and_the_state_goes_with_the_recorder",
    ),
    # The card is full, fails, loses its power.
    Change(
        31,
        f"{AUDIO}/take.py",
        "            os.fsync(self._file)\n",
        "",
        f"{FAULTS}::test_a_recording_is_given_its_name_only_when_it_would_outlast_a_power_cut",
    ),
    Change(
        31,
        f"{AUDIO}/take.py",
        "            sync_dir(path.parent)\n",
        "",
        f"{FAULTS}::test_a_recording_is_given_its_name_only_when_it_would_outlast_a_power_cut",
    ),
    Change(
        31,
        f"{AUDIO}/take.py",
        "            self._writer.sync()\n",
        "",
        f"{FAULTS}::test_a_recording_is_given_its_name_only_when_it_would_outlast_a_power_cut",
    ),
    Change(
        52,
        f"{AUDIO}/lane.py",
        "self._position += take.frames - before",
        "self._position += len(block)",
        f"{FAULTS}::test_files_that_cannot_grow_are_followed_by_others_that_meet_at_the_frame",
    ),
    Change(
        52,
        f"{AUDIO}/lane.py",
        "self._try_again = now + _TRY_AGAIN",
        "self._try_again = now + 1e9",
        f"{FAULTS}::test_files_that_cannot_grow_are_followed_by_others_that_meet_at_the_frame",
    ),
    Change(
        32,
        f"{AUDIO}/lane.py",
        "            require_room(self._spool, self._config.retention.reserve * 1e6 + self._needs)\n",
        "",
        f"{FAULTS}::test_a_full_disk_pauses_recording_before_the_reserve_is_touched_and_room_resumes_it",
    ),
    Change(
        52,
        f"{AUDIO}/lane.py",
        "            self._try_again = now  # what",
        "            pass  # what",
        f"{FAULTS}::test_a_disk_that_is_full_for_a_moment_before_the_end_costs_nothing",
    ),
    Change(
        52,
        f"{AUDIO}/lane.py",
        "        except (OSError, RecordingError) as error:",
        "        except RecordingError as error:",
        f"{FAULTS}::test_a_read_only_disk_is_noticed_said_and_survived",
    ),
    Change(
        44,
        f"{AUDIO}/repair.py",
        '"truncated": True',
        '"truncated": False',
        f"{FAULTS}::test_a_killed_recording_is_repaired_and_loses_nothing_that_was_written",
    ),
    Change(
        31,
        f"{AUDIO}/take.py",
        "if part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):",
        "if descriptor:",
        f"{FILES}::test_a_rescan_at_any_instant_takes_nothing_away_from_a_recorder",
    ),
    Change(
        44,
        f"{AUDIO}/flacfile.py",
        "os.ftruncate(descriptor, place + length)",
        "pass",
        f"{FILES}::test_a_cut_flac_is_whole_up_to_its_last_complete_frame",
    ),
)
