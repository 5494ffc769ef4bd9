"""What is taken away from the store, the work on recordings and the messages, to prove that their tests can fail."""

from __future__ import annotations

from tests.prove.change import Change

STORE, TASKS, PARTS = "acoupi_runtime/store", "acoupi_runtime/tasks", "acoupi_runtime/components"

CHANGES: tuple[Change, ...] = (
    # A recording comes to one final state, once.
    Change(
        46,
        f"{STORE}/recordings.py",
        "WHERE id = ? AND state = 'recorded' AND created_on = ? RETURNING",
        "WHERE id = ? AND state != '' AND created_on = ? RETURNING",
        "tests/test_store.py::test_what_is_decided_twice_is_stored_once",
    ),
    Change(
        45,
        f"{STORE}/recordings.py",
        "OR r.lease_until <= :now)",
        "OR 1)",
        "tests/test_store.py::test_a_claim_ends_by_time_by_a_boot_and_with_its_process",
    ),
    Change(
        39,
        f"{STORE}/recordings.py",
        "moving_from = :source AND path IS :target AND id = :id",
        "id = :id",
        "tests/test_store.py::test_a_settlement_of_an_older_decision_does_not_hide_a_newer_one",
    ),
    Change(
        39,
        f"{TASKS}/process.py",
        "            moves = self._store.finish(outcomes",
        "            for one in outcomes:\n"
        "                one.path.parent.mkdir(parents=True, exist_ok=True)\n"
        "                one.recording.path.rename(one.path)\n"
        "            moves = self._store.finish(outcomes",
        "tests/test_injection.py::test_whichever_system_call_fails_or_is_the_last_nothing_is_lost[processing]",
    ),
    Change(
        42,
        f"{TASKS}/pipeline.py",
        '"id": derived_id(recording.id, by),',
        '"id": output.id,',
        "tests/test_work.py::test_ids_follow_from_the_recording_and_what_was_heard",
    ),
    Change(
        38,
        f"{TASKS}/rescan.py",
        "if not is_alive(owner):",
        "if not owner:",
        "tests/test_work.py::test_a_recording_that_kills_its_process_is_quarantined_without_another_try",
    ),
    Change(
        38,
        f"{TASKS}/process.py",
        "if claim.attempts > self._config.max_attempts:",
        "if not claim.attempts:",
        "tests/test_work.py::test_a_recording_that_kills_its_process_is_quarantined_without_another_try",
    ),
    Change(
        38,
        f"{TASKS}/process.py",
        "if claim.attempts >= self._config.max_attempts:",
        "if not claim.attempts:",
        "tests/test_work.py::test_a_recording_that_fails_is_tried_again_then_quarantined_while_others_go_on",
    ),
    Change(
        32,
        f"{TASKS}/process.py",
        "            self._store.give_back(claims)\n",
        "",
        "tests/test_room.py::test_a_result_that_does_not_fit_on_the_card_costs_its_recording_no_attempt",
    ),
    Change(
        38,
        f"{TASKS}/process.py",
        "        except ImportError:",
        "        except ZeroDivisionError:",
        "tests/test_work.py::test_a_part_of_the_program_that_cannot_be_imported_costs_no_recording_an_attempt",
    ),
    # The card does not answer once.
    Change(
        52,
        f"{PARTS}/http.py",
        "import encodings.idna  # noqa: F401\n",
        "",
        "tests/test_work.py::test_a_worker_has_imported_all_that_it_needs_before_its_first_task",
    ),
    Change(
        52,
        f"{PARTS}/energy.py",
        "        import numpy.ma  # noqa: F401\n",
        "",
        "tests/test_work.py::test_a_worker_has_imported_all_that_it_needs_before_its_first_task",
    ),
    Change(
        52,
        f"{TASKS}/filing.py",
        "        except Exception:  # whatever",
        "        except StoreError:  # whatever",
        "tests/test_work.py::test_whatever_is_raised_while_a_recording_is_stored_the_next_one_is_stored",
    ),
    Change(
        52,
        f"{TASKS}/rescan.py",
        "                self._unread.add(path)",
        "                self._no_recordings.add(path)",
        "tests/test_work.py::test_a_file_that_cannot_be_read_for_a_while_is_learnt_of_when_it_can",
    ),
    Change(
        51,
        f"{TASKS}/rescan.py",
        "        if not self._unread:\n",
        "        if self._store:\n",
        "tests/test_work.py::test_a_file_that_cannot_be_read_for_a_while_is_learnt_of_when_it_can",
    ),
    Change(
        52,
        f"{STORE}/database.py",
        "        except OSError:\n            return False\n",
        "        except ZeroDivisionError:\n            return False\n",
        "tests/test_store.py::test_a_mark_that_cannot_be_looked_for_stops_nobody",
    ),
    Change(
        52,
        f"{STORE}/database.py",
        "                    self._let_go()  # nobody else does, where this was the first connection\n",
        "",
        "tests/test_store.py::test_a_store_that_could_not_be_opened_once_is_opened_the_next_time",
    ),
    Change(
        52,
        f"{STORE}/database.py",
        "        if not self._is_usable() and not self._is_usable():",
        "        if not self._is_usable():",
        "tests/test_store.py::test_a_store_that_could_not_be_opened_once_is_opened_the_next_time",
    ),
    Change(
        52,
        f"{STORE}/database.py",
        "                self._close_idle()\n",
        "                pass\n",
        "tests/test_store.py::test_a_connection_at_which_something_failed_is_not_used_again",
    ),
    Change(
        49,
        f"{TASKS}/process.py",
        "        if excess <= 0:",
        "        if excess:",
        "tests/test_work.py::test_analysis_that_falls_behind_keeps_the_rest_unanalysed_and_counts_it",
    ),
    # What a crash, a lost hint or a corrupt store left is found.
    Change(
        40,
        f"{TASKS}/rescan.py",
        "self._adopt(unknown, quarantine=True)",
        "unknown.clear()",
        "tests/test_work.py::test_recordings_whose_hints_were_lost_are_found",
    ),
    Change(
        51,
        f"{TASKS}/rescan.py",
        "if self._store.rebuilding:",
        "if not self._store:",
        "tests/test_work.py::test_a_store_that_was_lost_is_rebuilt_from_the_files_and_detections_are_the_same",
    ),
    Change(
        51,
        f"{TASKS}/rescan.py",
        "if not self._store.verify():",
        "if not self._store:",
        "tests/test_work.py::test_a_store_that_is_corrupt_is_replaced_by_the_next_rescans_and_no_recording_is_lost",
    ),
    Change(
        51,
        f"{STORE}/database.py",
        "self._unclean.touch(mode=0o640)",
        "pass",
        "tests/test_store.py::test_an_unclean_end_is_noticed_and_a_sound_store_passes",
    ),
    Change(
        54,
        f"{TASKS}/work.py",
        "if self.troubles.get(name) != str(error):",
        "if name:",
        "tests/test_room.py::test_a_card_that_is_full_costs_no_recording_and_no_attempt",
    ),
    # Messages.
    Change(
        41,
        f"{TASKS}/sending.py",
        "self._clock.steady() + pause_after(pace.failures)",
        "self._clock.steady()",
        "tests/test_messages.py::test_a_server_that_was_down_gets_everything_in_order_once_it_is_back",
    ),
    Change(
        32,
        f"{STORE}/outbox.py",
        "WHERE m.recording = recording.seq AND d.acknowledged_on IS NULL)",
        "WHERE m.recording = recording.seq AND 0)",
        "tests/test_store.py::test_a_recording_is_uploaded_when_every_messenger_acknowledged_every_message",
    ),
    Change(
        41,
        f"{STORE}/outbox.py",
        "    if not messengers:\n        return\n",
        "",
        "tests/test_store.py::test_messages_of_no_messenger_and_beyond_the_limit_do_not_stay",
    ),
    Change(
        42,
        f"{PARTS}/http.py",
        '"Idempotency-Key": str(message.id)',
        '"Idempotency-Key": str(id(message))',
        "tests/test_messages.py::test_acknowledgements_that_are_lost_lead_to_repeats_that_the_receiver_absorbs",
    ),
    Change(
        0,
        f"{PARTS}/http.py",
        'again.remove_header("Authorization")',
        "pass",
        "tests/test_components.py::test_a_token_does_not_follow_a_redirect_to_another_host",
    ),
    # Time, and room on the card.
    Change(
        37,
        f"{TASKS}/times.py",
        "or not clock.synced():",
        "or clock.synced():",
        "tests/test_messages.py::test_what_was_recorded_with_a_wrong_clock_is_corrected_once_before_it_is_sent",
    ),
    Change(
        37,
        f"{TASKS}/sending.py",
        "hold = self._clock.boot_id if self._clock_may_become_right() else None",
        "hold = None",
        "tests/test_messages.py::test_what_was_recorded_with_a_wrong_clock_is_corrected_once_before_it_is_sent",
    ),
    Change(
        36,
        f"{TASKS}/retention.py",
        "        if self._clock.synced():\n",
        "        if self._clock:\n",
        "tests/test_room.py::test_recordings_go_by_age_only_when_the_clock_can_be_believed",
    ),
    Change(
        32,
        f"{TASKS}/retention.py",
        'if size > 0 and self._config.when_full == "drop_oldest":',
        "if size > 0:",
        "tests/test_room.py::test_what_is_nowhere_else_stays_unless_the_configuration_says_otherwise",
    ),
    Change(
        32,
        f"{TASKS}/retention.py",
        "self._delete(reason, uploaded_only=True, size=size)",
        "0",
        "tests/test_room.py::test_what_was_uploaded_goes_first_and_the_oldest_before_the_newer",
    ),
    Change(
        53,
        f"{TASKS}/retention.py",
        "if self._clock.steady() >= self._tidy_at:",
        "if self._clock:",
        "tests/test_room.py::test_a_sensor_with_nothing_to_do_writes_next_to_nothing",
    ),
    # What is kept.
    Change(
        0,
        f"{PARTS}/saving.py",
        "moment = recording.created_on.astimezone(ZoneInfo(self.timezone)).time()",
        "moment = recording.created_on.time()",
        "tests/test_components.py::test_a_window_of_the_local_day_may_cross_midnight",
    ),
    Change(
        0,
        f"{PARTS}/saving.py",
        "dawn_and_dusk(place.latitude, place.longitude, day)",
        "dawn_and_dusk(51.48, 0.0, day)",
        "tests/test_components.py::test_dawn_and_dusk_are_those_of_the_sensors_place",
    ),
    Change(
        36,
        f"{PARTS}/saving.py",
        '_{recording.id}{suffix}"',
        '{suffix}"',
        "tests/test_components.py::test_two_recordings_of_one_second_have_two_names_in_the_folder_of_their_day",
    ),
)
