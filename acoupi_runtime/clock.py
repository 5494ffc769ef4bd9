"""clock: what time it is, since when, and whether that can be believed. Reads the kernel; sets nothing.

The wall clock of a sensor may be wrong for hours and then jump. What must not jump follows CLOCK_BOOTTIME, which counts
through suspend too and begins anew at each boot: a boot's id and its boottime are an instant that no clock step moves.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STA_UNSYNC = 0x0040
"""adjtimex(2): the kernel's clock is not synchronised."""


@functools.cache
def boot_id() -> str:
    """The id of this boot; `unknown` where /proc hides it, and then nothing is ever taken to be of the same boot."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"


def boottime() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since 1970, as the wall clock has it."""
    return time.time()


def synchronised() -> bool:
    """Whether something keeps the wall clock right: timesyncd says so, or the kernel does (chrony, PTP)."""
    return _TIMESYNC.exists() or _kernel_is_synchronised()


def _kernel_is_synchronised() -> bool:
    import ctypes

    class Timex(ctypes.Structure):
        # The head of struct timex; the rest is room that the kernel may fill.
        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("room", ctypes.c_byte * 256),
        )

    timex = Timex()  # modes=0: read only
    answer: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    # -1 where the unit's system call filter refuses even reading (ProtectClock=yes): then only timesyncd can tell.
    return answer >= 0 and not timex.status & _STA_UNSYNC


class Clock:
    """The clock, as something that can be handed over: tests hand over one that jumps."""

    def boot_id(self) -> str:
        """The id of this boot."""
        return boot_id()

    def boottime(self) -> float:
        """Seconds since boot, suspend included."""
        return boottime()

    def wall(self) -> float:
        """Seconds since 1970."""
        return wall()

    def synchronised(self) -> bool:
        """Whether the wall clock is kept right."""
        return synchronised()
