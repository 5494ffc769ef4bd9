"""stage: where a demonstration happens: one folder with five virtual sensors and their inventory. Touches both."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from acoupi_fleet.demo import sound
from acoupi_fleet.demo.sensor import PortTakenError, VirtualSensor, make_key, switch_off
from acoupi_fleet.device import facts
from acoupi_fleet.errors import UsageError
from acoupi_fleet.render import PACKAGES

CALLING = {"owl1": 700.0, "owl2": 900.0, "bat1": 9_000.0}
"""Hz of what a sensor hears."""
SILENT, OFF = "bat2", "far1"
RUNNING = (*CALLING, SILENT)
ALL = (*RUNNING, OFF)

INVENTORY = "sensors.ini"
_MARK = ".acoupi-demo"
_FOLDER = re.compile(r"/[\w/.+-]{1,54}", re.ASCII)
"""Unix sockets are in it, and their paths have 107 bytes; it stands in configuration files too."""
_FIRST_PORT = 2201

_TEXT = """\
[owls]
owl1 port={owl1.port} host_key={owl1.host_key}
owl2 port={owl2.port} host_key={owl2.host_key}

[bats]
bat1 port={bat1.port} host_key={bat1.host_key}
bat2 port={bat2.port} host_key={bat2.host_key}

[far]
far1 port={far1.port} host_key={far1.host_key}

[all:vars]
host = 127.0.0.1
user = {user}
identity = login_key
# Services of the user who logs in, and a Python that is there: without root.
systemd_scope = user
runtime = {runtime}
program = default
# A file instead of a microphone; 1 second of every 2, all day.
program.microphone.device_name = file:~/sound.wav
program.recording.duration = 1
program.recording.interval = 2
program.recording.schedule_start = 00:00
program.recording.schedule_end = 00:00
"""


def default_folder() -> Path:
    """The one folder of this user's demonstration."""
    return Path(tempfile.gettempdir()) / f"acoupi-demo-{os.getuid()}"


def look_for_what_is_needed() -> None:
    """Refuse to begin where the sensors could not run.

    Raises:
        UsageError: With what to install.
    """
    absent = []
    for module in ("celery", "redis", "numpy", "sounddevice"):
        try:
            __import__(module)
        except ImportError:
            absent.append(module)
        except OSError:  # sounddevice without PortAudio: said below
            continue
    if absent:
        raise UsageError(
            f"demo: what runs on sensors needs {', '.join(absent)} here too; pip install 'acoupi-fleet[runtime]'"
        )
    if packages := facts.missing(list(PACKAGES)):
        raise UsageError(f"demo: this computer lacks what sensors need; sudo apt-get install {' '.join(packages)}")
    if not (Path(sys.prefix) / "bin/python").exists():
        raise UsageError("demo: it runs in a virtual environment only; python3 -m venv makes one")


@contextlib.contextmanager
def built(folder: Path) -> Iterator[None]:
    """Make the folder, switch its sensors on, write its inventory; the one that is off has its port kept free.

    Raises:
        UsageError: If the folder cannot be used.
    """
    if not _FOLDER.fullmatch(str(folder)):
        raise UsageError(f"demo: {folder}: sockets do not fit in there; name a --folder with a short, plain path")
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise UsageError(f"demo: {folder}: {error.strerror}; remove it, or name another --folder") from None
    (folder / _MARK).touch(mode=0o600)
    login_key = make_key(folder / "login_key")
    for number, name in enumerate(ALL):
        VirtualSensor(folder / name, 0).make(login_key)
        if name in CALLING:
            sound.calls(folder / name / "home/sound.wav", CALLING[name], seed=number)
        elif name == SILENT:
            sound.silence(folder / name / "home/sound.wav")
    # Bound and not listened on: who connects is refused, and nobody else takes it meanwhile.
    with _free_port(_FIRST_PORT + len(RUNNING)) as off, ThreadPoolExecutor() as pool:
        ports = range(_FIRST_PORT, _FIRST_PORT + len(RUNNING))
        sensors = dict(zip(RUNNING, pool.map(_switched_on, (folder / name for name in RUNNING), ports), strict=True))
        sensors[OFF] = VirtualSensor(folder / OFF, off.getsockname()[1])
        user = sensors[OFF].environment["USER"]
        text = _TEXT.format(**sensors, user=user, runtime=sys.prefix)
        (folder / INVENTORY).write_text(text, encoding="utf-8")
        yield


def removed(folder: Path) -> bool:
    """End a demonstration and remove its folder; whether there was one."""
    try:
        about = folder.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or not (folder / _MARK).exists():
        return False
    with ThreadPoolExecutor() as pool:
        list(pool.map(switch_off, (folder / name for name in ALL)))
    shutil.rmtree(folder)
    return True


def last_words(folder: Path) -> str:
    """What the sensors said last, for somebody who looks for a fault."""
    said = []
    for name in RUNNING:
        for log in ("sensor.log", "journal.log"):
            with contextlib.suppress(OSError):
                lines = (folder / name / log).read_text(encoding="utf-8", errors="replace").splitlines()
                said += [f"{name}: {line}" for line in lines if not line.startswith("Accepted publickey")][-6:]
    return "\n".join(said)


def _switched_on(folder: Path, port: int) -> VirtualSensor:
    for _ in range(10):
        with _free_port(port) as free:
            sensor = VirtualSensor(folder, free.getsockname()[1])
        try:
            sensor.switch_on()
        except PortTakenError:
            continue
        return sensor
    raise UsageError(f"demo: no free port near {port} on 127.0.0.1; try again")


def _free_port(wanted: int) -> socket.socket:
    """A socket bound to this port of loopback, or to any other if it is taken."""
    found = socket.socket()
    try:
        found.bind(("127.0.0.1", wanted))
    except OSError:
        found.bind(("127.0.0.1", 0))
    return found
