"""init: a first inventory, from a person's answers and a look at each sensor. Writes one new file; asks devices."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from acoupi_fleet.configuration import configure_all
from acoupi_fleet.doctor import examine
from acoupi_fleet.errors import FleetError, HostKeyError, UsageError
from acoupi_fleet.inventory import Host, load_inventory
from acoupi_fleet.inventory.hostnames import NameProblemError, expand
from acoupi_fleet.remote import HostKeys, converse

KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
NONE = "-"
"""The answer that leaves a value out, where the question offers it."""

HEADER = """\
# The sensors of this fleet, a line each. Written by acoupi-fleet init; from now on it is yours.
# Settings of one sensor stand on its line; those of all below [sensors:vars], such as program.recording.duration=10
"""


class Asker(Protocol):
    """Whoever answers: a person at a terminal, or a file of answers."""

    def ask(self, question: str, default: str = "") -> str:
        """One answer in one line; an empty one is the default. Raises UsageError when there are no more answers."""

    def tell(self, text: str) -> None:
        """Something to know before the next question."""


@dataclass(frozen=True, slots=True)
class Door:
    """What a sensor shows before anything is trusted: its host key, and the fingerprint that a person compares."""

    host_key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at a sensor gave that an inventory needs."""

    microphones: tuple[str, ...]
    zone: str
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Sensor:
    """One host line in the making."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """The line, its values quoted as the inventory's reader needs them."""
        return " ".join([self.name, *(f"{key}={shlex.quote(value)}" for key, value in self.settings.items())])


class Devices(Protocol):
    """The two looks at a sensor; each raises a HostError with one clear line."""

    def door(self, host: Host) -> Door:
        """Its host key, before anything is sent to it."""

    def look(self, host: Host) -> Found:
        """What it is, once its key is trusted."""


class RealDevices:
    """Sensors, asked over SSH. Keys that are not trusted yet are kept in a folder of the moment, not in known_hosts."""

    def door(self, host: Host) -> Door:
        """Shake hands and stop there: nothing is sent."""
        with tempfile.TemporaryDirectory() as folder:
            shown = Path(folder) / "known_hosts"
            with suppress(_SeenError), converse(host, "user", keys=HostKeys([shown]), accepted=_stop):
                pass
            _, kind, key = shown.read_text(encoding="utf-8").split()[:3]
        digest = base64.b64encode(hashlib.sha256(base64.b64decode(key)).digest()).decode().rstrip("=")
        return Door(f"{kind} {key}", f"SHA256:{digest} ({kind})")

    def look(self, host: Host) -> Found:
        """Its microphones by the names that PortAudio shows, and what a person should know before provisioning."""
        examination = examine(host, HostKeys([Path(os.devnull)]))
        answer = examination.answer
        names = [*(card["name"] for card in answer["cards"]), *answer["pcms"]]
        notes = [f"{each.subject}: {each.text}" for each in examination.findings if each.level != "well"]
        return Found(tuple(names), answer["clock"]["zone"], tuple(notes))


class _SeenError(HostKeyError):
    """The handshake has gone as far as it should."""


def _stop(line: str) -> None:
    raise _SeenError(line)


def interview(asker: Asker, devices: Devices, *, zone: str) -> str:
    """The text of an inventory, from questions until no further sensor is wanted.

    Args:
        asker: Who answers.
        devices: How sensors are looked at.
        zone: The time zone that is offered.

    Raises:
        UsageError: If the answers end before the last question.
    """
    sensors: list[Sensor] = []
    while True:
        sensor = _sensor(asker, devices, sensors)
        problem = _complaint(_text([*sensors, sensor], "UTC"))  # values that are right alone may be wrong together
        if problem is not None:
            asker.tell(f"{problem}. The line would be: {sensor.line()}")
            asker.tell("It is not taken; the questions about this sensor come again.")
            continue
        sensors.append(sensor)
        if not _yes(asker, "Another sensor?"):
            break
    zone = _checked(asker, "Time zone of the sensors", zone, lambda answer: _complaint(_text(sensors, answer)))
    return _text(sensors, zone)


def _sensor(asker: Asker, devices: Devices, sensors: list[Sensor]) -> Sensor:
    taken = {each.name for each in sensors}

    def free_name(answer: str) -> str | None:
        if answer in taken:
            return f"{answer} is taken already"
        try:
            names, port = expand(answer)
        except NameProblemError as error:
            return str(error)
        return None if port is None and names == [answer] else f"{answer!r} is more than a name"

    sensor = Sensor(_checked(asker, "Name of the sensor", f"sensor{len(taken) + 1}", free_name))
    _setting(asker, sensor, "host", "Its address (a name or an IP)", f"{sensor.name}.local")
    _setting(asker, sensor, "port", f"Its SSH port ({NONE} for the usual one)", NONE)
    before = sensors[-1].settings if sensors else {"identity": _default_key()}
    _setting(asker, sensor, "user", "User to log in as", before.get("user", "pi"))
    key = before.get("identity", NONE)
    _setting(asker, sensor, "identity", f"Private key file ({NONE} for an agent's, or ssh's own)", key, key_file)
    if "identity" in sensor.settings:
        sensor.settings["identity"] = _from_anywhere(sensor.settings["identity"])
    _visit(asker, devices, sensor)
    _setting(asker, sensor, "deployment.name", "Name of the place", sensor.name)
    _setting(asker, sensor, "deployment.latitude", f"Latitude in degrees north ({NONE} if not known)", NONE)
    if "deployment.latitude" in sensor.settings:
        _setting(asker, sensor, "deployment.longitude", f"Longitude in degrees east ({NONE} if not known)", NONE)
    return sensor


