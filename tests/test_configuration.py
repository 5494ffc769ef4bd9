"""The configuration: a host's variables, validated by the models that the device reads with."""

from __future__ import annotations

import sys
import zipfile
from datetime import time
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from acoupi_fleet.configuration import Configuration, configure, configure_all
from acoupi_fleet.errors import ConfigurationError, InventoryError
from acoupi_fleet.inventory import Host, load_inventory
from acoupi_fleet.inventory.ini import parse
from acoupi_fleet.inventory.merge import merge
from acoupi_runtime.configuration import BasicConfig, HTTPConfig
from acoupi_runtime.programs import program_names
from acoupi_runtime.programs.connected import ConnectedConfig
from acoupi_runtime.programs.default import DefaultConfig

EXAMPLE = Path(__file__).parents[1] / "inventory" / "sensors.ini"


def hosts_of(text: str, folder: Path = Path()) -> tuple[Host, ...]:
    return merge(parse(dedent(text), folder / "sensors.ini"))[0]


def configured(text: str, folder: Path = Path()) -> Configuration:
    return configure(hosts_of(text, folder)[0])


def problems(text: str, folder: Path = Path()) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        configure_all(hosts_of(text, folder))
    assert caught.value.exit_code == 1
    return str(caught.value).splitlines()


def basic(configuration: Configuration) -> BasicConfig:
    assert isinstance(configuration.program, BasicConfig)
    return configuration.program


# --- what comes out


def test_the_example_in_the_repository_is_valid() -> None:
    found = configure_all(load_inventory(EXAMPLE).hosts)
    assert {found[name].program_class for name in ("oak1", "hazel1")} == {"default"}
    reed = found["reed01.sensors.example.org"]
    assert (reed.program_class, reed.workers) == ("energy", ("recording",))
    assert basic(reed).recording.schedule_start == time(19)


def test_a_program_alone_is_a_whole_configuration() -> None:
    found = configured("lab1 program=default")
    assert found.program == DefaultConfig()
    assert found.celery.timezone == "UTC"
    assert (found.deployment, found.scope, found.runtime, found.apt_via) == (None, "system", None, "device")
    assert found.workers == ("recording", "processing")


def test_dots_double_underscores_and_words_reach_their_models() -> None:
    found = configured(
        """
        lab1 program=default celery__timezone=Europe/Berlin systemd_scope=user runtime=~/venv apt_via=workstation
        [all:vars]
        program.microphone.device_name = UltraMic 384K
        program__recording__duration = 2.5
        program.recording.schedule_start = 19:00
        program.recording.schedule_end = '06:30'
        program.recording.continuous = yes
        program.retention.max_age = None
        program.recording.trigger = {"level": -40}
        isolation = shared
        deployment.name = Oak ridge
        deployment.latitude = 52.1
        """
    )
    program = basic(found)
    assert program.microphone.device_name == "UltraMic 384K"
    assert (program.recording.duration, program.recording.continuous) == (2.5, True)
    assert (program.recording.schedule_start, program.recording.schedule_end) == (time(19), time(6, 30))
    assert program.recording.trigger is not None
    assert program.recording.trigger.level == -40
    assert found.celery.timezone == "Europe/Berlin"
    assert found.deployment is not None
    assert (found.deployment.name, found.deployment.latitude) == ("Oak ridge", 52.1)
    assert (found.scope, found.runtime, found.apt_via) == ("user", "~/venv", "workstation")
    assert found.workers == ("recording",)


@pytest.mark.parametrize("text", ["1234", "007", "1e5", "True", "'12'", "[1]"])
def test_a_text_that_looks_like_a_number_stays_the_text_that_was_written(text: str) -> None:
    program = basic(configured(f"lab1 program=default\n[all:vars]\nprogram.microphone.device_name={text}\n"))
    assert program.microphone.device_name == text.strip("'")


def test_a_secret_arrives_and_is_shown_nowhere() -> None:
    found = configured(
        "lab1 program=connected program.messaging.http.base_url=https://x.org program.messaging.http.token=90210"
    )
    assert isinstance(found.program, ConnectedConfig)
    assert found.program.messaging.http == HTTPConfig(base_url="https://x.org", token=SecretStr("90210"))
    assert "90210" not in repr(found)


def test_other_peoples_variables_pass_through_and_are_listed() -> None:
    text = "lab1 program=default user=pi\n[all:vars]\nnginx_port=80\nusers=['a']\nmotd='{{ x }}\\n'\nports.http=1\n"
    assert configured(text).ignored == ("motd", "nginx_port", "ports.http", "users")


