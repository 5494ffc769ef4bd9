"""doctor: what a device is, judged before anything is written to it. Reads devices through `remote`, writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from acoupi_fleet.errors import FleetError, HostError, UsageError, understood
from acoupi_fleet.inventory import Host, load_inventory
from acoupi_fleet.remote import HostKeys, converse
from acoupi_fleet.render import PACKAGES
from acoupi_fleet.status import Clock, scope_of

UNITS = ("acoupi.target", "acoupi-redis.service", "acoupi-worker@.service", "acoupi-worker@recording.service")
Level = Literal["well", "warning", "problem"]

OLDEST_PYTHON = (3, 11)
MACHINES = ("aarch64", "x86_64")
ROOM_NEEDED = 400_000_000
"""Bytes: the environment and two releases, with some room to record."""
MEMORY_NEEDED = 400_000_000
"""Bytes; a Pi Zero 2 W, with 512 MB on its box, shows about 430."""
CLOCK_TOLERANCE = 60.0
HOT = 75.0
"""Degrees Celsius; at 80 a Raspberry Pi begins to slow down."""

# Bits of `vcgencmd get_throttled`: now, and since boot 16 bits higher.
_THROTTLED = {0: "too little voltage", 1: "a limited clock", 2: "throttling", 3: "the soft temperature limit"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a doctor's report: what was looked at, and what of it is for a person to know."""

    level: Level
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found on one host.

    Attributes:
        host: Its name.
        findings: The lines, in the order of a person's questions.
        answer: What the device said, for programs; empty when it said nothing.
    """

    host: str
    findings: tuple[Finding, ...]
    answer: Mapping[str, Any]

    @property
    def level(self) -> Level:
        """The worst of its findings."""
        levels = {finding.level for finding in self.findings}
        return "problem" if "problem" in levels else "warning" if "warning" in levels else "well"


def examine(host: Host, keys: HostKeys, accepted: Callable[[str], None] | None = None) -> Examination:
    """Look at one device, with no right beyond a login.

    Raises:
        HostError: If it could not be asked; see `blind`.
    """
    clock, scope = Clock(), scope_of(host)
    with converse(host, "user", keys=keys, accepted=accepted) as session:
        question = {"scope": scope, "packages": list(PACKAGES), "units": list(UNITS)}
        answer = session.ask("doctor", question, observe=clock.hear)
    return Examination(host.name, judge(answer, scope=scope, clock_offset=clock.offset or 0.0), answer)


def blind(host: Host, error: HostError) -> Examination:
    """What is known of a device that could not be asked."""
    return Examination(host.name, (Finding("problem", "connection", str(error)),), {})


def single(word: str, identity: Path | None) -> Host:
    """The host that `user@address:port` means.

    Raises:
        UsageError: If it means none.
    """
    user, at, address = word.rpartition("@")
    line = f"{address} user={user}" if at else address
    if identity is not None:
        line += f" identity='{identity.expanduser().absolute()}'"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "host.ini"
        path.write_text(f"{line}\n", encoding="utf-8")
        try:
            hosts = load_inventory(path).hosts
        except FleetError as error:
            raise UsageError(f"{word}: {str(error).partition(': ')[2]}") from None
    if len(hosts) != 1:
        raise UsageError(f"{word}: it means {len(hosts)} hosts; name one, or an inventory")
    return hosts[0]


@understood()
def judge(answer: Mapping[str, Any], *, scope: str, clock_offset: float) -> tuple[Finding, ...]:
    """What a device's answer means for somebody who wants to record with it.

    Raises:
        HostError: It is no such answer.
    """
    return (
        *_system(answer, scope),
        *_sudo(answer, scope),
        *_sound(answer),
        *_clock(answer["clock"], clock_offset),
        *_room(answer["disks"]),
        *_memory(answer["memory"]),
        *_heat(answer["heat"]),
        *_packages(answer, scope),
        *_ours(answer),
    )


def _system(answer: Mapping[str, Any], scope: str) -> Iterator[Finding]:
    machine = answer["machine"]
    yield Finding(
        "well", "system", ", ".join(filter(None, [answer["os"], answer["model"], f"Linux {answer['kernel']}"]))
    )
    if machine["bits"] != 64:  # noqa: PLR2004 - bits
        yield Finding(
            "problem",
            "machine",
            f"{machine['machine']}, but its programs are 32-bit, and there is no numpy for that; "
            "install the 64-bit image of its system",
        )
    elif machine["machine"] not in MACHINES:
        yield Finding("problem", "machine", f"{machine['machine']} has no wheels; use one of {', '.join(MACHINES)}")
    else:
        yield Finding("well", "machine", f"{machine['machine']}, 64-bit")
    version = machine["markers"]["python_full_version"]
    if tuple(int(part) for part in machine["markers"]["python_version"].split(".")) < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        yield Finding("problem", "Python", f"{version} is too old; use a system with {wanted}, such as Debian 12")
    else:
        yield Finding("well", "Python", version)
    if not answer["systemd"]:
        yield Finding("problem", "systemd", "it does not run here, and it keeps the recorder alive; use Debian 12")
    if scope == "user" and not answer["lingers"]:
        yield Finding(
            "warning",
            "linger",
            f"its services end with its login; as root there: loginctl enable-linger {answer['login']}",
        )


def _sudo(answer: Mapping[str, Any], scope: str) -> Iterator[Finding]:
    login = answer["login"]
    if scope == "user":
        yield Finding("well", "user", f"{login} (user scope: no sudo is needed)")
        return
    match answer["sudo"]:
        case "root" | "free":
            yield Finding("well", "sudo", f"{login} may become root")
        case "password":
            yield Finding("warning", "sudo", f"{login} must type a password; write sudo_password=... or allow NOPASSWD")
        case _:
            yield Finding("problem", "sudo", "it is not installed; log in as root once and install it")


def _sound(answer: Mapping[str, Any]) -> Iterator[Finding]:
    for card in answer["cards"]:
        facts = [f"{', '.join(card['rates'])} Hz" if card["rates"] else "", _channels(card["channels"])]
        if card["in_use"]:
            facts.append(f"in use at {card['in_use']} Hz" if card["in_use"] is not True else "in use")
        yield Finding("well", "sound card", f"{card['name']}: {', '.join(filter(None, facts)) or 'it names no rates'}")
    for name in answer["pcms"]:
        yield Finding("well", "sound device", f"{name} (from ALSA's configuration)")
    if not answer["cards"] and not answer["pcms"]:
        yield Finding(
            "warning", "sound card", "none can record; plug a microphone in, it is used as soon as it is there"
        )


def _channels(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers)) + (" channel" if numbers == [1] else " channels") if numbers else ""


def _clock(clock: Mapping[str, Any], offset: float) -> Iterator[Finding]:
    zone = clock["zone"] or "no time zone"
    if abs(offset) > CLOCK_TOLERANCE:
        ahead = "ahead of" if offset > 0 else "behind"
        yield Finding(
            "warning", "clock", f"{abs(offset):.0f} s {ahead} this computer's ({zone}); let it reach a time server"
        )
    else:
        yield Finding("well", "clock", f"agrees with this computer's ({zone})")
    if clock["synchronised"] is False:
        kept = "" if clock["rtc"] else ", and no battery keeps it while the power is off"
        yield Finding("warning", "time server", f"nobody sets this clock{kept}; recordings may get wrong times")
    elif clock["synchronised"]:
        yield Finding("well", "time server", "the clock is synchronised")


def _room(disks: list[Mapping[str, Any]]) -> Iterator[Finding]:
    for disk in disks:
        text = f"{size(disk['free'])} free of {size(disk['total'])} at {disk['mount']} ({disk['kind']})"
        if disk["read_only"]:
            yield Finding("problem", "disk", f"{disk['mount']} can only be read; look for errors of the card in dmesg")
        elif disk["free"] < ROOM_NEEDED:
            yield Finding("problem", "disk", f"{text}; make at least {size(ROOM_NEEDED)} free")
        else:
            yield Finding("well", "disk", text)


def _memory(memory: Mapping[str, Any]) -> Iterator[Finding]:
    text = f"{size(memory['available'])} available of {size(memory['total'])}"
    few = 0 < memory["total"] < MEMORY_NEEDED
    yield Finding(
        "warning" if few else "well", "memory", text + ("; write isolation=shared to use less" if few else "")
    )
    if not memory["cgroup"]:
        yield Finding(
            "warning",
            "memory limit",
            "the kernel's memory controller is off, so that a model may take all memory; "
            "add cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot",
        )


def _heat(heat: Mapping[str, Any]) -> Iterator[Finding]:
    if heat["degrees"] is not None:
        hot = heat["degrees"] >= HOT
        yield Finding(
            "warning" if hot else "well",
            "heat",
            f"{heat['degrees']:.0f} °C" + ("; give it shade or air" if hot else ""),
        )
    bits = heat["throttled"]
    if bits:
        words = [word for bit, word in _THROTTLED.items() if bits >> bit & 1 or bits >> bit + 16 & 1]
        yield Finding("warning", "power", f"the Pi saw {' and '.join(words)} since it was started; use a better supply")


def _packages(answer: Mapping[str, Any], scope: str) -> Iterator[Finding]:
    missing = " ".join(answer["missing_packages"])
    if not missing:
        yield Finding("well", "packages", "all that is needed is there")
    elif not answer["apt"] or scope == "user":
        yield Finding("problem", "packages", f"missing; as root there: apt install {missing}")
    else:
        yield Finding(
            "well", "packages", f"provision will install {missing}; without internet there: apt_via=workstation"
        )


def _ours(answer: Mapping[str, Any]) -> Iterator[Finding]:
    for unit, path in sorted(answer["foreign_units"].items()):
        yield Finding("problem", "unit", f"{unit} belongs to somebody else ({path}); move that file away first")
    if answer["release"]:
        yield Finding("well", "acoupi", f"provisioned, release {answer['release'].rpartition('/')[2]}")


def size(count: float) -> str:
    """Bytes as a person reads them, in powers of ten as on the box of a card."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}" if unit == "GB" else f"{count / factor:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"
