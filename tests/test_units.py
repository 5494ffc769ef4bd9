"""What systemd and the shell are given: no value can become a line, a word or a command of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from acoupi_runtime.configuration import CeleryConfig
from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.programs import AcoupiWorker, WorkerConfig, load_program_class
from acoupi_runtime.programs.connected import Program as Connected
from acoupi_runtime.system.setup import HomeFile, Scope, render_home, render_units, unit_text

EXPOSURE_LIMIT = 1.5
HOSTILE = ('/mnt/a "quoted" disk', "/mnt/$HOME/$$/%h%%", "/mnt/back\\slash\\", "/mnt/;reboot", "/mnt/ü 'single' `id`")
MESSENGER = {"messaging": {"http": {"base_url": "https://example.org", "token": "t"}}}

Keys = list[tuple[str, str]]


class Mine(Connected):
    """A program of somebody's own."""


class TwoEars(Connected):
    """A program that names its workers itself."""

    worker_config = WorkerConfig((AcoupiWorker("ears", ("recording",), 1), AcoupiWorker("brain", ("celery",), 2)))


def need(tool: str) -> None:
    """Skip where a tool is missing; where everything must be there, that is a failure."""
    if shutil.which(tool) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{tool} must be there with CI=true")
        pytest.skip(f"{tool} is not installed here")


def configured(program: str = "default", values: object = None) -> BaseModel:
    return load_program_class(program).config_schema.model_validate_json(json.dumps(values or {}))


def units_of(
    program: str = "default", values: object = None, *, scope: Scope = "system", celery: CeleryConfig | None = None
) -> dict[str, str]:
    files = render_units(program, configured(program, values), celery or CeleryConfig(), scope=scope)
    return {file.path: file.content.decode() for file in files}


def parsed(unit: str) -> Keys:
    """Sections and assignments as systemd.syntax(7) reads them; a line that is neither fails."""
    found: Keys = []
    section = ""
    for line in unit.split("\n"):
        if not line.strip() or line.lstrip()[0] in "#;":
            continue
        assert not line.endswith("\\"), f"continued: {line}"
        if heading := re.fullmatch(r"\[([A-Za-z]+)\]", line):
            section = heading[1]
            continue
        name, equals, value = line.partition("=")
        assert equals, f"neither a section nor an assignment: {line!r}"
        found.append((f"{section}.{name}", value))
    return found


def words(value: str) -> list[str]:
    """The words of a value, unquoted and with `%%` resolved, as systemd reads paths."""
    found = []
    for quoted in re.findall(r'"((?:[^"\\]|\\.)*)"', value):
        text = re.sub(r"\\(.)", r"\1", quoted)
        assert "%" not in text.replace("%%", ""), f"a specifier: {text}"
        found.append(text.replace("%%", "%"))
    return found


def values_of(unit: str, key: str) -> list[str]:
    return [value for name, value in parsed(unit) if name == f"Service.{key}"]


@settings(deadline=None)  # a busy machine is no fault
@given(st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=20))
@example('"\nExecStartPre=/bin/touch /tmp/x\n"')
@example("\\")
@example("%h$HOME$$%%")
@example('"; reboot; "')
@example("\x00")
@example("\x7f")
def test_no_text_of_a_path_becomes_another_key_of_a_unit(text: str) -> None:
    path = f"/mnt/disk{text}"
    try:
        configuration = configured(values={"paths": {"recordings": path}})
    except ValidationError:
        assert any(ord(character) < 0x20 or ord(character) == 0x7F for character in text)
        return
    expected = units_of(values={"paths": {"recordings": "/mnt/disk"}})
    for file in render_units("default", configuration, CeleryConfig(), scope="system"):
        unit = file.content.decode()
        assert [name for name, _ in parsed(unit)] == [name for name, _ in parsed(expected[file.path])]
        if "worker" in file.path:
            assert [words(value) for value in values_of(unit, "ReadWritePaths")] == [[f"-{path}"]]
            (command,) = values_of(unit, "ExecStartPre")
            assert [word.replace("$$", "$") for word in words(command)[-1:]] == [path]


@pytest.mark.parametrize("character", [chr(code) for code in (*range(0x20), 0x7F)])
def test_a_control_character_is_never_written_into_a_unit(character: str) -> None:
    with pytest.raises(ConfigurationError, match="control characters"):
        unit_text(f"/mnt/a{character}ExecStartPre=/bin/true")