# --- what is wrong


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("lab1", ["sensors.ini:1: lab1: no program is named; write program=default on its line or in [group:vars]"]),
        (
            "lab1 program=defalt",
            ["sensors.ini:1: program: program 'defalt': there is none of this name; did you mean 'default'?"],
        ),
        (
            "lab1 program=default program.recording.duratoin=3",
            ["sensors.ini:1: program.recording.duratoin: unknown key; did you mean program.recording.duration?"],
        ),
        (
            "lab1 program=default program__recording__duratoin=3",
            ["sensors.ini:1: program__recording__duratoin: unknown key; did you mean program.recording.duration?"],
        ),
        (
            "lab1 program=default\n[all:vars]\nprogram.recording={'duratoin': 3}",
            ["sensors.ini:3: program.recording.duratoin: unknown key; did you mean program.recording.duration?"],
        ),
        (
            "lab1 program=default program.sampelrate=48000",
            ["sensors.ini:1: program.sampelrate: unknown key; did you mean program.microphone.samplerate?"],
        ),
        (
            "lab1 program=default program.duration=3",
            ["sensors.ini:1: program.duration: unknown key; did you mean program.recording.duration?"],
        ),
        (
            "lab1 program=default recording.duration=3",
            ["sensors.ini:1: recording.duration: unknown key; did you mean program.recording.duration?"],
        ),
        (
            "lab1 program=default progam.recording.duration=3",
            ["sensors.ini:1: progam.recording.duration: unknown key; did you mean program.recording.duration?"],
        ),
        (
            "lab1 program=default deployment.name=x deployment.lat=3",
            ["sensors.ini:1: deployment.lat: unknown key; did you mean deployment.latitude?"],
        ),
        (
            "lab1 program=default celery.xyzzy=3",
            ["sensors.ini:1: celery.xyzzy: unknown key; known are celery.beat, celery.result_expires, "],
        ),
        ("lab1 program=default celery=3", ["sensors.ini:1: celery: it holds values, and is none; write"]),
        ("lab1 program=default isolatoin=shared", ["sensors.ini:1: isolatoin: unknown key; did you mean isolation?"]),
        ("lab1 program=default prot=22", ["sensors.ini:1: prot: unknown key; did you mean port?"]),
        ("lab1 program=default identify=~/k", ["sensors.ini:1: identify: unknown key; did you mean identity?"]),
        (
            "lab1 program=default ansible_hots=10.0.0.1",
            ["sensors.ini:1: ansible_hots: unknown key; did you mean ansible_host?"],
        ),
        ("lab1 program=default systemd_scope=usr", ["sensors.ini:1: systemd_scope: 'usr' is no choice; write system"]),
        ("lab1 program=default apt_via=me", ["sensors.ini:1: apt_via: 'me' is no choice; write device or workstation"]),
        ("lab1 program=default runtime=venv", ["sensors.ini:1: runtime: it is no absolute path; name the environment"]),
        ("lab1 program=default program_package=./no", ["sensors.ini:1: program_package: there is no folder and no w"]),
        (
            "lab1 program=default program.recording.duration=abc",
            ["sensors.ini:1: program.recording.duration: it should be a valid number"],
        ),
        (
            "lab1 program=default deployment.latitude=91",
            [
                "sensors.ini:1: deployment.latitude: it should be less than or equal to 90",
                "sensors.ini:1: lab1: deployment.name is missing; write deployment.name=...",
            ],
        ),
        (
            "lab1 program=default\n[all:vars]\nprogram.timezone=Mars/Phobos",
            ["sensors.ini:3: program.timezone: 'Mars/Phobos' is not a time zone; name one as in"],
        ),
        (
            "lab1 program=default\n[all:vars]\nprogram.recording.interval=2\nprogram.recording.bits=24",
            ["sensors.ini:3: program.recording: interval (2 s) is shorter than duration (3 s); make it at least as"],
        ),
        *(
            (
                f"lab1 program=default program.recording.schedule_start={number}",
                ["sensors.ini:1: program.recording.schedule_start: a time of day is quoted text; quote it: '19:00'"],
            )
            for number in ("1140", "19", "19.5", "True")
        ),
        (
            "lab1 program=default program.recording.schedule_start=25:00",
            ["sensors.ini:1: program.recording.schedule_start: a time of day is HH:MM or HH:MM:SS, such as '19:00'"],
        ),
        (
            "lab1 program=default program.microphone.device_name='{{ microphone }}'",
            ["sensors.ini:1: program.microphone.device_name: '{{' is in it, and values are never templates here"],
        ),
        (
            "lab1 program=default\n[all:vars]\nprogram={'microphone': {'device_name': '{{ x }}'}}",
            ["sensors.ini:3: program.microphone.device_name: '{{' is in it"],
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line_its_key_and_its_cure(text: str, lines: list[str]) -> None:
    found = problems(text)
    assert len(found) == len(lines)
    for shown, expected in zip(found, lines, strict=True):
        assert shown.startswith(expected)


def test_all_mistakes_of_all_hosts_come_at_once_a_groups_mistake_once() -> None:
    text = """
        lab1 program=default program.isolation=both
        [wood]
        oak[1:3] program=default
        birch program=other:Program
        [wood:vars]
        program.recording.format=mp3
        celery.task_time_limit=0
        program.paths.recordings='a\\tb'
    """
    assert [line.partition("; ")[0] for line in problems(text)] == [
        "sensors.ini:2: program.isolation: it should be 'separate' or 'shared'",
        "sensors.ini:5: program: program 'other:Program': no module named 'other' here",
        "sensors.ini:7: program.recording.format: it should be 'wav' or 'flac'",
        "sensors.ini:8: celery.task_time_limit: it should be greater than 0",
        "sensors.ini:9: program.paths.recordings: a control character (a line break, a tab, ...) is in it",
    ]


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029])
@pytest.mark.parametrize("key", ["program.microphone.device_name", "deployment.name", "runtime", "program"])
def test_a_control_character_reaches_no_file_of_a_device(key: str, code: int) -> None:
    found = problems(f"lab1 {'' if key == 'program' else 'program=default'}\n[all:vars]\n{key}='/a\\u{code:04x}b'\n")
    assert found == [
        f"sensors.ini:3: {key}: a control character (a line break, a tab, ...) is in it; remove it",
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            # Sections too, since a person may take one for a value.
            ["program", "program.class", "program.recording", "program.recording.duration", "program.timezone"]
        )
        | st.sampled_from([f"{name}.x" for name in ("program", "celery", "deployment")])
        | st.sampled_from(["celery", "deployment", "deployment.name", "runtime", "apt_via", "systemd_scope", "a"]),
        st.sampled_from(["default", "1", "None", "{}", "[]", "{'x': 1}", "{1: 2}", "[{'a': 1}]", "-1e400", "''"])
        | st.integers().map(str)
        | st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=8),
        max_size=5,
    )
)
def test_whatever_the_values_are_they_are_valid_or_each_problem_is_a_line(values: dict[str, Any]) -> None:
    text = "lab1\n[all:vars]\n" + "\n".join(f"{key}={value}" for key, value in values.items())
    try:
        hosts = hosts_of(text)
    except InventoryError:
        return
    try:
        found: Configuration | list[str] = configure(hosts[0])
    except ConfigurationError as error:
        found = str(error).splitlines()
    assert isinstance(found, Configuration) or all(line.startswith("sensors.ini:") for line in found)


