"""A home is rendered purely, read again by the models, and written on a device completely or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from acoupi_runtime.configuration import BasicConfig, CeleryConfig, DeploymentConfig
from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import Home
from acoupi_runtime.programs import AcoupiProgram, load_program_class
from acoupi_runtime.system.setup import HomeFile, masked_program, render_home, render_units, setup_program
from acoupi_runtime.system.supervise import holder_of
from tests.support import wait_until
from tests.test_units import need

SECRET = "s3cr3t-canary"
VALUES: dict[str, Any] = {
    "messaging": {"http": {"base_url": "https://example.org", "token": SECRET}},
    "microphone": {"device_name": '{{ 7 * 7 }}{% for x in () %} $(id) `id` %h "\\'},
    "paths": {"recordings": "/mnt/{{ 7 * 7 }}"},
}
PLACE = DeploymentConfig(name="Høyden {{ 7 * 7 }}; rm -rf /", latitude=60.4, longitude=5.3)


class PlainSecretConfig(BasicConfig):
    """Its secret is written as asterisks by pydantic."""

    password: SecretStr = SecretStr("")


class PlainSecret(AcoupiProgram[PlainSecretConfig]):
    """A program whose author did not know."""

    config_schema = PlainSecretConfig


def configured(program: str = "connected", values: object = None) -> BaseModel:
    schema = load_program_class(program).config_schema
    return schema.model_validate_json(json.dumps(VALUES if values is None else values))


def rendered(**changes: Any) -> dict[str, HomeFile]:
    arguments: dict[str, Any] = {"templates": (), "managed": True, **changes}
    files = render_home("connected", configured(), CeleryConfig(), PLACE, **arguments)
    return {file.path: file for file in files}


def test_a_home_holds_what_the_contract_says_with_the_modes_it_says() -> None:
    assert {path: oct(file.mode) for path, file in rendered().items()} == {
        "app.py": "0o644",
        "bin/acoupi-beat.sh": "0o755",
        "bin/acoupi-workers-restart.sh": "0o755",
        "bin/acoupi-workers-start.sh": "0o755",
        "bin/acoupi-workers-stop.sh": "0o755",
        "config/celery.json": "0o640",
        "config/deployment.json": "0o640",
        "config/managed": "0o640",
        "config/name": "0o640",
        "config/program.json": "0o640",
        "config/redis.conf": "0o640",
    }


def test_a_rendered_home_is_read_again_as_it_was() -> None:
    files = rendered()
    name = files["config/name"].content.decode().strip()
    assert (
        load_program_class(name).config_schema.model_validate_json(files["config/program.json"].content) == configured()
    )
    assert CeleryConfig.model_validate_json(files["config/celery.json"].content) == CeleryConfig()
    assert DeploymentConfig.model_validate_json(files["config/deployment.json"].content) == PLACE


def test_what_is_rendered_depends_on_nothing_but_the_values(tmp_path: Path) -> None:
    code = """
import hashlib, json
from tests.test_setup import *
files = (*render_home("connected", configured(), CeleryConfig(), PLACE, managed=True),
         *render_units("connected", configured(), CeleryConfig(), scope="system"))
