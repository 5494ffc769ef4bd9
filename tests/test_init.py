"""A first inventory is written from answers and a look at the sensors: right, whole, and never over another file."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acoupi_fleet.configuration import configure_all
from acoupi_fleet.errors import UnreachableError, UsageError
from acoupi_fleet.init import Door, Found, interview, write_new
from acoupi_fleet.inventory import load_inventory

if TYPE_CHECKING:
    from acoupi_fleet.inventory import Host
    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Rig
    from tests.support import SshServer

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGlSUHv+whCYHnz7JyBpo2VjbgJMjTnlgF9CGu6u3oDm"


class Answers:
    """A person who has written the answers down before."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.heard: list[str] = []

    def ask(self, question: str, default: str = "") -> str:
        self.heard.append(f"{question} [{default}]")
        if not self._answers:
            raise UsageError("the answers ended before the last question; nothing was written")
        return self._answers.pop(0)

    def tell(self, text: str) -> None:
        self.heard.append(text)


class Shelf:
    """Devices on a shelf: they show one key, and have these microphones; without any the device is off."""

    def __init__(self, *microphones: str, off: bool = False) -> None:
        self.microphones = microphones
        self.off = off
        self.trusted: list[str | None] = []
        self.opened_with: list[Path | None] = []

    def door(self, host: Host) -> Door:
        self.opened_with.append(host.connection.identity)
        if self.off:
            raise UnreachableError(f"{host.connection.address} port 22: no answer within 10 s; is it on?")
        return Door(KEY, "SHA256:abc (ssh-ed25519)")

    def look(self, host: Host) -> Found:
        self.opened_with.append(host.connection.identity)
        self.trusted.append(host.connection.host_key)
        return Found(self.microphones, "Europe/London", ("time server: nobody sets this clock",))


def talk(answers: Answers, shelf: Shelf, folder: Path) -> Path:
    """The inventory that comes of it, which its own reader must take."""
    path = folder / "sensors.ini"
    write_new(path, interview(answers, shelf, zone="UTC"))
    configure_all(load_inventory(path).hosts)
    return path


def test_two_sensors_become_two_lines_that_the_inventory_reader_takes(tmp_path: Path) -> None:
    first = ["pond", "10.0.0.5", "2222", "pi", "-", "y", "2", "Mill pond's edge", "52.5", "-1.25", "y"]
    second = ["shed", "10.0.0.6", "", "", "-", "y", "1", "", "", "n", "Europe/London"]
    shelf = Shelf("bcm2835 Headphones", "UltraMic 250K 16 bit r4")
    hosts = load_inventory(talk(Answers(*first, *second), shelf, tmp_path)).hosts
    pond, shed = hosts
    assert (pond.connection.address, pond.connection.port, pond.connection.user) == ("10.0.0.5", 2222, "pi")
    assert (shed.connection.port, shed.connection.user, shed.connection.host_key) == (None, "pi", KEY)
    assert shelf.trusted == [KEY, KEY]
    values = {key: variable.value for key, variable in pond.variables.items()}
    assert values["program.microphone.device_name"] == "UltraMic 250K 16 bit r4"
    assert (values["deployment.name"], values["deployment.latitude"]) == ("Mill pond's edge", 52.5)
    assert values["program.timezone"] == values["celery.timezone"] == "Europe/London"
    assert "deployment.latitude" not in shed.variables


def test_the_fingerprint_is_shown_before_the_key_is_trusted_and_a_no_keeps_the_door_shut(tmp_path: Path) -> None:
    person = Answers("pond", "10.0.0.5", "", "pi", "-", "n", "-", "", "", "n", "")
    shelf = Shelf("UltraMic")
    host = load_inventory(talk(person, shelf, tmp_path)).hosts[0]
    assert host.connection.host_key is None
    assert shelf.trusted == []
    shown = person.heard.index("pond shows the host key SHA256:abc (ssh-ed25519)")
    assert shown < person.heard.index("Is it the sensor's own key? [y/N] []")


def test_a_sensor_that_is_off_is_written_down_all_the_same(tmp_path: Path) -> None:
    person = Answers("pond", "", "", "", "-", "Ultra", "", "", "n", "")
    host = load_inventory(talk(person, Shelf(off=True), tmp_path)).hosts[0]
    assert (host.connection.address, host.connection.user) == ("pond.local", "pi")
    assert host.variables["program.microphone.device_name"].value == "Ultra"
    assert any("no answer within 10 s" in line for line in person.heard)