# --- programs of one's own

OWN = """
from datetime import time
from acoupi_runtime.programs import AcoupiProgram, AcoupiWorker, WorkerConfig
from pydantic import BaseModel

class Threshold(BaseModel):
    low: float = 0.1
    start: time = time(1)

class Kept(BaseModel):
    kind: str
    names: dict[str, int] = {}

class Settings(BaseModel):
    name: str
    threshold: Threshold = Threshold()
    kept: list[Kept] = []
    limits: dict[str, Threshold] = {}

class Program(AcoupiProgram[Settings]):
    config_schema = Settings
    worker_config = WorkerConfig((AcoupiWorker("later"), AcoupiWorker("recording", ("recording",), 1)))
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module's name that no other test uses; what is added to the path is taken back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return f"own_{uuid4().hex}"


@pytest.mark.parametrize("shape", ["package", "folder", "src", "wheel"])
def test_a_program_of_ones_own_is_found_in_its_package(shape: str, module: str, tmp_path: Path) -> None:
    package = {"package": module, "folder": "mine", "src": "mine", "wheel": "mine-1-py3-none-any.whl"}[shape]
    file = {"package": "__init__.py", "folder": f"{module}.py", "src": f"src/{module}.py"}.get(shape)
    if file is None:
        with zipfile.ZipFile(tmp_path / package, "w") as wheel:
            wheel.writestr(f"{module}.py", OWN)
    else:
        path = tmp_path / package / file
        path.parent.mkdir(parents=True)
        path.write_text(OWN)
    found = configured(f"lab1 program={module}:Program program_package=./{package} program.name=x", tmp_path)
    assert found.program_package == tmp_path / package
    assert found.workers == ("recording", "later")


def test_a_model_that_would_drop_unknown_keys_is_asked_all_the_same(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(OWN)
    text = f"""
        lab1 program={module}:Program program_package=.
        [all:vars]
        program.threshold.lwo = 3
        program.threshold.start = 3600
        program.kept = [{{"kind": "a"}}, {{"knd": "b"}}]
        program.limits.night.low = 0.2
        program.limits.day.low = high
    """
    assert problems(text, tmp_path) == [
        "sensors.ini:2: lab1: program.name is missing; write program.name=...",
        "sensors.ini:4: program.threshold.lwo: unknown key; did you mean program.threshold.low?",
        "sensors.ini:5: program.threshold.start: a time of day is quoted text; quote it: '19:00'",
        "sensors.ini:6: program.kept.1.kind: it is missing; add it",
        "sensors.ini:8: program.limits.day.low: it should be a valid number, unable to parse string as a number",
    ]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import nothing_of_this_name", "no module named 'nothing_of_this_name' here; install it"),
        ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero); correct it"),
        ("def", "cannot be imported (SyntaxError: "),
        ("Program = 3", "it is not an AcoupiProgram; derive it from that class"),
        ("", "has no 'Program'; correct the name"),
    ],
)
def test_a_program_that_cannot_be_imported_is_one_line(source: str, problem: str, module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(source)
    (found,) = problems(f"lab1 program={module}:Program program_package=.", tmp_path)
    assert found.startswith("sensors.ini:1: program: ")
    assert problem in found


@pytest.mark.parametrize("name", program_names())
def test_each_program_that_is_offered_here_is_valid_without_further_words(name: str) -> None:
    assert "recording" in configured(f"lab1 program={name}").workers
