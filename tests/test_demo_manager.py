"""A virtual sensor's first process: it keeps services as systemd does, and takes all with it when it goes."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from acoupi_fleet.demo import sensor as sensors
from acoupi_fleet.demo.processes import Process, descendants, zombies
from acoupi_fleet.demo.sensor import PortTakenError, VirtualSensor, make_key, switch_off
from acoupi_fleet.device.system import PROPERTIES
from tests.support import free_port, wait_until

DEADLINE = 120.0

SAYS_READY = """
import os, signal, socket, sys, time
def say(*lines):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.sendto("\\n".join(lines).encode(), os.environ["NOTIFY_SOCKET"])
"""


class Virtual:
    """A virtual sensor that is on, with units of the test's own, and its systemctl."""

    def __init__(self, virtual: VirtualSensor) -> None:
        self.virtual = virtual
        self.units = virtual.home / ".config/systemd/user"

    def unit(self, name: str, code: str, *settings: str, unit: str = "") -> None:
        """Write a service that runs a piece of Python."""
        script = self.virtual.folder / f"{name.replace('@', '-')}.py"
        script.write_text(SAYS_READY + code)
        command = f'ExecStart="{sys.executable}" -I -S "{script}" %i'
        lines = ["[Unit]", unit, "[Service]", "Type=notify", command, "RestartSec=0.3", *settings]
        self.units.mkdir(parents=True, exist_ok=True)
        (self.units / name).write_text("\n".join(lines) + "\n")

    def systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the sensor's systemctl, as a session there would."""
        command = [str(self.virtual.folder / "bin/systemctl"), "--user", "--no-ask-password", *words]
        return subprocess.run(
            command, env=dict(self.virtual.environment), capture_output=True, text=True, check=False, timeout=DEADLINE
        )

    def show(self, name: str) -> dict[str, str]:
        """Everything that is known of one unit."""
        said = self.systemctl("show", name).stdout
        return dict(line.split("=", 1) for line in said.splitlines())

    def wait_for(self, name: str, **wanted: str) -> dict[str, str]:
        """Wait until a unit is as wanted."""

        def is_so() -> dict[str, str] | None:
            shown = self.show(name)
            return shown if shown.items() >= wanted.items() else None

        found = wait_until(is_so, DEADLINE, f"{name} to show {wanted}; it shows {self.show(name)}")
        assert found
        return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, since unix sockets are in it."""
    path = Path(tempfile.mkdtemp(prefix="acoupi-"))
    yield path
    for each in path.iterdir():
        switch_off(each)
    shutil.rmtree(path)


MakeSensor = Callable[[], Virtual]


@pytest.fixture
def make_virtual(folder: Path) -> MakeSensor:
    """Makes a virtual sensor that is on."""

    def make() -> Virtual:
        for number in range(10):
            virtual = VirtualSensor(folder / f"s{number}", free_port())
            virtual.make(make_key(folder / f"login{number}"))
            try:
                virtual.switch_on()
            except PortTakenError:
                continue
            return Virtual(virtual)
        raise AssertionError("no free port in ten tries")

    return make


@pytest.fixture
def one(make_virtual: MakeSensor) -> Virtual:
    return make_virtual()


FOREVER = """
say("READY=1", "STATUS=I live")
while True: signal.pause()
"""


def test_a_service_is_active_once_it_has_said_so_and_shows_what_is_asked_of_it(one: Virtual) -> None:
    one.unit("a.service", "time.sleep(0.5)\n" + FOREVER, 'Environment=A=1 "B=two words"', "RuntimeDirectory=acoupi")
    assert one.systemctl("start", "a.service").returncode == 0
    shown = one.show("a.service")
    assert shown["ActiveState"] == "active"
    assert shown["SubState"] == "running"
    assert shown["StatusText"] == "I live"
    assert shown["FragmentPath"] == str(one.units / "a.service")
    assert len(shown["InvocationID"]) == 32
    assert set(PROPERTIES.split(",")) <= set(shown)
    environ = Path(f"/proc/{shown['MainPID']}/environ").read_bytes().split(b"\0")
    assert {b"A=1", b"B=two words", f"HOME={one.virtual.home}".encode()} <= set(environ)
    assert (one.virtual.runtime / "acoupi").is_dir()
    asked = one.systemctl("show", "--property=Id,ActiveState", "a.service", "b.service", "c@*.service").stdout
    assert asked == "Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=inactive\n"
    assert one.systemctl("show", "--property=FragmentPath", "--value", "a.service").stdout == f"{one.units}/a.service\n"


def test_a_killed_service_comes_back_with_another_process_and_is_counted(one: Virtual) -> None:
    one.unit("a.service", FOREVER, "Restart=always")
    one.systemctl("start", "a.service")
    before = one.show("a.service")
    os.kill(int(before["MainPID"]), signal.SIGKILL)
    after = one.wait_for("a.service", NRestarts="1", ActiveState="active")
    assert after["MainPID"] != before["MainPID"]
    assert after["InvocationID"] != before["InvocationID"]


def test_a_service_that_stops_feeding_the_watchdog_is_aborted_and_started_again(one: Virtual) -> None:
    one.unit("a.service", FOREVER, "Restart=always", "WatchdogSec=1")
    one.systemctl("start", "a.service")
    one.wait_for("a.service", NRestarts="1")
    assert one.systemctl("stop", "a.service").returncode == 0
    assert one.show("a.service")["ActiveState"] == "inactive"


def test_a_service_that_feeds_the_watchdog_stays(one: Virtual) -> None:
    code = """
