"""A recorder as a process of its own, for tests that kill it, starve it, or let its system calls fail.

`python -m tests.audio_process HOME SECONDS` reads HOME/config/program.json; SECONDS is simulated time, or 0: the real
one, until SIGTERM. For each completed recording a folder HOME/completed/ID is made.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from pathlib import Path

from acoupi_runtime.audio.recorder import Recorder
from acoupi_runtime.clock import Clock, SystemClock
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.data import Capture, Recording
from acoupi_runtime.home import Home
from tests.audio_rig import PLACE, SimulatedClock


class Noted:
    """A sink that notes ids with a system call that no test lets fail."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def completed(self, recording: Recording, capture: Capture) -> None:
        del capture
        (self._folder / str(recording.id)).mkdir()


def hold_the_interpreter(*_: object) -> None:
    """Let no other Python thread run for a second, as a full garbage collection may."""
    ctypes.PyDLL(None).usleep(1_000_000)


def main() -> int:
    home, seconds = Home(Path(sys.argv[1])), float(sys.argv[2])
    config = BasicConfig.model_validate_json(home.program_file.read_bytes())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGUSR1, hold_the_interpreter)
    clock: Clock = SystemClock()
    if seconds:
        simulated = SimulatedClock()
        simulated.end = simulated.now + seconds
        clock = simulated
    recorder = Recorder(
        config, home, deployment=lambda: PLACE, sink=Noted(home.root / "completed"), alive=lambda _: None, clock=clock
    )
    recorder.run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
