"""What a doctor finds before anything is written to a device: from what it says, and on real ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from acoupi_fleet.device.doctor import cards
from acoupi_fleet.doctor import Level, examine, judge, single
from acoupi_fleet.errors import UsageError
from acoupi_fleet.inventory import load_inventory
from acoupi_fleet.remote import HostKeys

if TYPE_CHECKING:
    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Rig
    from tests.support import SshServer

PI: dict[str, Any] = {
    "machine": {
        "machine": "aarch64",
        "bits": 64,
        "markers": {"python_full_version": "3.11.2", "python_version": "3.11"},
    },
    "os": "Debian GNU/Linux 12 (bookworm)",
    "model": "Raspberry Pi 4 Model B Rev 1.4",
    "kernel": "6.6.31+rpt-rpi-v8",
    "login": "pi",
    "root": False,
    "sudo": "free",
    "systemd": True,
    "lingers": False,
    "cards": [{"id": "r4", "name": "UltraMic 250K 16 bit r4", "rates": ["250000"], "channels": [1], "in_use": False}],
    "pcms": [],
    "clock": {"zone": "Europe/London", "synchronised": True, "rtc": False},
    "disks": [{"mount": "/", "kind": "ext4", "read_only": False, "total": 31_000_000_000, "free": 26_000_000_000}],
    "memory": {"total": 1_900_000_000, "available": 1_500_000_000, "swap": 0, "cgroup": True},
    "heat": {"degrees": 51.2, "throttled": 0},
    "missing_packages": ["redis-server"],
    "apt": True,
    "release": None,
    "foreign_units": {},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """That Pi with one thing otherwise."""
    answer: dict[str, Any] = copy.deepcopy(PI)
    inner = answer
    *steps, last = path.split(".")
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return answer


def test_a_good_pi_gives_nothing_to_worry_about() -> None:
    findings = judge(PI, scope="system", clock_offset=0.4)
    assert {finding.level for finding in findings} == {"well"}
    texts = {finding.subject: finding.text for finding in findings}
    assert texts["sound card"] == "UltraMic 250K 16 bit r4: 250000 Hz, 1 channel"
    assert texts["packages"] == "provision will install redis-server; without internet there: apt_via=workstation"
    assert texts["system"] == "Debian GNU/Linux 12 (bookworm), Raspberry Pi 4 Model B Rev 1.4, Linux 6.6.31+rpt-rpi-v8"


CASES: dict[str, tuple[str, Any, str, Level, str]] = {
    "a 32-bit system on a 64-bit kernel": ("machine.bits", 32, "machine", "problem", "32-bit, and there is no numpy"),
    "a machine without wheels": ("machine.machine", "riscv64", "machine", "problem", "use one of aarch64, x86_64"),
    "Debian 11": (
        "machine.markers",
        {"python_full_version": "3.9.2", "python_version": "3.9"},
        "Python",
        "problem",
        "3.9.2 is too old; use a system with 3.11",
    ),
    "no systemd": ("systemd", False, "systemd", "problem", "use Debian 12"),
    "sudo with a password": ("sudo", "password", "sudo", "warning", "write sudo_password=... or allow NOPASSWD"),
    "no sudo": ("sudo", "missing", "sudo", "problem", "log in as root once and install it"),
    "no microphone": ("cards", [], "sound card", "warning", "plug a microphone in"),
    "nobody sets the clock": ("clock.synchronised", False, "time server", "warning", "no battery keeps it"),
    "a full card": ("disks", [PI["disks"][0] | {"free": 90_000_000}], "disk", "problem", "make at least 400 MB free"),
    "a card that died": ("disks", [PI["disks"][0] | {"read_only": True}], "disk", "problem", "can only be read"),
    "little memory": ("memory.total", 250_000_000, "memory", "warning", "write isolation=shared"),
    "no memory controller": ("memory.cgroup", False, "memory limit", "warning", "cgroup_enable=memory"),
    "too hot": ("heat.degrees", 81.0, "heat", "warning", "81 °C; give it shade or air"),
    "a weak supply, earlier": ("heat.throttled", 0x10000, "power", "warning", "the Pi saw too little voltage since"),
    "packages, and no apt": ("apt", False, "packages", "problem", "as root there: apt install redis-server"),
    "a unit of somebody else": (
        "foreign_units",
        {"acoupi.target": "/etc/systemd/system/acoupi.target"},
        "unit",
        "problem",
        "acoupi.target belongs to somebody else (/etc/systemd/system/acoupi.target); move that file away first",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_needs_a_person_is_one_finding_with_its_cure(name: str) -> None:
    path, value, subject, level, text = CASES[name]
    findings = judge(changed(path, value), scope="system", clock_offset=0.0)
    worrying = [finding for finding in findings if finding.level != "well"]
    assert [(finding.level, finding.subject) for finding in worrying] == [(level, subject)]
    assert text in worrying[0].text


def test_a_clock_that_differs_is_a_warning_in_both_directions() -> None:
    for offset, text in ((90.0, "90 s ahead of"), (-7200.0, "7200 s behind")):
        findings = judge(PI, scope="system", clock_offset=offset)
        assert [finding.text[: len(text)] for finding in findings if finding.level == "warning"] == [text]


def test_user_scope_asks_for_linger_and_for_packages_that_root_must_install() -> None:
    worrying = {each.subject: each.text for each in judge(PI, scope="user", clock_offset=0) if each.level != "well"}
    assert "loginctl enable-linger pi" in worrying["linger"]
    assert "apt install redis-server" in worrying["packages"]
    assert set(worrying) == {"linger", "packages"}


CARDS = """\
 0 [Headphones     ]: bcm2835_headpho - bcm2835 Headphones
                      bcm2835 Headphones
 1 [r4             ]: USB-Audio - UltraMic 250K 16 bit r4
                      Dodotronic UltraMic 250K 16 bit r4 at usb-0000:01:00.0-1.2, high speed
