"""rescue: what only root may do for a dead microphone: reset its USB port, reboot. Run by a unit of its own, as root.

Whoever asks writes one verb into `run/rescue`; nothing else of it is looked at, and a verb that the unit does not allow
is refused. Standard library only, and nothing of this package: root runs no more than this file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

USB_RESET, REBOOT = "usb-reset", "reboot"
VERBS = (USB_RESET, REBOOT)
REQUEST = "rescue"
"""The name of the request's file in ACOUPI_HOME/run."""

_AUDIO_CLASS = "01"
"""bInterfaceClass of USB audio (USB.org, Defined Class Codes)."""
_UNPLUGGED_SECONDS = 2.0
_LEAST_UPTIME = 3600.0
"""Seconds that the device must have been up before it is rebooted: a microphone that is broken for good costs no more
than one reboot an hour, whatever the clock says."""


def main(argv: list[str], *, sys_root: Path = Path("/sys"), proc: Path = Path("/proc")) -> int:
    """Carry out the request that is waiting, if it is allowed.

    Args:
        argv: The request's file, then the allowed verbs.
        sys_root: Where sysfs is.
        proc: Where procfs is.

    Returns:
        0 if something was done, or nothing was asked; 1 if the request was refused or could not be carried out.
    """
    request, allowed = Path(argv[0]), argv[1:]
    verb = take(request)
    if verb is None:
        return 0
    if verb not in VERBS or verb not in allowed:
        return _say(f"{request}: asks for something that is not allowed here; set program.recovery", 1)
    if verb == USB_RESET:
        reset = [device.name for device in audio_devices(sys_root) if _reset(device)]
        return _say(f"reset the USB ports of: {', '.join(reset) or 'no audio device was found'}", 0 if reset else 1)
    up = float((proc / "uptime").read_text().split()[0])
    if up < _LEAST_UPTIME:
        return _say(f"no reboot: this device has been up for {up:.0f} s only, and would reboot for ever", 1)
    _say("reboot: the microphone stays dead", 0)
    return subprocess.run(["/usr/bin/systemctl", "reboot"], check=False).returncode


def take(request: Path) -> str | None:
    """Read a request and remove it; None where there is none. Never follows a link: its folder is not root's."""
    try:
        descriptor = os.open(request, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:  # a link, or something stranger
        request.unlink()
        return ""
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(64)
    request.unlink()
    return text.decode("ascii", "replace").strip()


def audio_devices(sys_root: Path) -> list[Path]:
    """The USB devices that have an audio interface, as folders of sysfs."""
    found = set()
    for interface in (sys_root / "bus/usb/devices").glob("*/bInterfaceClass"):
        if interface.read_text().strip() == _AUDIO_CLASS:
            # 1-1.4:1.0 is an interface of the device 1-1.4.
            device = interface.parent.parent / interface.parent.name.partition(":")[0]
            if (device / "authorized").exists():
                found.add(device)
    return sorted(found)


def _reset(device: Path) -> bool:
    try:
        (device / "authorized").write_text("0")
        time.sleep(_UNPLUGGED_SECONDS)
        (device / "authorized").write_text("1")
    except OSError as error:
        _say(f"{device.name}: {error.strerror}", 1)
        return False
    return True


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"rescue: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