say("READY=1")
for number in range(12):
    say("WATCHDOG=1", f"STATUS={number}")
    time.sleep(0.5)
say("WATCHDOG=1", "STATUS=long enough")
while True:
    say("WATCHDOG=1")
    time.sleep(0.5)
"""
    one.unit("a.service", code, "Restart=always", "WatchdogSec=5")
    one.systemctl("start", "a.service")
    assert one.wait_for("a.service", StatusText="long enough")["NRestarts"] == "0"


def test_a_target_starts_what_it_wants_in_its_order_and_stops_and_restarts_what_is_part_of_it(one: Virtual) -> None:
    noting = 'open(os.environ["HOME"] + "/order", "a").write(sys.argv[-1] + chr(10))\n'
    part = "PartOf=a.target"
    one.unit("b@.service", noting + FOREVER, "Restart=always", unit=f"{part}\nAfter=c.service")
    one.unit("c.service", "time.sleep(0.5)\n" + noting.replace("sys.argv[-1]", "'c'") + FOREVER, unit=part)
    one.unit("d.service", FOREVER)
    (one.units / "a.target").write_text("[Unit]\nWants=b@1.service c.service gone.service\n")
    assert one.systemctl("start", "a.target", "d.service").returncode == 0
    names = ("a.target", "b@1.service", "c.service", "d.service")
    first = {name: one.show(name) for name in names}
    assert {state["ActiveState"] for state in first.values()} == {"active"}
    assert (one.virtual.home / "order").read_text() == "c\n1\n"
    assert one.systemctl("restart", "a.target").returncode == 0
    second = {name: one.show(name) for name in names}
    changed = [name for name in names if first[name]["InvocationID"] != second[name]["InvocationID"]]
    assert changed == ["a.target", "b@1.service", "c.service"]
    assert one.systemctl("stop", "a.target").returncode == 0
    assert one.systemctl("is-active", *names).stdout.split() == ["inactive", "inactive", "inactive", "active"]


def test_a_service_that_cannot_start_is_a_failed_job_and_does_not_keep_its_target(one: Virtual) -> None:
    one.unit("a.service", "sys.exit(7)")
    one.unit("b.service", FOREVER)
    (one.units / "b.service").write_text("[Service]\nType=notify\nExecStart=/nowhere/at-all\n")
    (one.units / "c.target").write_text("[Unit]\nWants=a.service b.service\n")
    assert one.systemctl("start", "a.service").returncode == 1
    assert (
        one.show("a.service").items() >= {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "7"}.items()
    )
    assert one.systemctl("start", "c.target").returncode == 0
    assert one.show("b.service")["StatusText"] == "/nowhere/at-all: No such file or directory"


def test_a_service_that_never_gets_ready_is_given_up_and_one_that_ignores_the_end_is_killed(one: Virtual) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    one.unit("a.service", deaf + "while True: signal.pause()", "TimeoutStartSec=1", "TimeoutStopSec=1")
    assert one.systemctl("start", "a.service").returncode == 1
    assert one.show("a.service")["Result"] == "timeout"
    one.unit("b.service", deaf + FOREVER, "TimeoutStopSec=1")
    one.systemctl("start", "b.service")
    assert one.systemctl("stop", "b.service").returncode == 0
    assert one.show("b.service")["MainPID"] == "0"


def test_systemctl_answers_with_the_exit_codes_that_systemd_has(one: Virtual) -> None:
    assert one.systemctl("start", "nothing.service").returncode == 5
    assert one.systemctl("is-active", "nothing.service").returncode == 3
    assert one.systemctl("show", "nothing.service").returncode == 0
    assert one.systemctl("daemon-reload").returncode == 0
    assert one.systemctl("isolate", "rescue.target").returncode == 1
    assert one.systemctl("--system", "show").returncode == 1
    switch_off(one.virtual.folder)
    off = one.systemctl("show")
    assert (off.returncode, off.stderr.startswith("Failed to connect to bus")) == (1, True)


def test_what_is_enabled_starts_when_the_sensor_is_switched_on_again(one: Virtual) -> None:
    one.unit("a.service", FOREVER)
    wants = one.units / "default.target.wants"
    wants.mkdir()
    (wants / "a.service").symlink_to("../a.service")
    assert one.show("a.service")["ActiveState"] == "inactive"
    switch_off(one.virtual.folder)
    one.virtual.switch_on()
    one.wait_for("a.service", ActiveState="active")


def test_nothing_of_a_sensor_outlives_it_whatever_its_processes_have_become(one: Virtual) -> None:
    # A grandchild in a session of its own, deaf to all that is polite, whose parent has ended.
    code = """
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() != 0: os._exit(0)
    open(os.environ["HOME"] + "/orphan", "w").write(str(os.getpid()) + chr(10))
    while True: signal.pause()
