"""service: what a virtual sensor's manager keeps: targets, and processes as systemd.service(5) describes them.

Of the many settings, those that decide whether something runs: Type, ExecStart, Environment, Restart, RestartSec,
WatchdogSec, TimeoutStartSec, TimeoutStopSec, RuntimeDirectory, UMask. Hardening has no meaning in a demonstration.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
import uuid
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from acoupi_fleet.demo.units import Unit

_TICK = 0.2
"""Seconds between two looks at a service's deadlines."""

_START_SECONDS = _STOP_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where services run.

    Attributes:
        environment: What each of them starts with.
        runtime: XDG_RUNTIME_DIR.
        journal: The file that takes what they print.
    """

    environment: Mapping[str, str]
    runtime: Path
    journal: Path


class Target:
    """A unit without a process: it is active, or it is not.

    Attributes:
        unit: What its file says.
        active: systemd's word for it: inactive, activating, active, deactivating or failed.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.active = "inactive"
        self._invocation = ""
        self._entered: tuple[datetime, float] | None = None

    async def start(self) -> bool:
        """Start it; whether it is active."""
        if self.active != "active":
            self._invocation = uuid.uuid4().hex
            self._enter()
        return True

    async def stop(self) -> None:
        """Stop it."""
        self.active = "inactive"

    def _enter(self) -> None:
        self.active = "active"
        self._entered = (datetime.now(UTC), time.monotonic())

    def properties(self) -> dict[str, str]:
        """What `systemctl show` tells of it."""
        since, monotonic = self._entered or (None, 0.0)
        return {
            "Id": self.unit.name,
            "LoadState": "loaded",
            "ActiveState": self.active,
            "SubState": "active" if self.active == "active" else "dead",
            "ActiveEnterTimestamp": since.strftime("%a %Y-%m-%d %H:%M:%S UTC") if since else "",
            "ActiveEnterTimestampMonotonic": str(int(monotonic * 1e6)),
            "InvocationID": self._invocation,
            "FragmentPath": str(self.unit.path),
            "NeedDaemonReload": "no",  # each start reads the file anew
        }


