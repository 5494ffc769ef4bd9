"""apt_via=workstation on a real sensor: fresh from its card, without internet, its packages in a far archive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import end, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeSensor
    from tests.sensors import Rig, Sensor

ADDRESS = "192.0.2.1"  # RFC 5737: nobody's; here it is one more address of the workstation, off the sensors' network
SETTINGS = {
    "program": "default",
    "program.microphone.device_name": "ultramic",
    "program.recording.duration": 1,
    "program.recording.interval": 2,
    "program.recording.schedule_start": "00:00",
    "program.recording.schedule_end": "00:00",
    "apt_via": "workstation",
}


class Trip:
    """A bare sensor, the workstation, and an archive that only the workstation reaches, and only it can resolve."""

    def __init__(self, rig: Rig, sensor: Sensor, folder: Path) -> None:
        self.rig = rig
        self.sensor = sensor
        self.folder = folder
        self.log = folder / "archive.log"
        self.inventory = folder / "sensors.ini"
        self.names = folder / "hosts"
        self.name(ADDRESS)
        self.write(**SETTINGS)

    def name(self, address: str) -> None:
        self.names.write_text(f"127.0.0.1 localhost\n{address} archive.test\n")

    def write(self, **settings: object) -> None:
        self.inventory.write_text(self.sensor.inventory_line(**settings) + "\n")

    def fleet(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Our command line, where `archive.test` has an address."""
        named = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        ours = ("-m", "acoupi_fleet", *words)
        return self.rig.workstation(
            "unshare", "--mount", "sh", "-c", named, "sh", self.names, sys.executable, *ours, self.inventory
        )


@pytest.fixture(scope="module")
def trip(rig: Rig, wheels: Path, make_sensor: MakeSensor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trip]:
    made = Trip(rig, make_sensor("bare"), tmp_path_factory.mktemp("trip"))
    made.sensor.ssh(
        "sudo mv /srv/debian /srv/elsewhere && "
        "echo 'deb [trusted=yes] http://archive.test/debian ./' | sudo tee /etc/apt/sources.list"
    )
    web = made.folder / "web"
    web.mkdir()
    (web / "debian").symlink_to(made.sensor.root / "srv/elsewhere")
    place = ["ip", "-n", rig.network.workstation, "addr"]
    subprocess.run([*place, "add", f"{ADDRESS}/32", "dev", "lo"], check=True, timeout=60)
    server = [sys.executable, "-u", "-m", "http.server", "--bind", ADDRESS, "--directory", str(web), "80"]
    with made.log.open("wb") as log:
        archive = subprocess.Popen(rig.network.command(*server), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: "Serving HTTP" in made.log.read_text(), 120, "the archive to listen")
        yield made
    finally:
        end(archive)
        subprocess.run([*place, "del", f"{ADDRESS}/32", "dev", "lo"], check=True, timeout=60)


def test_apt_on_a_sensor_without_internet_uses_the_workstations_connection_and_keeps_nothing_of_it(trip: Trip) -> None:
    sensor = trip.sensor
    assert sensor.run(f"ip route get {ADDRESS}", check=False).returncode != 0, "there is another way to the archive"

    # Without forwarding there is no way, and nothing was begun.
    sensor.ssh("echo AllowTcpForwarding no | sudo tee /etc/ssh/sshd_config.d/forbid.conf && sudo systemctl reload ssh")
    refused = trip.fleet("provision")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    lines = [line for line in refused.stdout.splitlines() if line.startswith("failed")]
    assert len(lines) == 1
    assert "write `AllowTcpForwarding yes` in /etc/ssh/sshd_config there" in lines[0]
    assert sensor.run("test -e /opt/acoupi", check=False).returncode == 1
    sensor.ssh("sudo rm /etc/ssh/sshd_config.d/forbid.conf && sudo systemctl reload ssh")

    # Its own way leads nowhere, and the line that says so names this one.
    trip.write(**SETTINGS | {"apt_via": "device"})
    alone = trip.fleet("provision")
    assert alone.returncode == 2, alone.stdout + alone.stderr
    assert "missing packages: libportaudio2 redis-server; apt cannot install them here" in alone.stdout
    for way_out in ("connect the sensor to the internet", "apt_via=workstation", "`apt-get download`"):
        assert way_out in alone.stdout
    assert "GET" not in trip.log.read_text()

    trip.write(**SETTINGS)
    asked = trip.fleet("provision", "--check")
    assert asked.returncode == 3, asked.stdout + asked.stderr
    assert "install packages libportaudio2 redis-server (apt through this computer's connection)" in asked.stdout

    # What the workstation cannot or must not reach is told in apt's own line.
    trip.name("127.0.0.1")
    astray = trip.fleet("provision")
    assert astray.returncode == 2, astray.stdout + astray.stderr
    assert "403  127.0.0.1 is the workstation itself" in astray.stdout
    assert "let this computer reach what apt names" in astray.stdout
    trip.name(ADDRESS)

    done = trip.fleet("provision")
    assert done.returncode == 0, done.stdout + done.stderr
    sensor.ssh("dpkg -s redis-server libportaudio2 >/dev/null")
    served = trip.log.read_text()
    assert "GET /debian/./Packages" in served
    assert "redis-server_" in served
    recordings = sensor.root / "var/lib/acoupi/storages/recordings"
    wait_until(lambda: list(recordings.glob("[0-9]*/**/*.wav")), 180, "a recording")

    assert sensor.run("grep -ri proxy /etc/apt", check=False).stdout == ""
    listening = sensor.ssh("ss --listening --tcp --numeric --no-header | awk '{print $4}'").split()
    assert {place.rpartition(":")[2] for place in listening} == {"22"}
    again = trip.fleet("provision")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0" in again.stdout