def test_the_target_wants_redis_and_each_worker_and_nothing_else_is_enabled() -> None:
    units = units_of()
    (wants,) = [value for name, value in parsed(units["acoupi.target"]) if name == "Unit.Wants"]
    assert wants.split() == [
        "acoupi-redis.service",
        "acoupi-worker@recording.service",
        "acoupi-worker@processing.service",
    ]
    assert [name for name, unit in units.items() if "[Install]" in unit] == ["acoupi.target"]
    services = [unit for name, unit in units.items() if name.endswith(".service")]
    assert all(("Unit.PartOf", "acoupi.target") in parsed(unit) for unit in services)


@pytest.mark.parametrize("scope", ["system", "user"])
def test_every_service_is_tried_again_for_ever_and_watched(scope: Scope) -> None:
    units = units_of(scope=scope, celery=CeleryConfig(beat="unit"))
    services = {name: dict(parsed(unit)) for name, unit in units.items() if name.endswith(".service")}
    assert len(services) == 4
    for name, keys in services.items():
        assert keys["Unit.StartLimitIntervalSec"] == "0", name
        assert keys["Service.Restart"] == "always", name
        assert keys["Service.Type"] == "notify", name
        assert "Unit.Requires" not in keys, name
        assert int(keys.get("Service.WatchdogSec", "0")) == (0 if name == "acoupi-redis.service" else 60), name


def test_a_beat_of_its_own_is_a_unit_only_where_it_is_asked_for() -> None:
    assert "acoupi-beat.service" not in units_of()
    units = units_of(celery=CeleryConfig(beat="unit"))
    assert "acoupi-beat.service" in units["acoupi.target"]
    assert "bin/acoupi-beat.sh" in units["acoupi-beat.service"]


@pytest.mark.parametrize(
    ("program", "values", "network"),
    [
        ("default", {}, {"recording": False, "": False}),
        ("connected", {}, {"recording": False, "": False}),
        ("connected", MESSENGER, {"recording": False, "": True}),
        ("connected", {**MESSENGER, "isolation": "shared"}, {"recording": True, "": True}),
        (f"{__name__}:Mine", {}, {"recording": False, "": True}),
    ],
)
def test_only_a_worker_that_may_send_messages_sees_the_network(
    program: str, values: object, network: dict[str, bool]
) -> None:
    units = units_of(program, values)
    for worker, wanted in network.items():
        unit = units[f"acoupi-worker@{worker}.service"]
        assert values_of(unit, "PrivateNetwork") == ["no" if wanted else "yes"]
        assert values_of(unit, "RestrictAddressFamilies") == ["AF_UNIX AF_INET AF_INET6" if wanted else "AF_UNIX"]


def test_the_worker_of_the_queue_recording_has_the_sound_card_whatever_its_name() -> None:
    units = units_of(f"{__name__}:TwoEars")
    assert values_of(units["acoupi-worker@ears.service"], "DeviceAllow") == ["char-alsa rw"]
    assert ("Unit.After", "modprobe@snd.service") in parsed(units["acoupi-worker@ears.service"])
    assert "acoupi-worker@recording.service" not in units
    assert values_of(units["acoupi-worker@.service"], "PrivateDevices") == ["yes"]


@pytest.mark.parametrize(
    ("name", "hidden"), [("UltraMic", True), ("pulse", False), ("PipeWire Sound Server", False), (None, False)]
)
def test_the_recorder_sees_alsas_plugins_only_where_its_microphone_may_be_one(
    name: str | None, *, hidden: bool
) -> None:
    unit = units_of(values={"microphone": {"device_name": name}})["acoupi-worker@recording.service"]
    assert any("/etc/alsa/conf.d" in value for value in values_of(unit, "InaccessiblePaths")) is hidden


def test_folders_outside_of_the_state_are_given_to_the_workers_alone() -> None:
    paths = {"recordings": "/home/pi/bats", "db_metadata": "/mnt/disk/x/../meta.db", "tmp_audio": "/tmp/acoupi"}
    units = units_of(values={"paths": paths})
    for name in ("acoupi-worker@recording.service", "acoupi-worker@.service"):
        assert values_of(units[name], "BindPaths") == ['"-/home/pi/bats"']
        assert values_of(units[name], "ReadWritePaths") == ['"-/mnt/disk"', '"-/tmp/acoupi"']
        assert values_of(units[name], "ProtectHome") == ["tmpfs"]
        assert values_of(units[name], "PrivateTmp") == ["no"]
    assert "/mnt" not in units["acoupi-redis.service"]
    usual = units_of(
        values={"paths": {"recordings": "~/r", "tmp_audio": "/run/shm", "db_metadata": "/var/lib/acoupi/m"}}
    )
    assert "ExecStartPre" not in usual["acoupi-worker@.service"]


