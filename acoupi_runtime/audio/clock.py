"""clock: the machine's clocks behind one small seam. Reads clocks, and whether they are synchronised; sets nothing.

`steady` never jumps: everything is scheduled and measured by it. `wall` may jump; it only says what time it is.
"""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path
from typing import Protocol

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK_IS_UNSYNCHRONISED = 5  # TIME_ERROR, adjtimex(2)


class Clock(Protocol):
    """What the recorder asks of time. A simulation implements this."""

    boot_id: str

    def steady(self) -> float:
        """CLOCK_BOOTTIME, in s."""

    def wall(self) -> float:
        """Seconds since 1970, UTC."""

    def synced(self) -> bool:
        """Whether the wall clock has been synchronised since the boot."""

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
        return "unknown"


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

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Return after some seconds, or as soon as `stop` is set."""
        stop.wait(seconds)


def _kernel_says_synced() -> bool:
    # struct timex is smaller than this on every architecture; zeroed, it asks and sets nothing. In a unit with
    # ProtectClock=yes the call is refused, which counts as not synchronised.
    answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    return 0 <= int(answer) < _CLOCK_IS_UNSYNCHRONISED
