"""Tests of tasks and of what carries them: a program of our own, a real worker process, a real Redis."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from acoupi_runtime import data
from acoupi_runtime.configuration import CeleryConfig
from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import Home
from acoupi_runtime.system import wire
from acoupi_runtime.system.apps import bare_app
from tests.processes import PATIENCE, Sensor, sensor
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE = '''
"""A program for tests: it does not record, and notes what its tasks were given."""

import os
import threading
from pathlib import Path

from pydantic import BaseModel

from acoupi_runtime.data import Deployment, Detection, ModelOutput, PredictedTag, Recording, Tag
from acoupi_runtime.programs import AcoupiProgram

NOTES = Path(os.environ["HOME"])
RECORDING = Recording(duration=3, samplerate=384_000, deployment=Deployment(name="Oak"), path=Path("/x.wav"))


class Settings(BaseModel):
    tick: float = 3600


def hear() -> ModelOutput:
    tag = PredictedTag(tag=Tag(key="species", value="Myotis myotis"), confidence_score=0.5)
    return ModelOutput(name_model="probe", recording=RECORDING, detections=(Detection(tags=(tag,)),))


def note(output):
    (NOTES / "noted.json").write_text(f"{type(output).__name__} {output.model_dump_json()}")


def also(output):
    (NOTES / "also").write_text(output.detections[0].tags[0].tag.value)


def nothing():
    return None


def foreign():
    return Path("/etc/passwd")


def double(number):
    return 2 * number


def hang():
    threading.Event().wait()


def tick():
    with (NOTES / "ticks").open("a") as ticks:
        ticks.write("x")


class Program(AcoupiProgram[Settings]):
    config_schema = Settings

    def setup(self, config):
        self.add_task(hear, callbacks=[note, also], queue="detection")
        self.add_task(nothing, callbacks=[note])
        self.add_task(foreign)
        self.add_task(double)
        self.add_task(hang)
        self.add_task(tick, schedule=config.tick)
'''


def probing(root: Path, monkeypatch: pytest.MonkeyPatch, *, tick: float = 3600, hard: float = 60) -> Any:
    """A sensor whose program is PROBE."""
    (root / "probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("HOME", str(root))
    sys.modules.pop("probe", None)
    return sensor(root, "probe:Program", {"tick": tick}, CeleryConfig(task_soft_time_limit=1, task_time_limit=hard))


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sensor]:
    """One worker for all queues, and Redis; a test may leave it in any state."""
    with pytest.MonkeyPatch.context() as patch, probing(tmp_path_factory.mktemp("p"), patch) as made:
        yield made


def test_a_noun_arrives_at_each_callback_as_what_it_was(probe: Sensor) -> None:
    probe.up("default")
    done = probe.run("task", "run", "hear")
    assert done.returncode == 0, done.stderr
    sent = data.ModelOutput.model_validate_json(done.stdout)
    wait_until((probe.root / "noted.json").exists, PATIENCE, "the callback to run")
    wait_until((probe.root / "also").exists, PATIENCE, "the other callback to run")
    kind, _, text = wait_until((probe.root / "noted.json").read_text, PATIENCE, "its note").partition(" ")
    assert kind == "ModelOutput"
    assert data.ModelOutput.model_validate_json(text) == sent
    assert (probe.root / "also").read_text() == "Myotis myotis"


def test_a_result_of_another_type_is_refused_by_its_name(probe: Sensor) -> None:
    probe.up("default")
    done = probe.run("task", "run", "foreign")
    assert done.returncode == 1
    assert "PosixPath does not travel between tasks" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_task_is_run_by_its_worker_with_arguments(probe: Sensor) -> None:
    probe.up("default")
    assert json.loads(probe.run("task", "run", "double", "21").stdout) == 42
    assert json.loads(probe.run("task", "run", "double", "la").stdout) == "lala"
    assert json.loads(probe.run("task", "run", "nothing").stdout) is None
    unknown = probe.run("task", "run", "dooble")
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (1, 1)
    assert "there are hear, nothing, foreign, double, hang, tick" in unknown.stderr


class _Exploit:
    """Run by whoever unpickles it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._path), "w"))


def test_nothing_that_is_pushed_into_redis_is_run_or_ends_the_worker(probe: Sensor) -> None:
    probe.up("default")
    assert probe.redis is not None
    app = bare_app(probe.home, CeleryConfig())
    app.conf.update(task_serializer="pickle", accept_content=["pickle", "json"])
    app.send_task("double", args=[_Exploit(probe.root / "owned")], queue="celery", serializer="pickle")
    app.close()
    envelope = {"content-type": "application/json", "headers": {}, "properties": {}}
    for garbage in (
        "garbage",
        pickle.dumps(_Exploit(probe.root / "owned"), 0).decode(),
        json.dumps(envelope),
        '{"body": 3}',
    ):
        probe.redis.command("LPUSH", "celery", garbage)
    wait_until(lambda: probe.redis and probe.redis.command("LLEN", "celery") == "0", PATIENCE, "the queue to be taken")

    def works() -> bool:
        return probe.run("task", "run", "double", "1", "--timeout", "10").stdout.strip() == "2"

    wait_until(works, PATIENCE, f"the worker to work again; {probe.errors()}")
    assert not (probe.root / "owned").exists()