"""
STREAM = """\
Dodotronic UltraMic 250K 16 bit r4 at usb-0000:01:00.0-1.2, high speed : USB Audio

Capture:
  Status: Running
    Interface = 1
  Interface 1
    Altset 1
    Format: S16_LE
    Channels: 1
    Endpoint: 0x81 (1 IN) (ASYNC)
    Rates: 192000, 250000
"""
USED = "access: MMAP_INTERLEAVED\nformat: S16_LE\nchannels: 1\nrate: 250000 (250000/1)\nperiod_size: 4096\n"


def test_sound_cards_are_told_by_name_rates_and_use_without_opening_one(tmp_path: Path) -> None:
    for name, text in {
        "cards": CARDS,
        "card0/id": "Headphones",
        "card0/pcm0p/sub0/hw_params": "closed",
        "card1/id": "r4",
        "card1/stream0": STREAM,
        "card1/pcm0c/sub0/hw_params": USED,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    seen = cards(tmp_path)
    assert seen == [
        {
            "id": "r4",
            "name": "UltraMic 250K 16 bit r4",
            "rates": ["192000", "250000"],
            "channels": [1],
            "in_use": 250_000,
        }
    ]
    (tmp_path / "card1/pcm0c/sub0/hw_params").write_text("closed\n")
    assert cards(tmp_path)[0]["in_use"] is False


def test_a_device_is_named_as_ssh_names_it() -> None:
    host = single("pi@192.168.1.20:2222", Path("/keys/pi"))
    to = host.connection
    assert (to.user, to.address, to.port, to.identity) == ("pi", "192.168.1.20", 2222, Path("/keys/pi"))
    assert single("raspberrypi.local", None).connection.user is None
    for word in ("-oProxyCommand=x", "pi[1:3]", ""):
        with pytest.raises(UsageError):
            single(word, None)


def test_a_real_device_answers_and_keeps_nothing(sshd: SshServer, tmp_path: Path) -> None:
    path = tmp_path / "sensors.ini"
    path.write_text(sshd.inventory_line("here", host_key=sshd.host_key, systemd_scope="user") + "\n")
    examination = examine(load_inventory(path).hosts[0], HostKeys([sshd.known_hosts]))
    told = {finding.subject: finding for finding in examination.findings}
    assert told["clock"].text.startswith("agrees with this computer's")
    assert told["machine"].level == "well"
    assert " free of " in told["disk"].text
    assert json.loads(json.dumps(examination.answer)) == examination.answer
    assert list(sshd.home.iterdir()) == []


def test_a_sensor_is_looked_at_without_being_changed(rig: Rig, make_sensor: MakeSensor, fleet: Fleet) -> None:
    sensor = make_sensor("bare")
    sensor.ssh("sudo true; touch /tmp/before")  # sudo itself notes in the home that it was used
    said = fleet("doctor", f"pi@{sensor.address}", "--identity", rig.network.identity, "--json")
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)[0]["answer"]
    assert (answer["sudo"], answer["systemd"], answer["apt"]) == ("free", True, True)
    assert answer["missing_packages"] == ["libportaudio2", "redis-server"]
    watched = "/etc /opt /home /root /usr /var/lib"
    assert sensor.ssh(f"sudo find {watched} -newer /tmp/before -not -type d").split() == []
