"""story: what a demonstration shows, in order. Runs the public command line, and shows each command before it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acoupi_fleet.demo import sensor, sound
from acoupi_fleet.demo.sensor import VirtualSensor
from acoupi_fleet.errors import EXIT_OK, FleetError, UnreachableError, UsageError

NAMES = ("owl1", "owl2", "bat1", "bat2", "far1")
OFF = "far1"
SILENT = "bat2"
_PITCHES = {"owl1": 700.0, "owl2": 900.0, "bat1": 9_000.0}
_PATIENCE = 60.0

_INVENTORY = """\
# Five sensors on this machine. On a real one, host is its address, and device_name part of the microphone's name.

[owls]
owl1 port={owl1} program.microphone.device_name=file:{folder}/owl1/sound.wav
owl2 port={owl2}

[bats]
bat1 port={bat1}
bat2 port={bat2}  # its microphone is broken, and hears nothing

[far]
far1 port={far1}  # it is off

[all:vars]
host=127.0.0.1
user={user}
identity=login_key
systemd_scope=user
# An environment that is there already: on a real sensor, leave this out, and one is made for its own Python.
runtime={runtime}
program=default
program.timezone=UTC
program.recording.duration=1
program.recording.interval=2
program.recording.schedule_start=00:00
program.recording.schedule_end=00:00
deployment.name=demonstration
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a demonstration happens: one folder, that holds all of it."""

    folder: Path

    @property
    def inventory(self) -> Path:
        """The inventory of the virtual fleet."""
        return self.folder / "sensors.ini"

    @property
    def sensors(self) -> tuple[Path, ...]:
        """The folders of its sensors."""
        return tuple(self.folder / name for name in NAMES)


def default_folder() -> Path:
    """The one folder of this user's demonstration. Short: a unix socket's path below it has about 100 bytes."""
    return Path(tempfile.gettempdir()) / f"acoupi-demo-{os.getuid()}"


def run(folder: Path, *, keep: bool, say: Callable[[str], None]) -> int:
    """Show everything once.

    Args:
        folder: Where it happens; made, and in the end removed again.
        keep: Leave the sensors running.
        say: Called with each line to be shown.

    Returns:
        The exit code: 0 when everything happened that should.

    Raises:
        UsageError: If something that it needs is missing.
    """
    _look_for_what_is_needed()
    stop(folder)
    stage = Stage(_own_folder(folder))
    done = False
    try:
        started = time.monotonic()
        _build(stage, say)
        _show(stage, say)
        say(f"\nAll of this took {time.monotonic() - started:.0f} s, and used only the public command line.")
        _what_next(stage, say, keep=keep)
        done = True
    finally:
        if not (keep and done):
            stop(folder)
    return EXIT_OK


def stop(folder: Path) -> bool:
    """End a demonstration and remove its folder; whether there was one."""
    if not folder.is_dir() or not _is_ours(folder):
        return False
    for each in Stage(folder).sensors:
        sensor.stop(each)
    shutil.rmtree(folder)
    return True


def _look_for_what_is_needed() -> None:
    missing = []
    for module in ("celery", "redis", "numpy"):
        try:
            __import__(module)
        except ImportError:
            missing.append(module)
    if missing:
        raise UsageError(
            f"demo: the sensors' own program needs {', '.join(missing)} here; pip install 'acoupi-fleet[runtime]'"
        )
    if shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin") is None:
        raise UsageError("demo: there is no redis-server here; sudo apt-get install redis-server")


def _own_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise UsageError(
            f"demo: {folder} is not a demonstration of yours; remove it, or name another --folder"
        ) from None
    (folder / ".demo").touch(mode=0o600)
    return folder


def _is_ours(folder: Path) -> bool:
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and (folder / ".demo").exists()


def _build(stage: Stage, say: Callable[[str], None]) -> None:
    say("Four sensors start on this machine, and a fifth is off. Each has an SSH server, a home, a sound.")
    login_key = sensor.write_key(stage.folder / "login_key")
    sensors = [VirtualSensor(name, stage.folder / name, sensor.free_port()) for name in NAMES]
    for index, each in enumerate(sensors):
        each.make(login_key)
        if each.name in _PITCHES:
            sound.calls(each.folder / "sound.wav", _PITCHES[each.name], seed=index)
        else:
            sound.silence(each.folder / "sound.wav")
        if each.name != OFF:
            each.start()
    _write_inventory(stage, sensors)


def _write_inventory(stage: Stage, sensors: Sequence[VirtualSensor]) -> None:
    text = _INVENTORY.format(
        **{each.name: each.port for each in sensors},
        user=sensors[0].environment["USER"],
        runtime=shlex.quote(sys.prefix),
    )
    stage.inventory.write_text(text, encoding="utf-8")


def _show(stage: Stage, say: Callable[[str], None]) -> None:
    fleet = _Fleet(stage.folder, say)
    unreachable = UnreachableError.exit_code
    say("\n1. One command makes them record. far1 does not hold up the others.")
    fleet("provision", "sensors.ini", expect={unreachable})
    say("\n2. Again: nothing changes.")
    fleet("provision", "sensors.ini", expect={unreachable})
    say("\n3. All of them record; bat2 hears nothing, and says so.")
    fleet.wait(
        lambda seen: all(_recorded(seen[name]) for name in NAMES if name != OFF) and seen[SILENT]["state"] == "SILENT"
    )
    fleet("status", "sensors.ini", expect={unreachable})
    say("\n4. The recorder of owl2 is killed, and comes back by itself.")
    victim = fleet.wait(lambda seen: _pid(seen["owl2"]) is not None)["owl2"]
    before = _pid(victim)
    if before is not None:
        say(f"$ kill -9 {before}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(before, signal.SIGKILL)
    fleet.wait(lambda seen: _pid(seen["owl2"]) not in {None, before} and _recorded(seen["owl2"]))
    fleet("status", "sensors.ini", "--limit", "owls")
    say("\n5. A group is restarted.")
    fleet("restart", "sensors.ini", "--limit", "owls")
    say("\n6. Is everything as the inventory says?")
    fleet("check", "sensors.ini", "--limit", "owls:bats")


class _Fleet:
    """The public command line, as a person would type it in the stage's folder."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say

    def __call__(self, *words: str, expect: set[int] | None = None) -> None:
        self._say(f"$ acoupi-fleet {shlex.join(words)}")
        done = subprocess.run([*_command(), *words], cwd=self._folder, check=False)
        if done.returncode not in (expect or {EXIT_OK}):
            raise FleetError(
                f"demo: acoupi-fleet {words[0]} ended with {done.returncode}; see {self._folder} with --keep"
            )

    def wait(self, until: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Ask for the status, without showing it, until it is as wanted."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            words = [*_command(), "status", "sensors.ini", "--json"]
            asked = subprocess.run(words, cwd=self._folder, check=False, capture_output=True, text=True)
            seen = {each["host"]: each for each in json.loads(asked.stdout or "[]")}
            with contextlib.suppress(KeyError):
                if until(seen):
                    return seen
            if time.monotonic() > deadline:
                raise FleetError(f"demo: the sensors did not get that far in {_PATIENCE:.0f} s; look with --keep")
            time.sleep(0.5)


def _command() -> list[str]:
    return [sys.executable, "-m", "acoupi_fleet"]


def _recorded(status: Mapping[str, Any]) -> bool:
    return bool(status.get("last_recording"))


def _pid(status: Mapping[str, Any]) -> int | None:
    return (status.get("recorder") or {}).get("pid")


def _what_next(stage: Stage, say: Callable[[str], None], *, keep: bool) -> None:
    if keep:
        recordings = stage.folder / "owl1/home/storages/recordings"
        say(f"\nThe sensors keep running. Recordings: {recordings}\n$ cd {stage.folder}")
        say("$ acoupi-fleet status sensors.ini\n$ acoupi-fleet demo --stop      # ends them")
        return
    say("\nNow yours. What would a Raspberry Pi of yours need? Nothing is written there by:")
    say("$ acoupi-fleet doctor pi@raspberrypi.local\n$ acoupi-fleet init              # asks, and writes sensors.ini")
    say("$ acoupi-fleet provision sensors.ini")