def test_celerys_own_command_line_reaches_the_workers_through_app_py(probe: Sensor) -> None:
    probe.up("default")
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "app", "inspect", "ping", "--timeout", "4"],
        cwd=probe.home.root,
        env=probe.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "default@" in done.stdout
    assert "pong" in done.stdout


def test_a_worker_told_to_shut_down_by_celery_comes_back(probe: Sensor) -> None:
    probe.up("default")
    app = bare_app(probe.home, CeleryConfig())
    app.control.shutdown()
    app.close()
    wait_until(lambda: "it is started again" in probe.errors(), PATIENCE, "Celery to end")
    wait_until(lambda: probe.answering("default"), PATIENCE, "the worker to come back")
    assert probe.processes["default"].poll() is None


@pytest.mark.parametrize("reason", ["hangs", "does not consume"])
def test_a_worker_that_makes_no_progress_ends_itself(probe: Sensor, reason: str, tmp_path_factory: Any) -> None:
    with pytest.MonkeyPatch.context() as patch, probing(tmp_path_factory.mktemp("h"), patch, hard=12) as one:
        one.up("default")
        app = bare_app(one.home, CeleryConfig())
        if reason == "hangs":
            app.send_task("hang", queue="celery")
        else:
            app.control.cancel_consumer("celery", reply=True)
            app.send_task("nothing", queue="celery")
        app.close()
        assert one.processes["default"].wait(PATIENCE) == 70
        log = one.home.log_file("default").read_text()
        if reason == "hangs":
            assert "task hang runs for more than 1 s (task_soft_time_limit)" in log
            assert "task hang runs for more than 12 s (task_time_limit)" in log
        else:
            assert "tasks wait in celery" in log
        one.up("default")  # and what systemd does then


def test_scheduled_tasks_are_sent_by_one_beat_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with probing(tmp_path, monkeypatch, tick=0.5) as one:
        one.up("default")
        wait_until((tmp_path / "ticks").exists, PATIENCE, "a scheduled task to run")
        second = one.run("beat")
        assert second.returncode == 75
        assert "the beat: process" in second.stderr
        one.kill("default")
        one.start("beat")
        wait_until((one.home.run_dir / "beat.pid").exists, PATIENCE, "the beat alone to run")
        assert one.redis is not None
        one.redis.command("FLUSHALL")
        wait_until(lambda: one.redis and one.redis.command("LLEN", "celery") != "0", PATIENCE, "it to send")


def test_a_backlog_of_scheduled_tasks_is_not_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with probing(tmp_path, monkeypatch, tick=0.2) as one:
        one.start_redis()
        one.start("beat")
        wait_until(
            lambda: one.redis and int(one.redis.command("LLEN", "celery")) >= 20,
            PATIENCE,
            "beat to send without a worker",
        )
        one.processes["beat"].terminate()
        assert one.processes["beat"].wait(PATIENCE) == 0
        one.start("worker", "default")
        wait_until(
            lambda: one.redis and one.redis.command("LLEN", "celery") == "0", PATIENCE, "the queue to be worked off"
        )
        # A few belong to the worker's own beat, which has begun meanwhile.
        assert not (tmp_path / "ticks").exists() or len((tmp_path / "ticks").read_text()) < 20


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 1.5, "text", UUID(int=1), [1, ("a",)], {"a": {"b": [None]}}, data.Tag(key="a", value="b")],
)
def test_plain_json_and_nouns_travel(value: Any) -> None:
    assert wire.checked(value, "task 'x'") is value


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"bytes", "builtins.bytes"),
        ({1: 2}, "a key of type int"),
        ([{"a": Path("/")}], r"pathlib\.(_local\.)?PosixPath"),
        (float("nan"), "builtins.float"),
        (data.ResponseStatus.ERROR, "acoupi_runtime.data.ResponseStatus"),
        (_Exploit(Path("/")), "_Exploit"),
    ],
)
def test_anything_else_is_refused_by_name(value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        wire.checked(value, "task 'x'")


def test_a_task_is_given_to_no_second_worker_while_the_first_may_still_work_on_it() -> None:
    app = bare_app(Home(Path("/run/x")), CeleryConfig(task_time_limit=100))
    assert app.conf.broker_transport_options["visibility_timeout"] >= 300
    assert (app.conf.task_acks_late, app.conf.task_reject_on_worker_lost, app.conf.worker_prefetch_multiplier) == (
        True,
        True,
        1,
    )
    assert app.conf.accept_content == app.conf.result_accept_content == ["json"]


def test_every_noun_has_its_name_on_the_wire() -> None:
    assert {
        "Deployment",
        "Recording",
        "Capture",
        "Detection",
        "ModelOutput",
        "Message",
        "Response",
    } <= wire.NOUNS.keys()


def test_a_home_whose_socket_the_kernel_would_refuse_is_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match="move ACOUPI_HOME"):
        bare_app(Home(Path("/" + "x" * 100)), CeleryConfig())