def _visit(asker: Asker, devices: Devices, sensor: Sensor) -> None:
    """Trust the host key, if the person does, and choose among the microphones that are there."""
    found = Found((), "")
    try:
        door = devices.door(_host(sensor))
        asker.tell(f"{sensor.name} shows the host key {door.fingerprint}")
        asker.tell("Compare it with: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, typed at the sensor itself.")
        if _yes(asker, "Is it the sensor's own key?"):
            sensor.settings["host_key"] = door.host_key
            found = devices.look(_host(sensor))
        else:
            asker.tell("Then it is not trusted, and the sensor is not asked for its microphones.")
    except FleetError as error:
        asker.tell(f"{error}")
        asker.tell("The line is written all the same; acoupi-fleet doctor tells when the sensor answers.")
    for note in found.notes:
        asker.tell(note)
    if len(found.microphones) > 1:
        for number, name in enumerate(found.microphones, 1):
            asker.tell(f"  {number}  {name}")
        numbers = {str(number): name for number, name in enumerate(found.microphones, 1)}
        answer = _checked(
            asker,
            "Which microphone",
            "1",
            lambda answer: None if answer in numbers else f"{answer!r} is none of 1 to {len(numbers)}",
        )
        sensor.settings["program.microphone.device_name"] = numbers[answer]
    elif found.microphones:
        asker.tell(f"Its microphone: {found.microphones[0]}")
        sensor.settings["program.microphone.device_name"] = found.microphones[0]
    else:
        question = f"Part of the microphone's name ({NONE} for the only one)"
        _setting(asker, sensor, "program.microphone.device_name", question, NONE)


def key_file(answer: str) -> str | None:
    """Why this file cannot be a private key, or None."""
    try:
        first = Path(answer).expanduser().read_text("ascii", errors="replace")[:100]
    except OSError as error:
        return f"{answer}: {(error.strerror or str(error)).lower()}"
    except RuntimeError:
        return f"{answer}: there is no such user"
    if answer.endswith(".pub") or "PRIVATE KEY" not in first:
        return f"{answer} is no private key; name the file beside it without .pub"
    return None


def _setting(
    asker: Asker,
    sensor: Sensor,
    key: str,
    question: str,
    default: str,
    also: Callable[[str], str | None] = lambda _: None,
) -> None:
    """Ask for one value until the inventory's own reader takes it; where the question offers it, `-` leaves it out."""

    def complaint(answer: str) -> str | None:
        if answer == NONE:
            return None if f"({NONE} " in question else f"{NONE} is no answer here; write a value"
        trial = Sensor(sensor.name, {"deployment.name": "x", key: answer})
        return also(answer) or _complaint(_text([trial], "UTC"))

    answer = _checked(asker, question, default, complaint)
    if answer != NONE:
        sensor.settings[key] = answer


def _checked(asker: Asker, question: str, default: str, complaint: Callable[[str], str | None]) -> str:
    while True:
        answer = asker.ask(question, default).strip() or default
        problem = complaint(answer)
        if problem is None:
            return answer
        asker.tell(f"{problem}.")


def _yes(asker: Asker, question: str) -> bool:
    return asker.ask(f"{question} [y/N]").strip().lower() in {"y", "yes"}


def _default_key() -> str:
    return next((f"~/.ssh/{name}" for name in KEYS if (Path.home() / ".ssh" / name).is_file()), NONE)


def _from_anywhere(key: str) -> str:
    """The same file for whoever reads the inventory, in whichever folder it is written: `~`, or a whole path."""
    return key if key.startswith("~") else str(Path(key).absolute())


def _text(sensors: list[Sensor], zone: str) -> str:
    """The inventory; without sensors, one that is only good for a check of its other lines."""
    lines = [sensor.line() for sensor in sensors] or ["sensor"]
    shared: Mapping[str, str] = {"program": "default", "program.timezone": zone, "celery.timezone": zone}
    variables = [f"{key}={value}" for key, value in shared.items()]
    return "\n".join([HEADER, "[sensors]", *lines, "", "[sensors:vars]", *variables, ""])


def _complaint(text: str) -> str | None:
    """What the inventory's own reader says of a text, without the line number that nobody has seen yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sensors.ini"
        path.write_text(text, encoding="utf-8")
        try:
            configure_all(load_inventory(path).hosts)
        except FleetError as error:
            return str(error).splitlines()[0].partition(": ")[2].rstrip(".") or str(error)
    return None


def _host(sensor: Sensor) -> Host:
    """The host as the inventory's reader makes it of the line so far."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sensors.ini"
        path.write_text(_text([sensor], "UTC"), encoding="utf-8")
        return load_inventory(path).hosts[0]


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet.

    Raises:
        UsageError: If it exists, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise exists(path) from None
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}; name a file that can be written") from None
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(handle)


def exists(path: Path) -> UsageError:
    """The refusal to overwrite, which is also said before the first question."""
    return UsageError(f"{path}: it exists and is not overwritten; name another with --output")
