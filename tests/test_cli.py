"""The command line: every verb explains itself, and those that need no sensor do what they say."""

from __future__ import annotations

import json
import re
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from acoupi_fleet.cli import VERBS, main
from acoupi_fleet.errors import HostError, HostKeyError, InventoryError, UnreachableError, UsageError
from acoupi_fleet.inventory import load_inventory
from acoupi_fleet.provision import Event, Result
from acoupi_fleet.remote import HostKeys
from acoupi_fleet.restart import restart
from acoupi_fleet.together import together
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from acoupi_fleet.inventory import Host
    from tests.support import SshServer

INVENTORY = """\
[woods]
pond host=10.0.0.5 user=pi program.messaging.http.token=hush-hush
shed host=10.0.0.6
[north]
gate:2222
[all:vars]
program=connected
program.messaging.http.base_url=https://example.org/acoupi
sudo_password=open-sesame
colour=green
"""


class Said(NamedTuple):
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The command line, in a folder with an inventory, and with a home directory of its own."""
    (tmp_path / "sensors.ini").write_text(INVENTORY)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        try:
            code = main(words)
        except SystemExit as ended:  # argparse, after --help
            code = int(ended.code or 0)
        return Said(code, *capsys.readouterr())

    return run


def test_help_lists_every_verb_in_one_line_and_the_exit_codes(run: Callable[..., Said]) -> None:
    for words, code in ((["--help"], 0), ([], 1)):
        said = run(*words)
        assert said.code == code
        for verb in VERBS:
            assert re.search(rf"^  {verb.name} +{re.escape(verb.help)}$", said.out, re.MULTILINE)
        assert "130 Ctrl-C" in said.out
        assert max(map(len, said.out.splitlines())) <= 100


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_each_verb_explains_itself_with_examples(verb: str, run: Callable[..., Said]) -> None:
    said = run(verb, "--help")
    assert said.code == 0
    assert f"examples:\n  acoupi-fleet {verb}" in said.out
    assert said.err == ""


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    kinds = (UsageError, InventoryError, HostError, UnreachableError, HostKeyError)
    assert [kind.exit_code for kind in kinds] == [1, 1, 2, 4, 5]


def test_render_writes_what_sensors_would_get_with_secrets_masked(run: Callable[..., Said], tmp_path: Path) -> None:
    said = run("render", "sensors.ini", "--output", "out", "--limit", "woods")
    assert said.code == 0, said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pond", "shed"]
    assert re.fullmatch(r"(out/(pond|shed): \d+ files\n){2}", said.out)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "out/pond").parts[0] for path in files if "pond" in path.parts} == {
        "home",
        "units",
    }
    assert not any(b"hush-hush" in path.read_bytes() for path in files)
    assert stat.S_IMODE((tmp_path / "out/pond").stat().st_mode) == 0o700

    run("render", "sensors.ini", "--output", "clear", "--limit", "pond", "--show-secrets")
    program = json.loads((tmp_path / "clear/pond/home/config/program.json").read_text())
    assert program["messaging"]["http"]["token"] == "hush-hush"


def test_own_templates_are_laid_over_ours(run: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "mine/systemd").mkdir(parents=True)
    (tmp_path / "mine/systemd/acoupi.target.j2").write_text("[Unit]\nDescription=mine\n")
    assert run("render", "sensors.ini", "--output", "out", "--templates", "mine").code == 0
    assert "Description=mine" in (tmp_path / "out/gate/units/acoupi.target").read_text()


def test_variables_that_are_not_ours_are_listed_on_request(run: Callable[..., Said]) -> None:
    assert "colour" not in run("render", "sensors.ini", "--output", "out").out
    assert run("render", "sensors.ini", "--output", "out", "-v").out.startswith("not ours, passed over: colour\n")


def test_an_inventory_is_shown_for_people_and_for_programs_without_its_secrets(run: Callable[..., Said]) -> None:
    assert run("inventory", "sensors.ini").out == (
        "pond  pi@10.0.0.5  woods\nshed  10.0.0.6     woods\ngate  gate:2222    north\n"
    )
    listed = run("inventory", "sensors.ini", "--list")
    shown = json.loads(listed.out)
    assert shown["woods"]["hosts"] == ["pond", "shed"]
    assert shown["_meta"]["hostvars"]["gate"]["colour"] == "green"
    one = run("inventory", "sensors.ini", "--host", "pond")
    assert json.loads(one.out)["host"] == "10.0.0.5"
    for said in (listed, one):
        assert said.code == 0
        assert "hush" not in said.out
        assert "sesame" not in said.out


def hosts(folder: Path, *lines: str) -> tuple[Host, ...]:
    path = folder / "hosts.ini"
    path.write_text("\n".join(lines) + "\n")
    return load_inventory(path).hosts


def test_after_a_batch_that_failed_no_other_is_begun(sshd: SshServer, tmp_path: Path) -> None:
    line = {"host_key": sshd.host_key, "systemd_scope": "user"}
    sensors = hosts(tmp_path, *(sshd.inventory_line(name, **line) for name in ("one", "two", "three")))
    seen: list[Event] = []
    results = restart(
        sensors, forks=2, serial=2, require_sound=False, keys=HostKeys(), accepted=None, observe=seen.append
    )
    assert [(result.host, result.status) for result in results] == [
        ("one", "failed"),
        ("two", "failed"),
        ("three", "skipped"),
    ]
    assert results[0].error == "nothing is provisioned here; run acoupi-fleet provision first"
    assert {each.host for each in seen if isinstance(each, Result)} == {"one", "two", "three"}


def test_one_host_that_is_away_does_not_change_what_another_says(sshd: SshServer, run: Callable[..., Said]) -> None:
    away = f"away host=127.0.0.1 port={free_port()} systemd_scope=user"
    here = sshd.inventory_line("here", host_key=sshd.host_key, systemd_scope="user")
    Path("two.ini").write_text(f"{away}\n{here}\n")
    said = run("status", "two.ini")
    assert said.code == 2, "a sensor that answers and is not provisioned weighs more than one that is away"
    assert [line.split()[:2] for line in said.out.splitlines()[1:3]] == [["away", "unreachable"], ["here", "not"]]
    assert run("status", "two.ini", "--limit", "away").code == 4
    both = json.loads(run("status", "two.ini", "--json").out)
    assert [each["state"] for each in both] == ["unreachable", "not provisioned"]


@pytest.mark.parametrize("verb", ["status", "restart", "doctor"])
def test_a_scope_that_is_none_is_refused_before_any_sensor_is_asked(verb: str, run: Callable[..., Said]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0)
        port = door.getsockname()[1]
        Path("three.ini").write_text(
            f"[all:vars]\nhost=127.0.0.1\nport={port}\nsystemd_scope=users\n"
            "[woods]\npond systemd_scope=user\nshed\nreed\noak systemd_scope=root\n"
        )
        said = run(verb, "three.ini", "--timeout", "1")
        with pytest.raises(BlockingIOError):
            door.accept()
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "error: three.ini:4: systemd_scope: 'users' is no choice; write system or user\n"
        "error: three.ini:9: systemd_scope: 'root' is no choice; write system or user\n"
    )
    assert "'users'" not in run(verb, "three.ini", "--timeout", "1", "--limit", "pond").err


def test_hosts_are_asked_side_by_side_and_a_mistake_of_ours_is_not_swallowed(tmp_path: Path) -> None:
    sensors = hosts(tmp_path, "sensor[1:9] program=default")

    def work(host: Host) -> str:
        if host.name == "sensor3":
            raise UnreachableError("off")
        return host.name

    found = {host.name: answer for host, answer in together(sensors, 4, work)}
    assert isinstance(found.pop("sensor3"), UnreachableError)
    assert found == {name: name for name in found}
    assert len(found) == 8

    with pytest.raises(ZeroDivisionError):
        list(together(sensors, 4, lambda _: 1 // 0))


def test_a_difference_is_shown_as_text_and_a_secret_never(
    sshd: SshServer, run: Callable[..., Said], tmp_path: Path
) -> None:
    line = sshd.inventory_line("here", host_key=sshd.host_key, systemd_scope="user", program="connected")
    settings = "program.messaging.http.base_url=https://example.org/x"

    def check(duration: int, token: str, *words: str) -> Said:
        Path("one.ini").write_text(
            f"{line} {settings} program.messaging.http.token={token} program.recording.duration={duration}\n"
        )
        return run(*words)

    release = sshd.home / ".local/share/acoupi/releases/r1"
    check(3, "first-token", "render", "one.ini", "--output", "out", "--show-secrets")
    release.parent.mkdir(parents=True)
    (tmp_path / "out/here").rename(release)
    (release.parents[1] / "current").symlink_to("releases/r1")

    same = check(3, "first-token", "check", "one.ini", "--diff")
    assert "--- here ---" not in same.out
    secret = check(3, "second-token", "check", "one.ini", "--diff")
    assert "# home/config/program.json: only secrets differ, which are not shown\n" in secret.out
    both = check(4, "second-token", "check", "one.ini", "--diff")
    assert '\n-    "duration": 3.0,\n+    "duration": 4.0,\n' in both.out
    assert "-token" not in same.out + secret.out + both.out