WRONG = {
    "a name": (0, "../pond", "is no host name"),
    "a range": (0, "pond[1:2]", "is more than a name"),
    "an address": (1, "two words", "it is no name and no address of a host"),
    "a port": (2, "70000", "it is no port"),
    "a key": (4, "/nowhere/key", "no such file"),
    "a key of nobody": (4, "~nobody-here/key", "there is no such user"),
    "a microphone's number": (6, "3", "'3' is none of 1 to 2"),
    "a latitude": (8, "95", "less than or equal to 90"),
    "a text for a number": (8, "north", "deployment.latitude"),
    "a zone": (11, "Mars", "'Mars' is not a time zone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_asked_for_again_with_the_reason(name: str, tmp_path: Path) -> None:
    place, wrong, reason = WRONG[name]
    right = ["pond", "10.0.0.5", "22", "pi", "-", "y", "1", "", "52.5", "-1.25", "n", "UTC"]
    person = Answers(*right[:place], wrong, *right[place:])
    talk(person, Shelf("one", "two"), tmp_path)
    again = [number for number, line in enumerate(person.heard) if reason in line]
    assert len(again) == 1
    assert person.heard[again[0] - 1] == person.heard[again[0] + 1], "the same question"


def test_values_with_quotes_and_signs_come_back_as_they_were_typed(tmp_path: Path) -> None:
    name = """Tom's "big" pond; #2 = {x} 1e5"""
    person = Answers("pond", "10.0.0.5", "", "pi", "-", "y", name, "-", "n", "")
    host = load_inventory(talk(person, Shelf("1234"), tmp_path)).hosts[0]
    configuration = configure_all([host])["pond"]
    assert configuration.deployment is not None
    assert configuration.deployment.name == name
    assert configuration.program.model_dump()["microphone"]["device_name"] == "1234"


def test_a_dash_leaves_out_only_what_the_question_says(tmp_path: Path) -> None:
    pond = ["pond", "-", "10.0.0.5", "-", "-", "pi", "-", "y", "-", "Mill pond", "52.5", "-", "y"]
    shed = ["shed", "10.0.0.6", "", "-", "", "", "y", "", "-", "n", ""]
    person = Answers(*pond, *shed)
    hosts = load_inventory(talk(person, Shelf("mic"), tmp_path)).hosts
    assert [(host.connection.address, host.connection.user) for host in hosts] == [
        ("10.0.0.5", "pi"),
        ("10.0.0.6", "pi"),
    ]
    assert (hosts[0].connection.port, hosts[0].connection.identity) == (None, None)
    assert hosts[0].variables["deployment.name"].value == "Mill pond"
    refusals = [number for number, line in enumerate(person.heard) if line == "- is no answer here; write a value."]
    assert len(refusals) == 4
    assert all(person.heard[number - 1] == person.heard[number + 1] for number in refusals), "the same question"


@pytest.mark.parametrize("spelling", ["keys/pi", "~/keys/pi"])
def test_a_key_is_found_from_the_visit_and_from_wherever_the_inventory_is_written(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/pi").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shelf = Shelf("mic")
    (tmp_path / "other").mkdir()
    path = talk(Answers("pond", "", "", "", spelling, "y", "", "", "n", ""), shelf, tmp_path / "other")
    assert load_inventory(path).hosts[0].connection.identity == tmp_path / "keys/pi"
    assert shelf.opened_with == [tmp_path / "keys/pi"] * 2
    assert (f"identity={spelling}" in path.read_text().replace("'", "")) == spelling.startswith("~")


def test_what_is_wrong_only_when_it_is_together_is_not_written(tmp_path: Path) -> None:
    """A microphone may call itself anything; the reader of inventories does not take any name."""
    refused = ["pond", "10.0.0.5", "", "", "-", "y", "", ""]
    taken = ["pond", "10.0.0.5", "", "", "-", "n", "mic", "", "", "n", ""]
    person = Answers(*refused, *taken)
    host = load_inventory(talk(person, Shelf("{{mic}}"), tmp_path)).hosts[0]
    assert host.variables["program.microphone.device_name"].value == "mic"
    said = next(line for line in person.heard if "The line would be: pond host=10.0.0.5" in line)
    assert said.startswith("program.microphone.device_name: '{{' is in it")


def acoupi_fleet(folder: Path, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"}
    return subprocess.run(
        [sys.executable, "-m", "acoupi_fleet", *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env=environment | {"HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def test_what_was_written_opens_a_real_door(sshd: SshServer, tmp_path: Path) -> None:
    answers = ["here", "127.0.0.1", str(sshd.port), sshd.user, str(sshd.identity), "y", "-", "lab", "", "n", "UTC"]
    done = acoupi_fleet(tmp_path, "init", stdin="\n".join(answers) + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", "-"], input=sshd.host_key, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()[1]
    assert f"here shows the host key {fingerprint} (ssh-ed25519)" in done.stdout
    assert "acoupi-fleet provision sensors.ini" in done.stdout
    assert not (tmp_path / ".ssh").exists(), "trust is in the inventory, not in known_hosts"
    written = tmp_path / "sensors.ini"
    assert written.stat().st_mode & 0o777 == 0o600
    text = written.read_text()
    (tmp_path / "user.ini").write_text(f"{text}systemd_scope=user\n")
    seen = acoupi_fleet(tmp_path, "status", "user.ini")
    assert "not provisioned" in seen.stdout, seen.stderr

    again = acoupi_fleet(tmp_path, "init", stdin="\n".join(answers) + "\n")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "error: sensors.ini: it exists and is not overwritten; name another with --output\n"
    assert written.read_text() == text


def test_answers_that_end_too_early_write_nothing(tmp_path: Path) -> None:
    done = acoupi_fleet(tmp_path, "init", "--output", "mine.ini", stdin="pond\n")
    assert done.returncode == 1
    assert done.stderr == "error: the answers ended before the last question; nothing was written\n"
    assert list(tmp_path.glob("*.ini")) == []


def test_a_sensor_is_asked_for_its_microphones(rig: Rig, make_sensor: MakeSensor, fleet: Fleet, tmp_path: Path) -> None:
    sensor = make_sensor()
    key = str(rig.network.identity)
    answers = ["pond", sensor.address, "", "pi", key, "y", "1", "", "", "n", "UTC"]
    done = fleet("init", "--output", tmp_path / "sensors.ini", stdin="\n".join(answers) + "\n")
    assert done.returncode == 0, done.stderr
    assert "  1  ultramic\n  2  fastwav\n" in done.stdout
    line = shlex.split((tmp_path / "sensors.ini").read_text(), comments=True)
    assert "program.microphone.device_name=ultramic" in line
