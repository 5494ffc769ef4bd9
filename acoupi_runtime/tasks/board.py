"""board: what the computer itself suffers from: heat, and a weak supply. Reads sysfs only.

Not `vcgencmd`: it needs a device of its own, which a hardened unit does not see. The kernel's drivers say the same.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HOT = 80.0
"""Degrees Celsius at which a Raspberry Pi begins to slow itself down (raspberrypi.com, frequency management)."""
_SYS = Path("/sys")
_VOLTAGE_DRIVER = "rpi_volt"
"""The kernel's hwmon driver for the firmware's word on the supply; its alarm stands while the voltage is too low."""


@dataclass(frozen=True, slots=True)
class Board:
    """The state of the computer; None is what it does not say.

    Attributes:
        temperature: Of its warmest zone, in degrees Celsius.
        undervoltage: Whether its supply is too weak at this moment.
    """

    temperature: float | None
    undervoltage: bool | None

    @classmethod
    def read(cls, sysfs: Path | None = None) -> Board:
        """Look now."""
        sysfs = sysfs or _SYS
        zones = [number for path in sysfs.glob("class/thermal/thermal_zone*/temp") if (number := _number(path))]
        alarms = [
            _number(path / "in0_lcrit_alarm")
            for path in sysfs.glob("class/hwmon/hwmon*")
            if _text(path / "name") == _VOLTAGE_DRIVER
        ]
        known = [alarm for alarm in alarms if alarm is not None]
        return cls(max(zones) / 1000 if zones else None, any(known) if known else None)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What a person has to see to."""
        hot = self.temperature is not None and self.temperature >= HOT
        return (*(("too hot",) if hot else ()), *(("undervoltage",) if self.undervoltage else ()))


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip()
    return ""


def _number(path: Path) -> int | None:
    with suppress(ValueError):
        return int(_text(path))
    return None
