"""What is taken away from processes, units and what they say of themselves, to prove that their tests can fail."""

from __future__ import annotations

from tests.prove.change import Change

SYSTEM, TASKS, UNITS = "acoupi_runtime/system", "acoupi_runtime/tasks", "templates/systemd"
APP, FAULTS, SUPERVISE, WORKER = (f"tests/test_{room}.py" for room in ("app", "faults", "supervise", "worker"))
WATCHED = "tests/test_units.py::test_every_service_is_tried_again_for_ever_and_watched"

CHANGES: tuple[Change, ...] = (
    # It hangs, it dies, and comes back.
    Change(34, f"{UNITS}/acoupi-worker@recording.service.j2", "WatchdogSec=60\n", "", WATCHED),
    Change(
        34,
        f"{SYSTEM}/watch.py",
        "if now - task.since > self._hard:",
        "if not task.since:",
        f"{APP}::test_a_worker_that_makes_no_progress_ends_itself[hangs]",
    ),
    Change(35, f"{UNITS}/acoupi-worker@recording.service.j2", "StartLimitIntervalSec=0\n", "", WATCHED),
    Change(35, f"{UNITS}/acoupi-worker@.service.j2", "StartLimitIntervalSec=0\n", "", WATCHED),
    Change(35, f"{UNITS}/_service.j2", "Restart=always\n", "", WATCHED),
    Change(
        36,
        f"{SYSTEM}/beat.py",
        "return max(self._slot, self._retry) - clocks.monotonic()",
        "return max(self._slot, self._retry) - clocks.wall().timestamp() + 1777636830 - 1000",
        "tests/test_beat.py::test_an_interval_does_not_notice_that_the_clock_is_set",
    ),
    Change(
        36,
        f"{TASKS}/rescan.py",
        "            self._store.add_clock_step(step)\n",
        "",
        f"{FAULTS}::test_a_step_of_the_clock_is_counted",
    ),
    Change(
        47,
        "acoupi_runtime/programs/basic.py",
        "self.add_task(work.process_backlog, schedule=BACKLOG, queue=detection)",
        "self.add_task(work.process_backlog, queue=detection)",
        f"{WORKER}::test_recording_goes_on_without_redis_and_processing_resumes_with_it",
    ),
    Change(
        48,
        f"{SYSTEM}/watch.py",
        "if since is not None and now - max(since, self._moved) > STANDSTILL:",
        "if since == -1:",
        f"{APP}::test_a_worker_that_makes_no_progress_ends_itself[does not consume]",
    ),
    Change(
        50,
        f"{SYSTEM}/worker.py",
        "        beat = Beat(apps.entries_of(program), Sender(apps.app_of(program)).send_entry)\n",
        "        beat = Beat(apps.entries_of(program), Sender(apps.app_of(program)).send_entry)\n"
        '        __import__("shelve").open(str(home.run_dir / "celerybeat-schedule"))\n',
        f"{FAULTS}::test_a_beat_starts_whatever_lies_about_where_celery_keeps_its_schedule",
    ),
    Change(
        57,
        f"{SYSTEM}/supervise.py",
        "LOCK_EX | fcntl.LOCK_NB)\n        except BlockingIOError:\n            holder",
        "LOCK_SH | fcntl.LOCK_NB)\n        except BlockingIOError:\n            holder",
        f"{SUPERVISE}::test_a_pid_file_names_its_holder_and_goes_with_it",
    ),
    Change(
        58,
        f"{SYSTEM}/supervise.py",
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):",
        "for number in (signal.SIGINT, signal.SIGHUP):",
        f"{WORKER}::test_sigterm_closes_the_recording_that_is_under_way",
    ),
    Change(
        58,
        "acoupi_runtime/audio/recorder.py",
        "                    lane.finish(tape, self._clock.steady())\n",
        "                    pass\n",
        "tests/test_audio_faults.py::test_sigterm_closes_the_file_whole_at_once",
    ),
    # One task, one worker.
    Change(
        45,
        f"{SYSTEM}/apps.py",
        '"visibility_timeout": 3 * config.task_time_limit,',
        '"visibility_timeout": 5,',
        f"{APP}::test_a_task_is_given_to_no_second_worker_while_the_first_may_still_work_on_it",
    ),
    # Others on the same machine.
    Change(
        43,
        f"{SYSTEM}/apps.py",
        'accept_content=["json"],\n        result',
        'accept_content=["json", "pickle"],\n        result',
        f"{APP}::test_nothing_that_is_pushed_into_redis_is_run_or_ends_the_worker",
    ),
    Change(
        43,
        "templates/home/config/redis.conf.j2",
        "unixsocketperm 700\n",
        "unixsocketperm 777\n",
        f"{FAULTS}::test_another_user_reaches_neither_the_broker_nor_through_it_the_workers",
    ),
    Change(
        43,
        "templates/home/config/redis.conf.j2",
        "port 0\n",
        "port 6399\n",
        f"{FAULTS}::test_another_user_reaches_neither_the_broker_nor_through_it_the_workers",
    ),
    Change(
        59,
        "acoupi_runtime/audio/paths.py",
        "spool.mkdir(mode=0o700 if memory else 0o750)",
        "spool.mkdir(mode=0o777); spool.chmod(0o777)",
        f"{FAULTS}::test_another_user_can_neither_plant_a_file_in_the_spool_nor_read_one",
    ),
    Change(
        59,
        "acoupi_runtime/audio/paths.py",
        "if memory and found.st_mode & 0o077:",
        "if memory and found.st_mode < 0:",
        "tests/test_audio_faults.py::test_a_spool_in_memory_is_a_private_folder_of_the_users_own",
    ),
    # Logs, memory, heat, and what is said of losses.
    Change(
        54,
        "acoupi_runtime/audio/recorder.py",
        "                if str(error) != told:\n",
        "                if str(error):\n",
        f"{FAULTS}::test_a_microphone_that_is_away_for_an_hour_costs_a_few_lines_of_the_log",
    ),
    Change(
        54,
        f"{SYSTEM}/supervise.py",
        '_NUMBER.sub("#", line)',
        "line",
        f"{FAULTS}::test_trouble_that_changes_its_words_every_second_is_held_back_too",
    ),
    Change(
        55,
        f"{UNITS}/acoupi-worker@.service.j2",
        "MemoryMax=60%\n",
        "",
        f"{FAULTS}::test_when_memory_is_short_the_kernel_takes_the_processing_and_not_the_recorder",
    ),
    Change(
        55,
        f"{UNITS}/acoupi-worker@recording.service.j2",
        "OOMScoreAdjust=-500\n",
        "",
        f"{FAULTS}::test_when_memory_is_short_the_kernel_takes_the_processing_and_not_the_recorder",
    ),
    Change(
        56,
        f"{TASKS}/heartbeat.py",
        "    board = Board.read()\n",
        "    board = Board(None, None)\n",
        f"{FAULTS}::test_a_weak_supply_and_heat_are_in_the_heartbeat_and_in_status",
    ),
    Change(
        33,
        f"{SYSTEM}/worker.py",
        "                self._missed.look()\n",
        "                pass\n",
        f"{FAULTS}::test_a_sensor_counts_by_itself_that_its_microphone_is_gone",
    ),
    Change(
        35,
        f"{UNITS}/acoupi-worker@recording.service.j2",
        "StartLimitIntervalSec=0\n",
        "",
        "tests/test_sensor_faults.py::test_a_recorder_that_is_killed_again_and_again_is_never_given_up",
    ),
    Change(
        33,
        f"{SYSTEM}/missed.py",
        '            self._tally["microphone_gone_seconds"] += round(state.boottime) - round(last.boottime)\n',
        "            pass\n",
        f"{FAULTS}::test_what_the_recorder_missed_is_counted_for_good",
    ),
    Change(
        0,
        "acoupi_runtime/store/recordings.py",
        '        "frames_lost": sum(frames for _, frames in capture.overflows),\n',
        "",
        f"{FAULTS}::test_what_was_lost_is_in_the_store_the_heartbeat_and_both_kinds_of_status",
    ),
    Change(
        0,
        "acoupi_runtime/cli.py",
        """        lines.append(f"counted: {counted or 'nothing yet'}")\n""",
        "",
        f"{FAULTS}::test_what_was_lost_is_in_the_store_the_heartbeat_and_both_kinds_of_status",
    ),
    Change(
        32,
        f"{TASKS}/retention.py",
        "            self._full_file.touch()\n",
        "            pass\n",
        f"{FAULTS}::test_recordings_that_have_all_the_room_they_were_given_make_the_recorder_wait",
    ),
)