print(hashlib.sha256(repr(files).encode()).hexdigest())
"""
    root = Path(__file__).parents[1]

    def digest(cwd: Path, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=cwd,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root), **environment},
            timeout=120,
        )
        return done.stdout

    first = digest(tmp_path, PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C")
    second = digest(root, PYTHONHASHSEED="2", TZ="Asia/Tokyo", LC_ALL="C.UTF-8", HOME="/nowhere", ACOUPI_HOME="/else")
    assert first == second


def test_a_secret_is_in_the_one_file_that_needs_it_and_nowhere_else() -> None:
    files = rendered()
    units = render_units("connected", configured(), CeleryConfig(), scope="system")
    assert [file.path for file in (*files.values(), *units) if SECRET.encode() in file.content] == [
        "config/program.json"
    ]
    masked = masked_program("connected", files["config/program.json"].content)
    assert SECRET.encode() not in masked
    assert json.loads(masked)["messaging"]["http"]["token"] == "**********"


def test_a_secret_that_would_be_written_as_asterisks_is_refused() -> None:
    program = f"{__name__}:PlainSecret"
    with pytest.raises(ConfigurationError, match="declare secrets"):
        render_home(program, configured(program, {"password": "x"}), CeleryConfig(), None, managed=False)


def test_values_are_never_templates() -> None:
    everything = [*rendered().values(), *render_units("connected", configured(), CeleryConfig(), scope="system")]
    text = "".join(file.content.decode() for file in everything)
    assert "49" not in text
    assert "/mnt/{{ 7 * 7 }}" in text


@pytest.mark.parametrize(
    "template",
    [
        "{{ nobody_defined_this }}",
        "{{ program.messagin.http }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ workers.__init__.__globals__ }}",
        "{{ [1, 2, 3] | random }}",
        "{{ lipsum() }}",
        "{% if %}",
        "{{ 'a\nb' | shell }}",
        "{{ 'a\nb' | unit }}",
    ],
)
def test_a_template_that_is_wrong_or_reaches_out_is_named(tmp_path: Path, template: str) -> None:
    path = tmp_path / "home" / "bin" / "mine.sh.j2"
    path.parent.mkdir(parents=True)
    path.write_text(template)
    with pytest.raises(ConfigurationError):
        rendered(templates=[tmp_path])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (b"#!/bin/sh\n{{ 1 / 0 }}\n", "mine.sh.j2, line 2: ZeroDivisionError: division by zero; correct it"),
        (b"#!/bin/sh\n\n{{ 'a' + 1 }}", "mine.sh.j2, line 3: TypeError: can only concatenate str"),
        (b"#!/bin/sh\n{{ 'x'.nothing.there }}", "mine.sh.j2, line 2: 'str object' has no attribute 'nothing'"),
        (b"#!/bin/sh\n{% if %}", "mine.sh.j2, line 2: Expected an expression"),
        (b"#!/bin/sh\n# caf\xe9\n", "mine.sh.j2: line 2 of the file is not UTF-8; correct it"),
        (b"{{ '\\ud800' }}", "mine.sh.j2: UnicodeEncodeError"),
        (b"\n{% include 'home/_part.j2' %}", "/home/_part.j2: ZeroDivisionError"),
    ],
)
def test_whatever_a_template_does_wrong_is_one_line_with_its_place(tmp_path: Path, template: bytes, said: str) -> None:
    path = tmp_path / "home" / "bin" / "mine.sh.j2"
    path.parent.mkdir(parents=True)
    path.write_bytes(template)
    (tmp_path / "home" / "_part.j2").write_text("{{ 1 % 0 }}")
    with pytest.raises(ConfigurationError) as caught:
        rendered(templates=[tmp_path])
    assert str(caught.value).startswith("template home/bin/mine.sh.j2")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_templates_are_laid_over_ours(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name, text in (
        (first, "home/bin/acoupi-beat.sh.j2", "#!/bin/sh\nexec {{ 'a b$c' | shell }}\n"),
        (second, "home/bin/acoupi-beat.sh.j2", "never"),
        (
            second,
            "home/notes.txt.j2",
            "{{ workers | map(attribute='name') | join(' ') }} {{ program.messaging | json }}\n",
        ),
        (second, "home/nothing.j2", "{% if false %}x{% endif %}\n"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    files = rendered(templates=[first, second])
    assert files["bin/acoupi-beat.sh"].content == b"#!/bin/sh\nexec 'a b$c'\n"
    assert files["notes.txt"].content.startswith(b"recording processing {")
    assert SECRET.encode() not in files["notes.txt"].content
    assert "nothing" not in files
    assert files["app.py"] == rendered()["app.py"]


@pytest.mark.parametrize("name", ["home/bin/mine.sh", "home/config/program.json.j2"])
def test_a_template_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigurationError, match="template home/"):
        rendered(templates=[tmp_path])


def test_a_folder_of_templates_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such folder"):
        rendered(templates=[tmp_path / "nowhere"])


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in sorted(root.rglob("*"))}


def test_setting_up_twice_changes_nothing_and_a_new_value_changes_all_at_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert setup_program(home, "connected", configured(), deployment=PLACE)
    before = snapshot(home.root)
    assert not setup_program(home, "connected", configured(), deployment=PLACE)
    assert snapshot(home.root) == before
    assert home.program_file.stat().st_mode & 0o777 == 0o640
    assert home.deployment_file.is_file()
    tree = home.config_dir.resolve().parents[1]

    assert setup_program(home, "default", configured("default", {}))
    assert home.program_name_file.read_text() == "default\n"
    assert not home.deployment_file.exists()
    assert not tree.exists()


def test_a_changed_file_of_a_home_is_set_right_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    setup_program(home, "default", configured("default", {}))
    home.celery_file.write_text("{")
    assert setup_program(home, "default", configured("default", {}))
    assert CeleryConfig.model_validate_json(home.celery_file.read_bytes()) == CeleryConfig()


def test_a_home_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "program.json").write_text("theirs")
    with pytest.raises(ConfigurationError, match="not made by this program"):
        setup_program(Home(tmp_path), "default", configured("default", {}))
    assert [path.name for path in tmp_path.rglob("*")] == ["config", "program.json"]


def test_a_home_that_a_fleet_manages_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    setup_program(home, "default", configured("default", {}))
    home.managed_file.touch()
    before = snapshot(tmp_path)
    with pytest.raises(ConfigurationError, match="a fleet manages this home"):
        setup_program(home, "connected", configured())
    assert snapshot(tmp_path) == before


def test_a_home_whose_socket_would_have_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="shorter ACOUPI_HOME"):
        setup_program(Home(tmp_path / ("x" * 100)), "default", configured("default", {}))


# A child process is ended at the n-th thing that it does to the file system, for every n until it comes to its end.
KILLED_AT_EACH_STEP = """
import os, signal, sys
from pathlib import Path
from tests.test_setup import CeleryConfig, Home, PLACE, configured, setup_program

