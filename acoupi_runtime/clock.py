"""clock: the machine's clocks behind one small seam. Reads clocks and the system's word on them; sets nothing.

`steady` never jumps: everything is scheduled and measured by it, and with the boot's id it is an instant that no clock
step moves. `wall` may be wrong for hours and then jump, and is read only to say what time it is.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_TIMEKEEPERS = (Path("/run/systemd/timesync"), Path("/run/chrony"), Path("/run/ntpsec"))
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK_IS_UNSYNCHRONISED = 5  # TIME_ERROR, adjtimex(2)

UNKNOWN_BOOT = "unknown"
"""Where /proc hides the boot's id; nothing of such a boot is ever corrected."""


class Clock(Protocol):
    """What is asked of time. A simulation implements this."""

    boot_id: str

    def steady(self) -> float:
        """CLOCK_BOOTTIME, in s."""

    def wall(self) -> float:
        """Seconds since 1970, UTC."""

    def synced(self) -> bool:
        """Whether the wall clock has been synchronised since the boot."""

    def will_sync(self) -> bool:
        """Whether something is at work here that will synchronise it, given a network."""

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Return after some seconds, or as soon as `stop` is set."""


def wall_offset(clock: Clock) -> float:
    """What is added to the steady clock to get the wall clock, now."""
    before = clock.steady()
    wall = clock.wall()
    return wall - (before + clock.steady()) / 2


def boot_id() -> str:
    """Which boot of the machine this is; a constant where the kernel's word is hidden from us."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return UNKNOWN_BOOT


class SystemClock:
    """The clocks of this machine."""

    def __init__(self) -> None:
        self.boot_id = boot_id()

    def steady(self) -> float:
        """CLOCK_BOOTTIME, in s."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()

    def synced(self) -> bool:
        """What systemd-timesyncd says; where another daemon keeps the time, what the kernel says."""
        return _TIMESYNC.exists() or _kernel_says_synced()

    def will_sync(self) -> bool:
        """Whether a daemon has begun to keep the time, by the folder that it makes; there is none in a container."""
        return any(folder.is_dir() for folder in _TIMEKEEPERS)

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Return after some seconds, or as soon as `stop` is set."""
        stop.wait(seconds)


def _kernel_says_synced() -> bool:
    import ctypes

    # struct timex is smaller than this on every architecture; zeroed, it asks and sets nothing. In a unit with
    # ProtectClock=yes the call is refused, which counts as not synchronised.
    answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    return 0 <= int(answer) < _CLOCK_IS_UNSYNCHRONISED
