"""Tests of the sensor's command line: what is right does one thing, what is wrong is one line and an exit code."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acoupi_runtime.configuration import DeploymentConfig
from acoupi_runtime.home import Home
from tests.processes import Sensor, listening_values, sensor

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Sensor]:
    """A sensor in which nothing runs."""
    with sensor(tmp_path, "connected", listening_values(tmp_path, tmp_path / "tone.wav")) as made:
        yield made


def at_home(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `acoupi-runtime WORDS` where ACOUPI_HOME is `home`."""
    return subprocess.run(
        [sys.executable, "-m", "acoupi_runtime", *words],
        env={**os.environ, "ACOUPI_HOME": str(home), "HOME": str(home.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "the following arguments are required: VERB"),
        ("stat", "invalid choice: 'stat'"),
        ("status --jsn", "--jsn: not understood"),
        ("status --watch-frames x", "invalid _seconds value: 'x'"),
        ("status --watch-frames 0", "0: between 0 and 86400 seconds"),
        ("worker", "the following arguments are required: NAME"),
        ("archived --before yesterday", "yesterday: write it as 2026-05-01"),
        ("config set recording.duration", "the following arguments are required: VALUE"),
        ("setup --recording.duration", "--recording.duration has no value"),
        ("setup recording.duration=5", "'recording.duration=5' is not understood"),
        ("setup --program defualt", "did you mean 'default'?"),
        ("setup --recording.duration 0", "recording.duration: Input should be greater than 0"),
        ("setup --recording.durration 5", "recording.durration: Extra inputs are not permitted"),
        ("setup --recording 5 --recording.duration 5", "and a value for 'recording'"),
        ("setup --recording.schedule_start 1140", "quote it: '19:00'"),
        ("setup --celery.timezone Mars", "'Mars' is not a time zone"),
        ("status", "there is no sensor here"),
        ("check", "there is no sensor here"),
        ("worker recording", "there is no sensor here"),
        ("beat", "there is no sensor here"),
        ("workers start", "there is no sensor here"),
        ("config get", "there is no sensor here"),
        ("task list", "there is no sensor here"),
        ("deployment status", "there is no sensor here"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_1(tmp_path: Path, words: str, line: str) -> None:
    done = at_home(tmp_path / "home", *words.split())
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert line in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "home").exists() or words.startswith(("worker", "beat"))


def test_setup_writes_a_home_that_the_same_words_leave_as_it_is(tmp_path: Path) -> None:
    words = ["setup", "--program", "default", "--recording.duration", "7", "--program.recording.schedule_start=19:00"]
    words += ["--celery.timezone", "Europe/Zurich", "--deployment.name", "Oak tree", "--deployment.latitude", "46.5"]
    first = at_home(tmp_path / "home", *words)
    assert first.returncode == 0, first.stderr
    assert "written" in first.stdout
    home = Home(tmp_path / "home")
    assert json.loads(home.program_file.read_text())["recording"]["schedule_start"] == "19:00:00"
    assert json.loads(home.celery_file.read_text())["timezone"] == "Europe/Zurich"
    wanted = DeploymentConfig.model_validate_json(home.deployment_file.read_text())
    assert wanted == DeploymentConfig(name="Oak tree", latitude=46.5)
    assert "as it was" in at_home(tmp_path / "home", *words).stdout


def test_a_field_is_read_and_set_by_its_dots(one: Sensor) -> None:
    assert json.loads(one.run("config", "get", "recording.duration").stdout) == 1
    assert one.run("config", "set", "recording.duration", "1.5").returncode == 0
    assert json.loads(one.run("config", "get", "recording__duration").stdout) == 1.5
    assert one.run("config", "set", "microphone.device_name", "1234").returncode == 0
    assert json.loads(one.run("config", "get", "microphone").stdout)["device_name"] == "1234"
    assert "as it was" in one.run("config", "set", "recording.duration", "1.5").stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("get recording.durtion", "did you mean 'duration'?"),
        ("get recording.duration.x", "there is nothing below 'x'"),
        ("set recording.durtion 5", "did you mean 'duration'?"),
        ("set recording.duration 60", "interval (2 s) is shorter than duration (60 s)"),
        ("set recording.duration long", "Input should be a valid number"),
        ("set recording_saving.starttime 18:00", "its section 'recording_saving' is not set"),
    ],
)
def test_a_wrong_field_or_value_changes_nothing(one: Sensor, words: str, line: str) -> None:
    before = one.home.program_file.read_bytes()
    done = one.run("config", *words.split())
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert line in done.stderr
    assert one.home.program_file.read_bytes() == before


