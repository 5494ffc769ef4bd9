"""revival: how far to go for a microphone that stays dead, as configured. Reads live state, asks `rescue`.

The first tiers are the recorder's: it opens the stream again, starts PortAudio again, and at last asks for a new
process. What comes after needs root, which this process is not: it writes a request that a unit of root's waits for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

from acoupi_runtime.audio.state import read_state
from acoupi_runtime.clock import SystemClock
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.home import Home
from acoupi_runtime.system.rescue import REBOOT, REQUEST, USB_RESET

logger = logging.getLogger(__name__)

USB_AFTER = 60.0
"""Seconds of a dead microphone after which its USB port is reset."""
USB_EVERY = 600.0
REBOOT_AFTER = 3600.0
"""Seconds of a dead microphone after which the device is rebooted."""
_ALIVE = ("recording", "listening", "paused", "error")
"""What shows that the microphone is there. `starting` does not: one that hangs opens, too, and gives no sound."""


class Revival:
    """Watches the recorder's own word on its microphone. Any thread may call it.

    Args:
        config: Says how far to go.
        home: Its `run` folder remembers since when the microphone is dead and when help was asked for, since a dead
            one costs a new process every half minute.
        clock: The machine's, or a simulation.
    """

    def __init__(self, config: BasicConfig, home: Home, clock: SystemClock | None = None) -> None:
        self._recovery = config.recovery
        self._home = home
        self._clock = clock or SystemClock()
        self._since = home.run_dir / "microphone-dead-since"
        self._asked = home.run_dir / "microphone-help-asked"
        self._mutex = threading.Lock()

    def look(self) -> None:
        """Ask for help when it is time to."""
        if self._recovery != "restart":
            with self._mutex:
                self._look()

    def _look(self) -> None:
        state = read_state(self._home)
        if state is None:  # no recorder runs, as when a deployment was stopped by hand: nothing is known
            return
        if state.state in _ALIVE:
            self._since.unlink(missing_ok=True)
        if state.state != "no-microphone":
            return
        now = self._clock.steady()
        dead = now - self._dead_since(now)
        if self._recovery == "reboot" and dead >= REBOOT_AFTER:
            self._ask(REBOOT, now)
        elif dead >= USB_AFTER:
            self._ask(USB_RESET, now)

    def _dead_since(self, now: float) -> float:
        since = _instant(self._since, now)
        if since is None:
            self._since.write_text(f"{now}\n")
        return now if since is None else since

    def _ask(self, verb: str, now: float) -> None:
        asked = _instant(self._asked, now)
        if asked is not None and now - asked < USB_EVERY:
            return
        self._asked.write_text(f"{now}\n")
        logger.warning("the microphone stays dead: asking for %s", verb)
        request = self._home.run_dir / REQUEST
        temporary = request.with_suffix(".new")
        temporary.write_text(f"{verb}\n")
        temporary.replace(request)


def _instant(file: Path, now: float) -> float | None:
    """What a file remembers; None where that is nothing, or of an earlier boot."""
    with contextlib.suppress(OSError, ValueError):
        instant = float(file.read_text())
        if instant <= now:
            return instant
    return None