def test_user_scope_asks_for_nothing_that_a_user_may_not_have() -> None:
    refused = "User Group SupplementaryGroups CapabilityBoundingSet ProtectSystem PrivateDevices PrivateNetwork Nice=-"
    for name, unit in units_of(f"{__name__}:Mine", scope="user").items():
        assert not [word for word in refused.split() if re.search(rf"^{word}", unit, re.MULTILINE)], name
        assert "/var/lib" not in unit


def tree(folder: Path, units: dict[str, str], home: tuple[HomeFile, ...]) -> Path:
    """A file system that holds the units, what they start, and systemd's own units."""
    shutil.copytree("/usr/lib/systemd/system", folder / "usr/lib/systemd/system", symlinks=True)
    for name, unit in units.items():
        path = folder / "etc/systemd/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit)
    for file in home:
        path = folder / "var/lib/acoupi/.acoupi" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    for program in ("usr/bin/redis-server", "bin/sh", "sbin/modprobe"):
        path = folder / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    return folder


def analyzed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze for the system's units."""
    need("systemd-analyze")
    command: list[str | Path] = ["systemd-analyze", *arguments]
    if os.geteuid() != 0 and not Path("/run/systemd").exists():
        # It makes that folder where systemd has never run, which a plain user may only in a /run of his own.
        own_run = ["unshare", "--user", "--map-root-user", "--mount"]
        own_run += ["sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
        if subprocess.run([*own_run, "true"], capture_output=True, check=False).returncode:
            pytest.skip("systemd does not run here, and this user may not have a /run of his own: sudo make test")
        command = [*own_run, *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def verified(root: Path, names: list[str]) -> str:
    done = analyzed("verify", "--man=no", f"--root={root}", *names)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", HOSTILE)
def test_systemd_finds_nothing_to_say_about_our_units_even_with_hostile_paths(tmp_path: Path, path: str) -> None:
    values = {"paths": {"recordings": path, "db_metadata": f"/home{path}.db"}, **MESSENGER}
    units = units_of("connected", values, celery=CeleryConfig(beat="unit"))
    home = render_home("connected", configured("connected", values), CeleryConfig(), None, managed=True)
    root = tree(tmp_path, units, home)
    names = ["acoupi.target", "acoupi-worker@recording.service", "acoupi-worker@processing.service"]
    assert verified(root, names) == ""
    # It exits with 0 whatever it finds, so what it says is what counts: a misspelt key must be said.
    broken = root / "etc/systemd/system/acoupi-worker@.service"
    broken.write_text(broken.read_text().replace("Restart=always", "Restrat=always"))
    assert "Restrat" in verified(root, names)


def test_a_users_own_systemd_finds_nothing_to_say_about_our_units(tmp_path: Path) -> None:
    need("systemd-analyze")
    need("redis-server")
    units = units_of("connected", MESSENGER, scope="user", celery=CeleryConfig(beat="unit"))
    for name, unit in units.items():
        (tmp_path / name).write_text(unit)
    for file in render_home("default", configured(), CeleryConfig(), None, managed=True):
        path = tmp_path / ".acoupi" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", *(tmp_path / name for name in units)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert [line for line in (done.stdout + done.stderr).splitlines() if "acoupi" in line] == []


@pytest.mark.parametrize(
    ("program", "values"),
    [
        ("default", {}),
        ("connected", MESSENGER),
        (f"{__name__}:Mine", {"isolation": "shared", "paths": {"recordings": "/home/pi/r", "tmp_audio": "/tmp/a"}}),
    ],
)
def test_every_system_service_is_sandboxed(tmp_path: Path, program: str, values: object) -> None:
    services = {
        name: unit
        for name, unit in units_of(program, values, celery=CeleryConfig(beat="unit")).items()
        if name.endswith(".service")
    }
    assert len(services) == 4
    for name, unit in services.items():
        path = tmp_path / name
        path.write_text(unit)
        done = analyzed("security", "--offline=yes", "--no-pager", path)
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
        assert exposure, done.stderr
        assert float(exposure[1]) <= EXPOSURE_LIMIT, f"{name}\n{done.stdout}"


@pytest.mark.parametrize("program", ["default", f"{__name__}:TwoEars"])
def test_shellcheck_finds_nothing_to_say_about_the_scripts(tmp_path: Path, program: str) -> None:
    need("shellcheck")
    home = render_home(program, configured(program), CeleryConfig(beat="unit"), None, managed=True)
    scripts = [tmp_path / Path(file.path).name for file in home if file.path.startswith("bin/")]
    assert len(scripts) == 4
    for script in scripts:
        script.write_bytes(next(file.content for file in home if Path(file.path).name == script.name))
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout + done.stderr == ""