home, old = Home(Path(sys.argv[1])), sys.argv[2] == "again"
STEPS = ("open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "tempfile.mkdtemp")
expected = {"connected": (configured(), PLACE), "default": (configured("default", {}), None)}
setup_program(Home(home.root.with_name("warm")), "connected", configured(), deployment=PLACE)  # imports

def state():
    if not home.app_file.exists():
        return None
    name = home.program_name_file.read_text().strip()
    program, place = expected[name]
    assert type(program).model_validate_json(home.program_file.read_bytes()) == program
    assert CeleryConfig.model_validate_json(home.celery_file.read_bytes()) == CeleryConfig()
    assert home.deployment_file.exists() == (place is not None)
    assert len(list(home.bin_dir.iterdir())) == 4
    compile(home.app_file.read_bytes(), "app.py", "exec")
    return name

if old:
    setup_program(home, "default", configured("default", {}))
seen = []
for last in range(1, 2000):
    child = os.fork()
    if child == 0:
        left = last
        def step(event, arguments):
            global left
            if event in STEPS and str(home.root) in str(arguments[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(step)
        setup_program(home, "connected", configured(), deployment=PLACE)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    seen.append(state())
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    if old:
        setup_program(home, "default", configured("default", {}))
    else:
        import shutil
        shutil.rmtree(home.root, ignore_errors=True)
print(len(seen), *map(str, seen))
"""


@pytest.mark.parametrize(("how", "before"), [("first", "None"), ("again", "default")])
def test_a_setup_that_is_killed_at_any_step_leaves_the_old_home_or_the_new_one(
    tmp_path: Path, how: str, before: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_STEP, tmp_path / "home", how],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    count, *states = done.stdout.split()
    assert int(count) > 20
    assert set(states) == {before, "connected"}
    assert states == sorted(states, key=lambda state: state == "connected")


def script(home: Home, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [home.bin_dir / f"acoupi-{name}.sh", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def home() -> Iterator[Home]:
    """A home that listens to a file; nothing of it runs afterwards."""
    with tempfile.TemporaryDirectory(prefix="a home; $x ") as folder:  # not tmp_path: a socket's path has to be short
        sound = Path(folder) / "sound.wav"
        with wave.open(str(sound), "wb") as writer:
            writer.setparams((1, 2, 48_000, 0, "NONE", ""))
            writer.writeframes(bytes(range(256)) * 375)
        values = {
            "microphone": {"device_name": f"file:{sound}"},
            "recording": {"duration": 1, "interval": 2, "schedule_start": "00:00", "schedule_end": "00:00"},
            "paths": {"recordings": f"{folder}/recordings", "db_metadata": f"{folder}/metadata.db"},
        }
        made = Home(Path(folder) / "home")
        setup_program(made, "default", configured("default", values))
        yield made
        stopped = script(made, "workers-stop")
        assert stopped.returncode == 0, stopped.stderr


def pids(home: Home) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in home.run_dir.glob("*.pid")}


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""


def test_a_worker_that_does_not_exist_is_refused_with_those_that_do(home: Home) -> None:
    done = script(home, "workers-start", "recordin")
    assert done.returncode == 64
    assert "there are recording, processing" in done.stderr


def test_a_home_without_its_environment_says_so(home: Home) -> None:
    env = home.root / "current" / "env"
    env.rename(env.with_name("elsewhere"))
    done = script(home, "workers-start", "recording")
    env.with_name("elsewhere").rename(env)
    assert done.returncode == 78
    assert "no Python environment" in done.stderr


def test_without_systemd_the_scripts_start_restart_and_stop_what_they_say(home: Home) -> None:
    need("redis-server")
    started = script(home, "workers-start")
    assert started.returncode == 0, started.stderr
    assert started.stdout.split("\n")[:-1] == ["redis: started", "recording: started", "processing: started"]
    first = pids(home)
    assert set(first) == {"recording", "processing", "redis"}
    wait_until(lambda: list((home.root.parent / "recordings").rglob("*.wav")), 120, "a recording")
    wait_until(lambda: holder_of(home.run_dir / "beat.lock"), 120, "a worker to hold the beat")
    assert script(home, "beat").returncode == 75

    again = script(home, "workers-start")
    assert again.stdout.count("runs already") == 3
    assert pids(home) == first

    restarted = script(home, "workers-restart")
    assert restarted.returncode == 0, restarted.stderr
    assert not set(pids(home).values()) & set(first.values())

    second = pids(home)
    stopped = script(home, "workers-stop")
    assert stopped.returncode == 0, stopped.stderr
    assert [name for name, pid in (*first.items(), *second.items()) if running(pid)] == []


def test_a_stale_pid_file_neither_keeps_a_worker_from_starting_nor_ends_a_stranger(home: Home) -> None:
    need("redis-server")
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        for name in ("recording", "processing", "redis"):
            (home.run_dir / f"{name}.pid").write_text(f"{stranger.pid}\n")
        stopped = script(home, "workers-stop")
        assert "recording: does not run" in stopped.stdout
        assert stranger.poll() is None
        for name in ("recording", "processing", "redis"):
            (home.run_dir / f"{name}.pid").write_text(f"{stranger.pid}\n")
        started = script(home, "workers-start")
        assert started.stdout.count(": started") == 3, started.stderr
        assert stranger.pid not in pids(home).values()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_worker_that_does_not_start_is_said_not_to(home: Home) -> None:
    need("redis-server")
    home.celery_file.write_text("{")
    started = script(home, "workers-start")
    assert started.returncode == 1
    assert "processing does not start" in started.stderr
    assert "celery.json" in started.stderr
