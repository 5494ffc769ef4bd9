"""service: one supervised process, as systemd.service(5) describes it. Starts, watches and ends processes.

Of the many settings, those that decide whether something runs: Type, ExecStartPre, ExecStart, Environment, Restart,
RestartSec, WatchdogSec, TimeoutStartSec, TimeoutStopSec, RuntimeDirectory. Hardening has no meaning in a demonstration.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from acoupi_fleet.demo.units import Unit

_START_SECONDS = 90.0
_STOP_SECONDS = 90.0


class Service:
    """One service of a virtual sensor; all methods run in the sensor's event loop.

    Attributes:
        unit: What its file says.
        active: systemd's word for it: inactive, activating, active, deactivating or failed.
    """

    def __init__(self, unit: Unit, environment: Mapping[str, str], runtime: Path) -> None:
        self.unit = unit
        self.active = "inactive"
        self._environment = dict(environment)
        self._runtime = runtime
        self._unwanted = asyncio.Event()
        self._unwanted.set()
        self._process: asyncio.subprocess.Process | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._restarts = 0
        self._entered: tuple[datetime, float] | None = None
        self._status = ""
        self._result = "success"
        self._exit = 0
        self._fed = 0.0
        self._main = 0

    @property
    def running(self) -> bool:
        """Whether it is up, or on its way."""
        return not self._unwanted.is_set()

    async def start(self) -> bool:
        """Start it, and wait until it is active or has failed once."""
        if not self.running:
            self._unwanted.clear()
            self._settled.clear()
            self._restarts = 0
            self._loop_task = asyncio.create_task(self._keep_running())
        await self._settled.wait()
        return self.active == "active"

    async def stop(self) -> None:
        """End it: politely, then not."""
        self._unwanted.set()
        if self._process is not None and self._process.returncode is None:
            self.active = "deactivating"
            self._signal(signal.SIGTERM, group=False)
        if self._loop_task is not None:
            await self._loop_task
        self.active = "inactive"

    def properties(self) -> dict[str, str]:
        """What `systemctl show` tells of it."""
        since, monotonic = self._entered or (None, 0.0)
        return {
            "Id": self.unit.name,
            "LoadState": "loaded",
            "ActiveState": self.active,
            "SubState": {"active": "running", "activating": "start", "inactive": "dead"}.get(self.active, self.active),
            "Result": self._result,
            "MainPID": str(self._main),
            "NRestarts": str(self._restarts),
            "ActiveEnterTimestamp": since.strftime("%a %Y-%m-%d %H:%M:%S UTC") if since else "",
            "ActiveEnterTimestampMonotonic": str(int(monotonic * 1e6)),
            "FragmentPath": str(self.unit.path),
            "StatusText": self._status,
            "ExecMainStatus": str(self._exit),
            "NeedDaemonReload": "no",
        }

    async def _keep_running(self) -> None:
        while self.running:
            self.active = "activating"
            clean = await self._run_once()
            self._settled.set()
            if self.unit.last("Service.Restart", "no") == "no":
                break
            self._result = "success" if clean else self._result
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._unwanted.wait(), self.unit.seconds("Service.RestartSec", 0.1))
            self._restarts += 1
        if self.active != "failed":
            self.active = "inactive"
        self._settled.set()

    async def _run_once(self) -> bool:
        folder = self.unit.last("Service.RuntimeDirectory")
        if folder:
            (self._runtime / folder).mkdir(mode=0o750, parents=True, exist_ok=True)
        notify = self._runtime / f"{self.unit.name}.notify"
        with contextlib.suppress(FileNotFoundError):
            notify.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(notify))
        listener.setblocking(False)  # noqa: FBT003 - its only form
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, self._heard, listener)
        try:
            if not await self._prepare():
                return False
            return await self._run_main(notify)
        except OSError as error:
            self._status, self._result, self.active = f"{error.filename}: {error.strerror}", "resources", "failed"
            return False
        finally:
            loop.remove_reader(listener)
            listener.close()
            notify.unlink(missing_ok=True)

    async def _prepare(self) -> bool:
        argv, may_fail = self.unit.command("Service.ExecStartPre")
        if not argv:
            return True
        process = await self._spawn(argv, None)
        if await process.wait() == 0 or may_fail:
            return True
        self._result, self.active = "exit-code", "failed"
        return False

    async def _run_main(self, notify: Path) -> bool:
        watchdog = self.unit.seconds("Service.WatchdogSec", 0)
        process = self._process = await self._spawn(self.unit.command("Service.ExecStart")[0], notify, watchdog)
        self._main, self._fed = process.pid, time.monotonic()
        if self.unit.last("Service.Type", "simple") != "notify":
            self._enter()
        exited = asyncio.create_task(process.wait())
        started = time.monotonic()
        term_at: float | None = None
        while not exited.done():
            await asyncio.wait({exited}, timeout=0.1)
            now = time.monotonic()
            limit = self.unit.seconds("Service.TimeoutStartSec", _START_SECONDS)
            if not self.running:
                term_at = term_at or now
                if now - term_at > self.unit.seconds("Service.TimeoutStopSec", _STOP_SECONDS):
                    self._signal(signal.SIGKILL)
            elif (self.active == "activating" and now - started > limit) or (
                watchdog and self.active == "active" and now - self._fed > watchdog
            ):
                self._result = "watchdog" if self.active == "active" else "timeout"
                self._signal(signal.SIGKILL)
        self._exit = process.returncode or 0
        self._signal(signal.SIGKILL)  # what the main process left behind goes with it
        self._main = 0
        clean = self._exit == 0 or not self.running
        if not clean:
            self._result = self._result if self._result in {"watchdog", "timeout"} else "exit-code"
            self.active = "activating" if self.unit.last("Service.Restart", "no") != "no" else "failed"
        return clean

    async def _spawn(self, argv: list[str], notify: Path | None, watchdog: float = 0) -> asyncio.subprocess.Process:
        environment = dict(self._environment)
        for value in self.unit.settings.get("Service.Environment", ()):
            key, _, text = value.strip('"').partition("=")
            environment[key] = text
        if notify is not None:
            environment["NOTIFY_SOCKET"] = str(notify)
        if watchdog:
            environment["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        log = os.open(self._runtime / "journal.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                env=environment,
                cwd=environment["HOME"],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _heard(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                for line in listener.recv(4096).decode(errors="replace").splitlines():
                    key, _, value = line.partition("=")
                    if key == "READY" and self.active == "activating":
                        self._enter()
                    elif key == "STATUS":
                        self._status = value
                    if key in {"READY", "WATCHDOG"}:
                        self._fed = time.monotonic()

    def _enter(self) -> None:
        self.active = "active"
        self._result = "success"
        self._entered = (datetime.now(UTC), time.monotonic())
        self._settled.set()

    def _signal(self, number: signal.Signals, *, group: bool = True) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(process.pid, number)
            else:
                os.kill(process.pid, number)
