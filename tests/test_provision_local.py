"""From an inventory to running workers on a virtual sensor: real SSH, files and workers, a stand-in for systemd."""

from __future__ import annotations

import fcntl
import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acoupi_fleet.configuration import configure
from acoupi_fleet.demo import sound
from acoupi_fleet.demo.sensor import PortTakenError, VirtualSensor, make_key, switch_off
from acoupi_fleet.desired import Desired, File
from acoupi_fleet.inventory import Host, load_inventory
from acoupi_fleet.provision import Event, Note, Options, Result, exit_code, provision
from acoupi_fleet.render import render
from tests.support import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(
    900
)  # workers start, crash and start again, on a machine that is busy with other tests
PATIENT = Options(health_seconds=240)
INVENTORY = """\
owl port={port} identity={identity} host_key={host_key}
[all:vars]
host=127.0.0.1
user={user}
systemd_scope=user
runtime={runtime}
program=default
program.timezone=UTC
program.recording.duration=1
program.recording.interval=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
program.microphone.device_name=file:{sound}
"""


@dataclass(frozen=True)
class Owl:
    """A virtual sensor that is on, and its inventory."""

    virtual: VirtualSensor
    inventory: Path

    @property
    def prefix(self) -> Path:
        return self.virtual.home / ".local/share/acoupi"

    @property
    def release(self) -> str:
        return (self.prefix / "current").readlink().name

    def wants(self, *, runtime: str | None = sys.prefix) -> tuple[Host, Desired]:
        (host,) = load_inventory(self.inventory).hosts
        return host, replace(render(host, configure(host)), runtime=runtime)

    def set(self, line: str) -> None:
        self.inventory.write_text(f"{self.inventory.read_text()}{line}\n")

    def show(self, unit: str, name: str) -> str:
        words = [str(self.virtual.folder / "bin/systemctl"), "--user", "show", f"--property={name}", unit]
        said = subprocess.run(words, env=dict(self.virtual.environment), capture_output=True, text=True, check=True)
        return said.stdout.strip().partition("=")[2]

    def is_free(self) -> bool:
        """Whether nobody is changing it."""
        with (self.prefix / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def traces(self) -> dict[str, tuple[int, int]]:
        """Everything that a run could have changed, with the identity and the time of each file."""
        roots = (self.prefix, self.virtual.home / ".config", self.virtual.home / ".acoupi/config")
        found = {path: path.lstat() for root in roots for path in [root, *root.rglob("*")] if os.path.lexists(path)}
        return {str(path): (about.st_ino, about.st_mtime_ns) for path, about in found.items()}


@pytest.fixture
def owl() -> Iterator[Owl]:
    """A virtual sensor without anything of ours, in a folder with a short name, since unix sockets are in it."""
    folder = Path(tempfile.mkdtemp(prefix="acoupi-"))
    try:
        yield make_owl(folder)
    finally:
        for each in folder.iterdir():
            if each.is_dir():
                switch_off(each)
        subprocess.run(["rm", "-rf", folder], check=True, timeout=60)


def make_owl(folder: Path) -> Owl:
    for number in range(10):
        virtual = VirtualSensor(folder / f"owl{number}", free_port())
        virtual.make(make_key(folder / f"key{number}"))
        try:
            virtual.switch_on()
        except PortTakenError:
            continue
        sound.calls(folder / "sound.wav", 900.0, seed=1)
        inventory = folder / "sensors.ini"
        words = {"identity": folder / f"key{number}", "host_key": virtual.host_key, "sound": folder / "sound.wav"}
        inventory.write_text(INVENTORY.format(port=virtual.port, user=getpass.getuser(), runtime=sys.prefix, **words))
        return Owl(virtual, inventory)
    raise AssertionError("no free port in ten tries")


def run(owl: Owl, desired: Desired | None = None, options: Options = PATIENT) -> tuple[Result, list[Event]]:
    host, wanted = owl.wants()
    events: list[Event] = []
    (result,) = provision([(host, desired or wanted)], options=options, observe=events.append)
    return result, events


def good(owl: Owl) -> Result:
    result, _ = run(owl)
    assert (result.status, result.error, result.warnings) == ("changed", None, ())
    return result


def test_a_sensor_is_made_left_alone_changed_and_mended(owl: Owl) -> None:
    before = owl.traces()
    result, _ = run(owl, options=replace(PATIENT, check=True))
    assert (result.status, result.exit_code) == ("changed", 3)
    assert owl.traces() == before == {}

    result, events = run(owl)
    assert (result.status, result.error) == ("changed", None)
    assert [event.text for event in events if isinstance(event, Note) and event.kind == "change"] == list(
        result.changes
    )
    assert owl.show("acoupi-worker@recording.service", "ActiveState") == "active"
    home = owl.virtual.home / ".acoupi"
    assert (home / "config").readlink() == owl.prefix / "current/home/config"
    assert (home / "store").stat().st_mode & 0o777 == 0o750
    assert not (owl.prefix / "due.json").exists()

    traces, alive = owl.traces(), owl.show("acoupi-worker@recording.service", "InvocationID")
    result, events = run(owl)
    assert (result.status, result.changes, events) == ("ok", (), [result])
    assert owl.traces() == traces
    assert owl.show("acoupi-worker@recording.service", "InvocationID") == alive

    first = owl.release
    owl.set("program.recording.duration=2")
    result = good(owl)
    kinds = Counter(change.split()[0].rstrip(":") for change in result.changes)
    assert kinds == {"release": 1, "switch": 1, "systemd": 1, "restart": 1}
    assert result.changes[0].endswith(": home/config/program.json")
    assert owl.release != first

    second = owl.release
    program = owl.prefix / "current/home/config/program.json"
    program.chmod(0o644)
    program.write_text("{}")
    assert good(owl).changes[0].endswith(": home/config/program.json")
    assert owl.release == f"{second}.2"


def test_a_release_that_does_not_work_goes_back_to_the_one_that_did(owl: Owl) -> None:
    good(owl)
    before, units = owl.release, sorted(path.name for path in (owl.virtual.home / ".config/systemd/user").iterdir())
    _, desired = owl.wants()
    worker = "lib/acoupi_runtime/system/worker.py"
    broken = tuple(File(worker, b"raise SystemExit(1)\n") if file.path == worker else file for file in desired.files)
    wanting = tuple(
        File(file.path, file.content + b"\n[Unit]\nWants=acoupi-extra.service\n")
        if file.path == "units/acoupi.target"
        else file
        for file in broken
    )
    started = owl.virtual.folder / "extra-was-started"
    script = f"[Service]\nRestart=always\nExecStart=/bin/sh -c 'touch {started}; exec sleep 1000'\n"
    added = File("units/acoupi-extra.service", script.encode())
    result, _ = run(owl, replace(desired, files=(*wanting, added)), PATIENT)
    assert (result.status, result.exit_code) == ("failed", 2)
    assert result.error is not None
    assert f"it went back to release {before}, which works" in result.error
    assert owl.release == before
    assert sorted(path.name for path in (owl.virtual.home / ".config/systemd/user").iterdir()) == units
    assert owl.show("acoupi-worker@recording.service", "ActiveState") == "active"
    assert started.exists()
    assert owl.show("acoupi-extra.service", "ActiveState") == "inactive"
    assert run(owl)[0].status == "ok"


def test_a_release_that_cannot_be_imported_is_refused_before_the_switch(owl: Owl) -> None:
    _, desired = owl.wants()
    files = tuple(
        File(file.path, b"import no_such_module\n") if file.path == "lib/acoupi_runtime/cli.py" else file
        for file in desired.files
    )
    result, _ = run(owl, replace(desired, files=files))
    assert result.error is not None
    assert "import acoupi_runtime failed: ModuleNotFoundError: No module named 'no_such_module'" in result.error
    assert sorted(path.name for path in owl.prefix.iterdir()) == ["lock", "releases"]
    assert list((owl.prefix / "releases").iterdir()) == []


def test_a_second_operator_is_refused_and_told_who_is_at_it(owl: Owl) -> None:
    owl.prefix.mkdir(parents=True)
    with (owl.prefix / "lock").open("w") as lock:
        lock.write("nina@laptop (since 12:03:11 UTC)")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        result, _ = run(owl)
    assert result.status == "failed"
    assert result.error is not None
    assert "nina@laptop (since 12:03:11 UTC) is changing this sensor; wait" in result.error
    assert sorted(path.name for path in owl.prefix.iterdir()) == ["lock"]


@pytest.mark.parametrize(("call", "when"), [("fsync", 1), ("mkdir", 3), ("fsync", 30)])
def test_a_card_that_is_full_in_the_middle_leaves_what_was_there(owl: Owl, call: str, when: int) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: make packages installs it")
    good(owl)
    before = owl.traces()
    owl.set("program.recording.duration=2")
    python = owl.virtual.folder / "bin/python3"
    inject = f"--inject={call}:error=ENOSPC:when={when}+"
    python.write_text(f'#!/bin/sh\nexec strace -f -qq -o /dev/null {inject} "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    result, _ = run(owl)
    assert result.status == "failed"
    assert result.error is not None
    assert "no space below" in result.error
    after = owl.traces()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {str(owl.prefix), str(owl.prefix / "releases"), str(owl.prefix / "lock")}
    python.unlink()
    good(owl)


@pytest.mark.parametrize("filled", [False, True])
def test_too_little_room_is_told_before_anything_is_pushed(owl: Owl, *, filled: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    owl.prefix.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", owl.prefix], check=True, timeout=60)
    try:
        if filled:
            subprocess.run(
                ["dd", "if=/dev/zero", f"of={owl.prefix}/other", "bs=4k"], check=False, stderr=-3, timeout=60
            )
        result, _ = run(owl)
        left = sorted(path.name for path in owl.prefix.iterdir())
    finally:
        subprocess.run(["umount", owl.prefix], check=True, timeout=60)
    assert result.error is not None
    assert "MiB are needed; nothing was changed; free some and run again" in result.error
    assert left == (["lock", "other"] if filled else ["lock"])


def test_a_workstation_that_is_killed_at_any_time_leaves_a_sensor_that_the_next_run_finishes(owl: Owl) -> None:
    words = [sys.executable, "-m", "acoupi_fleet", "provision", str(owl.inventory)]
    for number, mark in enumerate(["due.json", "releases/*.tmp/lib", "releases/*/manifest.json"]):
        owl.set(f"program.recording.interval={number + 3}")
        before = set(owl.prefix.glob(mark))
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as child:

            def has_begun(mark: str = mark, before: set[Path] = before, child: subprocess.Popen[bytes] = child) -> bool:
                return bool(set(owl.prefix.glob(mark)) - before) or child.poll() is not None

            wait_until(has_begun, 240, f"{mark} to be there")
            child.kill()
            child.communicate()
        wait_until(owl.is_free, 300, "the sensor to end what it had begun, or to give it up")
    assert run(owl)[0].status in {"ok", "changed"}
    assert run(owl)[0].status == "ok"
    assert not list(owl.prefix.glob("*/*.tmp"))
    assert not (owl.prefix / "due.json").exists()


def test_ctrl_c_ends_at_once_with_what_is_known(owl: Owl) -> None:
    words = [sys.executable, "-m", "acoupi_fleet", "provision", str(owl.inventory)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        wait_until((owl.prefix / "due.json").exists, 240, "the change to begin")
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=240)[0].decode()
    assert child.returncode == 130, said
    assert "Traceback" not in said


def test_a_device_that_lies_about_what_it_did_is_found_out(owl: Owl) -> None:
    systemctl = owl.virtual.folder / "bin/systemctl"
    systemctl.write_text("#!/bin/sh\nexit 0\n")
    result, _ = run(owl, options=replace(PATIENT, health_seconds=1))
    assert (result.status, result.exit_code) == ("failed", 2)
    assert result.error is not None
    assert "acoupi.target is unknown" in result.error


def test_an_environment_in_the_home_of_the_sensors_user_is_found_and_a_second_run_changes_nothing(owl: Owl) -> None:
    (owl.virtual.home / "venv").symlink_to(sys.prefix)
    host, desired = owl.wants(runtime="~/venv")
    (result,) = provision([(host, desired)], options=PATIENT)
    assert (result.status, result.error) == ("changed", None)
    assert (owl.prefix / "current/env").readlink() == owl.virtual.home / "venv"
    assert provision([(host, desired)], options=PATIENT)[0].status == "ok"


def test_a_real_environment_is_made_from_wheels_without_an_index_and_then_reused(owl: Owl) -> None:
    host, desired = owl.wants(runtime=None)
    (result,) = provision([(host, desired)], options=PATIENT)
    assert (result.status, result.error) == ("changed", None)
    (environment,) = (path for path in (owl.prefix / "env").iterdir() if path.suffix != ".tmp")
    assert (owl.prefix / "current/env").readlink() == Path(f"../../env/{environment.name}")
    packages = next(environment.glob("lib/python*/site-packages"))
    assert {"celery", "numpy", "redis"} <= {path.name for path in packages.iterdir()}
    assert not {"pip", "fabric", "paramiko", "rich"} & {path.name for path in packages.iterdir()}
    assert list((packages / "celery/__pycache__").glob("*.pyc"))
    assert [path for path in (owl.prefix / "env").iterdir() if path.suffix == ".tmp"] == []
    assert provision([(host, desired)], options=PATIENT)[0].status == "ok"
    (packages / "celery/app/base.py").unlink()
    (result,) = provision([(host, desired)], options=PATIENT)
    assert result.changes == (f"make environment {environment.name}", "restart acoupi.target")
    assert (packages / "celery/app/base.py").exists()


def test_hosts_do_not_hold_each_other_up_and_each_has_its_result(owl: Owl) -> None:
    host, desired = owl.wants()
    off = replace(host, name="off", connection=replace(host.connection, port=free_port()))
    moved = replace(host, name="moved", connection=replace(host.connection, host_key="SHA256:" + "A" * 43))
    results = provision([(off, desired), (host, desired), (moved, desired)], options=PATIENT)
    assert [(result.host, result.status, result.exit_code) for result in results] == [
        ("off", "unreachable", 4),
        ("owl", "changed", 0),
        ("moved", "failed", 5),
    ]
    assert exit_code(results) == 5