def test_a_secret_is_masked_where_it_is_shown_and_kept_where_it_is_needed(one: Sensor) -> None:
    http = json.dumps({"base_url": "https://receiver.example", "token": "canary"})
    assert one.run("config", "set", "messaging.http", http).returncode == 0
    assert one.run("config", "set", "recording.duration", "1.25").returncode == 0
    shown = one.run("config", "get")
    assert "canary" not in shown.stdout
    assert "**********" in shown.stdout
    assert json.loads(one.home.program_file.read_text())["messaging"]["http"]["token"] == "canary"
    assert one.home.program_file.stat().st_mode & 0o007 == 0


def test_a_home_that_a_fleet_manages_says_who_and_changes_nothing(one: Sensor) -> None:
    (one.home.config_dir / "managed").write_text("acoupi-fleet 0.1.0: change the inventory, and provision again\n")
    before = one.home.program_file.read_bytes()
    for words in (
        ["config", "set", "recording.duration", "1.5"],
        ["deployment", "start", "--name", "Elm"],
        ["setup", "--recording.duration", "1.5"],
    ):
        done = one.run(*words)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "fleet manages" in done.stderr
    assert one.home.program_file.read_bytes() == before


def test_a_torn_configuration_is_named_in_one_line(one: Sensor) -> None:
    for content, words in (
        ("{", "not JSON"),
        ('{"recording": {"duration": -1}}', "recording.duration"),
        ("[]", "dictionary"),
    ):
        one.home.program_file.write_text(content)
        done = one.run("worker", "recording")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert str(one.home.program_file) in done.stderr
        assert words in done.stderr


def test_a_deployment_is_named_started_and_stopped(one: Sensor) -> None:
    assert one.run("deployment", "stop").returncode == 1
    done = one.run("deployment", "start", "--name", "Elm", "--latitude", "51.5", "--longitude", "-0.1")
    assert done.returncode == 0, done.stderr
    running = json.loads(one.run("deployment", "status").stdout)
    assert (running["name"], running["latitude"], running["longitude"]) == ("Elm", 51.5, -0.1)
    assert json.loads(one.home.deployment_file.read_text())["name"] == "Elm"
    assert one.run("deployment", "start", "--name", "Ash").returncode == 1
    assert one.run("deployment", "stop").returncode == 0
    assert json.loads(one.run("deployment", "status").stdout) is None
    assert one.run("deployment", "start", "--latitude", "91").returncode == 1


def test_tasks_are_listed_without_redis_and_not_run_without_it(one: Sensor) -> None:
    listed = {task["name"]: task for task in json.loads(one.run("task", "list").stdout)}
    assert listed["process_recording"] == {"name": "process_recording", "queue": "detection", "schedule": None}
    assert listed["rescan"]["schedule"] == 60
    done = one.run("task", "run", "rescan")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "Redis does not answer" in done.stderr


def test_workers_are_started_restarted_and_stopped_by_the_homes_own_scripts(one: Sensor) -> None:
    started = one.run("workers", "start")
    try:
        assert started.returncode == 0, started.stderr
        assert [line.partition(":")[0] for line in started.stdout.splitlines()] == ["redis", "recording", "processing"]
        first = one.status()["workers"]
        assert all(worker["alive"] for worker in first.values())
        assert one.run("workers", "restart").returncode == 0
        second = one.status()["workers"]
        assert all(worker["alive"] and worker["pid"] != first[name]["pid"] for name, worker in second.items())
    finally:
        stopped = one.run("workers", "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not any(worker["alive"] for worker in one.status()["workers"].values())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
def test_root_asks_as_the_user_whose_sensor_it_is(one: Sensor, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for path in [one.root, *one.root.rglob("*")]:
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    code = (
        "import os, sys, acoupi_runtime.cli as cli\n"
        "cli._deployment_status = lambda *_: print(os.getresuid(), os.environ['HOME']) or 0\n"
        "sys.exit(cli.main(['deployment', 'status']))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=one.environ, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:3] == [f"({nobody.pw_uid},", f"{nobody.pw_uid},", f"{nobody.pw_uid})"]
    assert done.stdout.split()[-1] == nobody.pw_dir


def test_the_version_and_help_are_told() -> None:
    assert at_home(Path("/nonexistent/home"), "--version").stdout.strip()
    assert "setup" in at_home(Path("/nonexistent/home"), "--help").stdout