class Service(Target):
    """A supervised process; all methods run in the manager's event loop."""

    def __init__(self, unit: Unit, surroundings: Surroundings) -> None:
        super().__init__(unit)
        self._surroundings = surroundings
        self._life: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._wanted = False
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._sub = "dead"
        self._restarts = 0
        self._result = "success"
        self._exit = 0
        self._status = ""
        self._fed = 0.0
        self._ending: float | None = None

    async def start(self) -> bool:
        """Start it, and wait until it is active or this attempt has failed; whether it is active."""
        self._wanted = True
        if self._life is None or self._life.done():
            self._settled.clear()
            self._wake.clear()
            self._restarts = 0
            self._life = asyncio.create_task(self._live())
        elif self._sub == "auto-restart":
            self._settled.clear()
            self._wake.set()
        await self._settled.wait()
        return self.active == "active"

    async def stop(self) -> None:
        """End it: politely, then not."""
        self._wanted = False
        self._wake.set()
        if self._process is not None:
            self.active, self._sub = "deactivating", "stop"
            self._end(signal.SIGTERM)
        if self._life is not None:
            await self._life

    def properties(self) -> dict[str, str]:
        """What `systemctl show` tells of it."""
        return super().properties() | {
            "SubState": self._sub,
            "Result": self._result,
            "MainPID": str(self._process.pid if self._process else 0),
            "NRestarts": str(self._restarts),
            "StatusText": self._status,
            "ExecMainStatus": str(self._exit),
        }

    async def _live(self) -> None:
        """From the first start to the last end, through all restarts."""
        try:
            while await self._run_once_and_decide():
                self.active, self._sub = "activating", "auto-restart"
                self._settled.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self.unit.seconds("Service.RestartSec", 0.1))
                self._wake.clear()
                self._restarts += 1
                if not self._wanted:
                    break
        finally:
            well = self._result == "success" or not self._wanted
            self.active, self._sub = ("inactive", "dead") if well else ("failed", "failed")
            self._settled.set()

    async def _run_once_and_decide(self) -> bool:
        """One process, from its start to its end; whether there shall be another."""
        self.active, self._sub = "activating", "start"
        self._invocation = uuid.uuid4().hex
        try:
            await self._run_once()
        except OSError as error:
            self._result, self._exit, self._status = "resources", 0, f"{error.filename}: {error.strerror}"
        restart = self.unit.last("Service.Restart", "no")
        return self._wanted and (restart == "always" or (restart == "on-failure" and self._result != "success"))

    async def _run_once(self) -> None:
        self._result, self._ending = "success", None
        with self._listening() as address:
            self._fed = time.monotonic()
            process = self._process = await self._spawn(address)
            try:
                if self.unit.last("Service.Type", "simple") != "notify":
                    self._enter()
                exited = asyncio.create_task(process.wait())
                while not exited.done():
                    await asyncio.wait({exited}, timeout=_TICK)
                    self._watch()
            finally:
                self._process = None
                with contextlib.suppress(ProcessLookupError):  # what the main process left behind goes with it
                    os.killpg(process.pid, signal.SIGKILL)
        code = await exited
        self._exit = abs(code)
        if self._result == "success" and not (code == 0 or (code == -signal.SIGTERM and not self._wanted)):
            self._result = "exit-code" if code > 0 else "signal"

    def _watch(self) -> None:
        """Look at the deadlines."""
        now = time.monotonic()
        watchdog = self.unit.seconds("Service.WatchdogSec", 0)
        if not self._wanted and self._ending is None:
            self._end(signal.SIGTERM)
        if self._ending is not None:
            if now - self._ending > self.unit.seconds("Service.TimeoutStopSec", _STOP_SECONDS):
                self._result = "timeout" if self._result == "success" else self._result
                self._signal(signal.SIGKILL)
        elif self.active == "activating":
            if now - self._fed > self.unit.seconds("Service.TimeoutStartSec", _START_SECONDS):
                self._result = "timeout"
                self._end(signal.SIGTERM)
        elif watchdog and now - self._fed > watchdog:
            self._result = "watchdog"
            self._end(signal.SIGABRT)

    def _end(self, number: signal.Signals) -> None:
        self._ending = self._ending or time.monotonic()
        self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                self._process.send_signal(number)

    async def _spawn(self, address: str) -> Process:
        around = self._surroundings
        environment = {**around.environment, "NOTIFY_SOCKET": address, "INVOCATION_ID": self._invocation}
        for assignment in self.unit.words("Service.Environment"):
            key, _, value = assignment.partition("=")
            environment[key] = value
        if watchdog := self.unit.seconds("Service.WatchdogSec", 0):
            environment["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        if folder := self.unit.last("Service.RuntimeDirectory"):
            mode = int(self.unit.last("Service.RuntimeDirectoryMode", "755"), 8)
            (around.runtime / folder).mkdir(mode=mode, exist_ok=True)
        descriptor = os.open(around.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                *self.unit.command(),
                env=environment,
                cwd=environment["HOME"],
                stdin=DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                umask=int(self.unit.last("Service.UMask", "22"), 8),
            )
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[str]:
        """The socket on which this run of the service may say how it is (sd_notify(3))."""
        address = str(self._surroundings.runtime / f"{self.unit.name}.notify")
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind(address)
            try:
                loop.add_reader(listener, self._hear, listener)
                yield address
            finally:
                loop.remove_reader(listener)
                os.unlink(address)  # noqa: PTH108 - as it was bound

    def _hear(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            said = dict(line.partition("=")[::2] for line in listener.recv(8192).decode(errors="replace").splitlines())
            self._status = said.get("STATUS", self._status)
            if said.keys() & {"READY", "WATCHDOG"}:
                self._fed = time.monotonic()
            if "READY" in said and self.active == "activating":
                self._enter()

    def _enter(self) -> None:
        super()._enter()
        self._sub = "running"
        self._settled.set()
