"""story: what a demonstration shows, in order. Runs the public command line, and shows each command before it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

from acoupi_fleet.demo import stage
from acoupi_fleet.errors import EXIT_INTERRUPTED, EXIT_OK, FleetError, HostError, UnreachableError

_PATIENCE = 120.0
_PAUSE = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


class Voice(Protocol):
    """Who tells the story: `report.Report`."""

    def heading(self, text: str) -> None:
        """What comes next."""

    def command(self, text: str) -> None:
        """What is run now, as a person would type it."""

    def line(self, text: str) -> None:
        """Something to read."""


def run(folder: Path, *, keep: bool, voice: Voice) -> int:
    """Show everything once.

    Args:
        folder: Where it happens; made, and in the end removed again.
        keep: Leave the sensors running, also when something went wrong, so that a person can look.
        voice: Who tells it.

    Returns:
        The exit code: 0 when everything happened that should.

    Raises:
        FleetError: If something that it needs is missing, or something did not happen.
    """
    stage.look_for_what_is_needed()
    stage.removed(folder)
    with _interruptible():
        try:
            began = time.monotonic()
            _tell(folder, voice)
            _what_next(folder, voice, time.monotonic() - began, keep=keep)
        except KeyboardInterrupt:
            stage.removed(folder)
            voice.line("interrupted: the sensors are switched off and removed")
            return EXIT_INTERRUPTED
        finally:
            _ignore_signals()
            if not keep:
                stage.removed(folder)
    return EXIT_OK


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Treat Ctrl-C, a closed terminal and a polite kill alike; what clears up afterwards is not interrupted."""

    def interrupt(*_: object) -> NoReturn:
        _ignore_signals()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _tell(folder: Path, voice: Voice) -> None:
    unreachable = {UnreachableError.exit_code}
    voice.heading("Five sensors on this computer")
    voice.line(
        "Each has an SSH server, a home and a sound of its own. bat2 hears nothing, and\n"
        "far1 is off. What follows is what you would type for real ones, which are\n"
        "described in a file:"
    )
    with stage.built(folder):
        fleet = _Fleet(folder, voice)
        fleet.shell(f"cat {stage.INVENTORY}")
        voice.heading("1. One command makes them record. That far1 is off holds up nobody.")
        fleet("provision", expect=unreachable)
        voice.heading("2. Once more: nothing changes.")
        fleet("provision", expect=unreachable)
        voice.heading("3. All that are on have recorded, and bat2 says that it hears nothing.")
        fleet.wait(lambda seen: _recorded(seen, *stage.RUNNING) and seen[stage.SILENT]["state"] == "SILENT")
        fleet("status", expect={EXIT_OK, HostError.exit_code, *unreachable})
        voice.heading("4. A worker is killed, and comes back by itself.")
        fleet.shell("kill -9 $(cat owl2/home/.acoupi/run/recording.pid)")
        fleet("status", "--limit", "owl2", expect={EXIT_OK, HostError.exit_code})
        fleet.wait(lambda seen: _recorded(seen, "owl2") and seen["owl2"]["state"] == "recording")
        fleet("status", "--limit", "owl2")
        voice.heading("5. A group is restarted, and counts as restarted when sound flows again.")
        fleet("restart", "--limit", "owls")
        voice.heading("6. Is everything as the inventory says, and well?")
        fleet("check", "--limit", "owls:bats")


def _what_next(folder: Path, voice: Voice, seconds: float, *, keep: bool) -> None:
    voice.heading(f"That was all of it, in {seconds:.0f} seconds.")
    if keep:
        voice.line("The sensors keep running.")
        for command in (
            f"cd {folder}",
            f"acoupi-fleet status {stage.INVENTORY}",
            "ls owl1/home/storages/recordings/*/*/*",
            "acoupi-fleet demo --stop",
        ):
            voice.command(command)
        return
    voice.line("The sensors are switched off and removed; with --keep they stay. Now your own:")
    for command in (
        "acoupi-fleet doctor pi@raspberrypi.local",
        "acoupi-fleet init",
        f"acoupi-fleet provision {stage.INVENTORY}",
    ):
        voice.command(command)


class _Fleet:
    """The public command line, as a person would type it in the stage's folder."""

    def __init__(self, folder: Path, voice: Voice) -> None:
        self._folder = folder
        self._voice = voice
        # The very program that shows this, wherever it was started from.
        self._program = [sys.executable, "-P", "-m", "acoupi_fleet"]
        self._environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def __call__(self, verb: str, *words: str, expect: set[int] | None = None) -> None:
        """Show a command and run it."""
        arguments = [verb, stage.INVENTORY, *words]
        self._voice.command(f"acoupi-fleet {shlex.join(arguments)}")
        done = subprocess.run([*self._program, *arguments], cwd=self._folder, env=self._environment, check=False)
        self._judge(f"acoupi-fleet {verb}", done.returncode, expect or {EXIT_OK})

    def shell(self, line: str) -> None:
        """Show a line for the shell and run it."""
        self._voice.command(line)
        self._judge(line, subprocess.run(["/bin/sh", "-c", line], cwd=self._folder, check=False).returncode, {EXIT_OK})

    def wait(self, until: Callable[[Mapping[str, Any]], bool]) -> None:
        """Ask for the status, without showing it, until it is as wanted."""
        words = [*self._program, "status", stage.INVENTORY, "--json"]
        deadline = time.monotonic() + _PATIENCE
        while True:
            asked = subprocess.run(
                words, cwd=self._folder, env=self._environment, check=False, stdout=subprocess.PIPE, text=True
            )
            if asked.returncode == FleetError.exit_code:
                self._fail("acoupi-fleet status --json failed")
            seen = {each["host"]: each for each in json.loads(asked.stdout)}
            if until(seen):
                return
            if time.monotonic() > deadline:
                states = "; ".join(f"{name} is {about['state']} {about['detail']}" for name, about in seen.items())
                self._fail(f"the sensors did not get that far in {_PATIENCE:.0f} s: {states}")
            time.sleep(_PAUSE)

    def _judge(self, command: str, code: int, expected: set[int]) -> None:
        if code not in expected:
            self._fail(f"`{command}` ended with {code}")

    def _fail(self, text: str) -> NoReturn:
        raise FleetError(f"demo: {text}; the sensors' last words were:\n{stage.last_words(self._folder)}")


def _recorded(seen: Mapping[str, Any], *names: str) -> bool:
    return all(seen[name]["last_age"] is not None for name in names)
