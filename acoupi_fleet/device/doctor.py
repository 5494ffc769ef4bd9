"""doctor: what a device is, before anything of ours is on it. Writes nothing, and opens no sound device."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import facts, files, system
from acoupi_fleet.device.layout import Layout

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call

ASOUND = Path("/proc/asound")
RATES = re.compile(r"Rates: (.*)")
# Plugins that ALSA brings itself: nobody's microphone.
PLUGINS = re.compile(
    r"null|lavrate|samplerate|speexrate|jack|oss|pulse|pipewire|speex|upmix|vdownmix|default|usbstream:.*|sysdefault.*|(front|dmix|dsnoop|"
    r"hw|plughw|surround\d\d|iec958|hdmi|usbstream):.*"
)
DISKS = ("/", "/var/lib", "/home")


def doctor(call: Call) -> dict[str, Any]:
    """The verb: `scope` and `packages` in; see acoupi_fleet.doctor for what is made of the answer."""
    layout = Layout(call.args["scope"])
    call.say("clock", clock=time.time())  # at once, so that only the link's delay can falsify it
    return {
        "machine": facts.machine(),
        "os": os_release(),
        "model": facts.text("/proc/device-tree/model").rstrip("\0"),
        "kernel": platform.release(),
        "login": layout.login(),
        "root": os.getuid() == 0,
        "sudo": sudo(),
        "systemd": facts.has_systemd(layout),
        "lingers": facts.lingers(Layout("user")),
        "cards": cards(),
        "pcms": plugin_pcms(),
        "clock": clock(),
        "disks": disks([*DISKS, str(layout.home.parent)]),
        "memory": memory(),
        "heat": heat(),
        "missing_packages": facts.missing(call.args["packages"]),
        "apt": system.found("apt-get") is not None,
        "release": files.points_to(layout.current),
        "foreign_units": facts.unit_files(layout, call.args["units"])["foreign"],
    }


def sudo() -> str:
    """Whether this user may become root: `root`, `free`, `password`, or `missing`."""
    if os.getuid() == 0:
        return "root"
    if system.found("sudo") is None:
        return "missing"
    return "free" if system.run(["sudo", "-n", "true"], dict(os.environ, LC_ALL="C"), 20).code == 0 else "password"


def os_release() -> str:
    """The distribution's own name for itself."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', facts.text("/etc/os-release"), re.MULTILINE)
    return found.group(1) if found else platform.system()


def cards(asound: Path = ASOUND) -> list[dict[str, Any]]:
    """The sound cards that can record, by name, from what the kernel shows; a card in use tells what it is used at."""
    found = []
    for folder in sorted(asound.glob("card[0-9]*")):
        pcms = sorted(folder.glob("pcm*c"))
        if not pcms:
            continue
        stream = "".join(facts.text(str(path)) + "\n" for path in sorted(folder.glob("stream*")))
        capture = stream.partition("Capture:")[2]
        rates = sorted({rate.strip() for line in RATES.findall(capture) for rate in line.split(",")}, key=_number)
        use = [facts.text(str(path)) for pcm in pcms for path in sorted(pcm.glob("sub*/hw_params"))]
        busy = next((text for text in use if text not in ("", "closed")), "")
        rate_now = re.search(r"^rate: (\d+)", busy, re.MULTILINE)
        found.append(
            {
                "id": facts.text(str(folder / "id")),
                "name": card_name(asound, folder.name[4:]),
                "rates": [rate for rate in rates if rate],
                "channels": sorted({int(number) for number in re.findall(r"Channels: (\d+)", capture)}),
                "in_use": int(rate_now.group(1)) if rate_now else bool(busy),
            }
        )
    return found


def card_name(asound: Path, number: str) -> str:
    """The long name, such as `UltraMic 250K 16 bit r4`; PortAudio's names contain it."""
    found = re.search(r"^\s*" + number + r" \[.*?\]: .*? - (.*)$", facts.text(str(asound / "cards")), re.MULTILINE)
    return found.group(1).strip() if found else "card " + number


def _number(rate: str) -> tuple[int, str]:
    return int(rate) if rate.isdigit() else 0, rate


def plugin_pcms() -> list[str]:
    """Sound devices that only ALSA's configuration knows (/etc/asound.conf): arecord lists them without opening one."""
    if system.found("arecord") is None:
        return []
    # Without a home: PulseAudio's plugin would make a folder there.
    said = system.run(["arecord", "-L"], dict(os.environ, LC_ALL="C", HOME="/nonexistent"), 20)
    names = [line.strip() for line in said.out.splitlines() if line and not line[0].isspace()]
    return [name for name in names if not PLUGINS.fullmatch(name)]


def clock() -> dict[str, Any]:
    """The time zone, whether somebody sets the clock, and whether a battery keeps it."""
    said = (
        system.run(["timedatectl", "show"], dict(os.environ, LC_ALL="C"), 20) if system.found("timedatectl") else None
    )
    shown = dict(line.split("=", 1) for line in said.out.splitlines() if "=" in line) if said else {}
    return {
        "zone": shown.get("Timezone") or facts.text("/etc/timezone"),
        "synchronised": {"yes": True, "no": False}.get(shown.get("NTPSynchronized", "")),
        "rtc": Path("/dev/rtc0").exists() or Path("/dev/rtc").exists(),
    }


def disks(paths: list[str]) -> list[dict[str, Any]]:
    """The file systems that ours would use: room, kind, and whether they can be written at all."""
    mounts = [line.split(" ") for line in facts.text("/proc/mounts").splitlines()]
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        below = [mount for mount in mounts if (path + "/").startswith(mount[1].rstrip("/") + "/")]
        if not below or not Path(path).is_dir():
            continue
        mount = max(reversed(below), key=lambda mount: len(mount[1]))
        about = os.statvfs(path)
        found[mount[1]] = {
            "mount": mount[1],
            "kind": mount[2],
            "read_only": "ro" in mount[3].split(","),
            "total": about.f_blocks * about.f_frsize,
            "free": about.f_bavail * about.f_frsize,
        }
    return list(found.values())


def memory() -> dict[str, Any]:
    """Memory in bytes, and whether a unit's MemoryMax has an effect: Raspberry Pi OS switches that controller off."""
    numbers = {
        key: int(value) * 1024
        for key, value in re.findall(r"^(\w+):\s+(\d+) kB", facts.text("/proc/meminfo"), re.MULTILINE)
    }
    unified = facts.text("/sys/fs/cgroup/cgroup.controllers").split()
    legacy = re.search(r"^memory\s+\d+\s+\d+\s+1$", facts.text("/proc/cgroups"), re.MULTILINE)
    return {
        "total": numbers.get("MemTotal", 0),
        "available": numbers.get("MemAvailable", 0),
        "swap": numbers.get("SwapTotal", 0),
        "cgroup": "memory" in unified or legacy is not None,
    }


def heat() -> dict[str, Any]:
    """The warmest zone in degrees Celsius, and the Pi firmware's word on power and throttling, where there is any."""
    zones = [facts.text(str(path)) for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(zone) / 1000 for zone in zones if re.fullmatch(r"-?\d+", zone)]
    said = system.run(["vcgencmd", "get_throttled"], dict(os.environ), 10) if system.found("vcgencmd") else None
    throttled = re.search(r"throttled=(0x[0-9a-fA-F]+)", said.out) if said else None
    return {
        "degrees": max(degrees) if degrees else None,
        "throttled": int(throttled.group(1), 16) if throttled else None,
    }