"""
    one.unit("a.service", code + FOREVER)
    one.systemctl("start", "a.service")
    note = one.virtual.home / "orphan"
    orphan = Process.of(int(wait_until(lambda: note.exists() and note.read_text().strip(), DEADLINE, "the orphan")))
    first = int((one.virtual.folder / "first_process").read_text().split()[0])
    everyone = [Process.of(first), *descendants(first)]
    assert orphan in everyone
    assert all(process.alive for process in everyone)
    switch_off(one.virtual.folder)
    assert not any(process.alive for process in everyone)
    switch_off(one.virtual.folder)  # once more does no harm


def test_a_sensor_whose_first_process_hangs_is_switched_off_all_the_same(
    one: Virtual, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.unit("a.service", FOREVER)
    one.systemctl("start", "a.service")
    first = Process.of(int((one.virtual.folder / "first_process").read_text().split()[0]))
    everyone = [first, *descendants(first.pid)]
    first.kill(signal.SIGSTOP)
    monkeypatch.setattr(sensors, "_END_SECONDS", 1.0)
    switch_off(one.virtual.folder)
    wait_until(lambda: not any(process.alive for process in everyone), DEADLINE, "all to end")


def test_a_file_that_names_somebody_elses_process_ends_nobody(folder: Path) -> None:
    virtual = folder / "s"
    virtual.mkdir()
    with subprocess.Popen(["sleep", "600"]) as stranger:
        process = Process.of(stranger.pid)
        (virtual / "first_process").write_text(f"{process.pid} {process.started - 1}\n")
        switch_off(virtual)
        assert process.alive
        stranger.kill()


def _login(virtual: VirtualSensor, identity: Path) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    kind, key = (virtual.folder / "host_key.pub").read_text().split()[:2]
    pinned = paramiko.Ed25519Key(data=base64.b64decode(key))
    client.get_host_keys().add(f"[127.0.0.1]:{virtual.port}", kind, pinned)
    client.connect(
        "127.0.0.1",
        virtual.port,
        virtual.environment["USER"],
        key_filename=str(identity),
        look_for_keys=False,
        allow_agent=False,
        timeout=60,
        banner_timeout=60,
        auth_timeout=60,
    )
    return client


@pytest.mark.parametrize("kind", ["OpenSSH", "Python"])
def test_a_sensor_lets_its_key_in_and_gives_the_session_a_home_of_its_own(
    kind: str, make_virtual: MakeSensor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "OpenSSH" and sensors._sshd() is None:
        pytest.skip("OpenSSH's server cannot be run by this user; the demonstration takes the one in Python")
    if kind == "Python":
        monkeypatch.setenv("PATH", str(folder / "without-sshd"))
        monkeypatch.setattr(sensors, "_SBIN", "/nowhere")
        sensors._sshd.cache_clear()
    one = make_virtual()
    identity = folder / "login0"
    with _login(one.virtual, identity) as client:
        stdin, stdout, stderr = client.exec_command("cat; echo $HOME $XDG_RUNTIME_DIR; ls ~ >&2; exit 9", timeout=60)
        sent = os.urandom(300_000).hex()
        stdin.write(sent)
        stdin.channel.shutdown_write()
        assert stdout.read().decode() == f"{sent}{one.virtual.home} {one.virtual.runtime}\n"
        assert stderr.read() == b""
        assert stdout.channel.recv_exit_status() == 9
    make_key(folder / "stranger")
    with pytest.raises(paramiko.AuthenticationException):
        _login(one.virtual, folder / "stranger")


def test_orphans_that_have_ended_do_not_stay_as_zombies(one: Virtual) -> None:
    code = """
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep(0.5)
        os._exit(0)
    os._exit(0)
"""
    one.unit("a.service", code + FOREVER)
    one.systemctl("start", "a.service")
    first = int((one.virtual.folder / "first_process").read_text().split()[0])
    wait_until(lambda: zombies(first), DEADLINE, "an orphan that has ended")
    wait_until(lambda: not zombies(first), DEADLINE, "its first process to let it go")
    assert one.show("a.service")["ActiveState"] == "active"
