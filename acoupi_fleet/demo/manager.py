"""manager: stands in for a user's systemd in one virtual sensor. Owns its services; answers systemctl on a socket.

It is the sensor's first process: the SSH server runs under it too, and all goes when it goes. It understands what is
asked of a user's manager here, and refuses the rest by name, so that nobody mistakes it for more.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from acoupi_fleet.demo.processes import Process, adopt_orphans, end_descendants, zombies
from acoupi_fleet.demo.sensor import VirtualSensor
from acoupi_fleet.demo.service import Service, Surroundings, Target
from acoupi_fleet.demo.units import Unit, load

_FAILED, _INACTIVE, _NOT_FOUND = 1, 3, 5
"""systemctl's exit codes: a failure; no unit is active; there is no such unit."""

_BURY_SECONDS = 5.0


class RefusedError(Exception):
    """What systemctl would answer with an error."""

    def __init__(self, text: str, code: int = _FAILED) -> None:
        super().__init__(text)
        self.code = code


class Manager:
    """The units of one user.

    Args:
        sensor: Whose.
    """

    def __init__(self, sensor: VirtualSensor) -> None:
        self._folder = sensor.home / ".config/systemd/user"
        self._specifiers = {"h": str(sensor.home), "t": str(sensor.runtime)}
        self._surroundings = Surroundings(sensor.environment, sensor.runtime, sensor.journal)
        self._known: dict[str, Target] = {}
        self._changing = asyncio.Lock()

    async def answer(self, argv: list[str]) -> tuple[int, str]:
        """Do what one call of systemctl asks; its exit code and what it prints."""
        try:
            return await self._do(argv)
        except RefusedError as refused:
            return refused.code, f"{refused}\n"

    async def _do(self, argv: list[str]) -> tuple[int, str]:
        options = [word for word in argv if word.startswith("-")]
        verb, *names = [word for word in argv if not word.startswith("-")] or [""]
        if "--system" in options:
            raise RefusedError("a virtual sensor has its user's manager only")
        match verb:
            case "show":
                return 0, self._show(names, options)
            case "is-active":
                states = [each.active if (each := self._known.get(name)) else "inactive" for name in names]
                return 0 if "active" in states else _INACTIVE, "".join(f"{state}\n" for state in states)
            case "start" | "stop" | "restart":
                async with self._changing:
                    if verb != "start":
                        await self._stop(names)
                    if verb != "stop":
                        await self._start(names)
                return 0, ""
            case "daemon-reload":
                return 0, ""  # each start reads its file anew
            case _:
                raise RefusedError(f"{verb}: a virtual sensor's manager does not know this verb")

    async def boot(self) -> None:
        """Start what is enabled."""
        enabled = sorted(link.name for link in (self._folder / "default.target.wants").glob("*"))
        async with self._changing:
            await self._start(name for name in enabled if self._load(name))

    def _load(self, name: str) -> Unit | None:
        return load(self._folder, name, self._specifiers)

    def _must_load(self, name: str) -> Unit:
        unit = self._load(name)
        if unit is None:
            raise RefusedError(f"Unit {name} not found.", _NOT_FOUND)
        return unit

    async def _start(self, names: Iterable[str]) -> None:
        """Start units and what they want, each after those that it is ordered behind."""
        asked = [self._must_load(name) for name in names]
        units = {unit.name: unit for unit in asked}
        for unit in (found := list(asked)):
            wanted = [self._load(name) for name in unit.words("Unit.Wants") if name not in units]
            units |= (new := {unit.name: unit for unit in wanted if unit})
            found += new.values()
        jobs: dict[str, asyncio.Task[bool]] = {}

        async def job(unit: Unit) -> bool:
            # A target is there when all that it wants has been tried.
            first = unit.words("Unit.Wants" if unit.name.endswith(".target") else "Unit.After")
            await asyncio.gather(*(jobs[name] for name in first if name in jobs))
            return await self._take_up(unit).start()

        for name, unit in units.items():
            jobs[name] = asyncio.create_task(job(unit))
        await asyncio.gather(*jobs.values())
        if failed := [unit.name for unit in asked if not jobs[unit.name].result()]:
            raise RefusedError(f"Job for {', '.join(failed)} failed.")

    def _take_up(self, unit: Unit) -> Target:
        new = Target(unit) if unit.name.endswith(".target") else Service(unit, self._surroundings)
        known = self._known.setdefault(unit.name, new)
        known.unit = unit
        return known

    async def _stop(self, names: list[str]) -> None:
        for name in names:
            if name not in self._known:
                self._must_load(name)
        going = [
            each
            for name, each in self._known.items()
            if name in names or set(each.unit.words("Unit.PartOf")) & {*names}
        ]
        await asyncio.gather(*(each.stop() for each in going))

    def _show(self, names: list[str], options: list[str]) -> str:
        asked = [name for word in options if word.startswith("--property=") for name in word[11:].split(",")]
        if not names:
            blocks: list[Mapping[str, str]] = [{"Version": "a virtual sensor's", "SystemState": "running"}]
        else:
            blocks = [
                self._properties(each)
                for name in names
                for each in (sorted(fnmatch.filter(self._known, name)) if "*" in name else [name])
            ]
        return "\n".join(
            "".join(
                value + "\n" if "--value" in options else f"{key}={value}\n"
                for key, value in block.items()
                if not asked or key in asked
            )
            for block in blocks
        )

    def _properties(self, name: str) -> Mapping[str, str]:
        if name in self._known:
            return self._known[name].properties()
        if unit := self._load(name):
            return Target(unit).properties()
        return {"Id": name, "LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}


async def _bury_orphans() -> None:
    """Let adopted processes that have ended go; those of its own, asyncio sees to at once."""
    before: set[Process] = set()
    while True:
        await asyncio.sleep(_BURY_SECONDS)
        now = zombies(os.getpid())
        for process in now & before:
            process.bury()
        before = now


async def run(sensor: VirtualSensor) -> int:
    """Be a sensor's first process until SIGTERM: boot, let people in through SSH, answer systemctl."""
    manager = Manager(sensor)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        code, text = await manager.answer(json.loads(await reader.readline()))
        writer.write(json.dumps({"code": code, "text": text}).encode() + b"\n")
        await writer.drain()
        writer.close()

    sensor.bus.unlink(missing_ok=True)
    await asyncio.start_unix_server(converse, str(sensor.bus))
    beside = [asyncio.create_task(manager.boot()), asyncio.create_task(_bury_orphans())]
    server = await asyncio.create_subprocess_exec(
        *sensor.ssh_server, env=dict(sensor.environment), cwd=sensor.folder, stdin=asyncio.subprocess.DEVNULL
    )
    off = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, off.set)
    ends = {asyncio.create_task(off.wait()), asyncio.create_task(server.wait())}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in beside:
        task.cancel()
    return 0 if off.is_set() else 1


def main(argv: list[str]) -> None:
    """Run one sensor: its folder and its port."""
    adopt_orphans()
    code = 1
    try:
        code = asyncio.run(run(VirtualSensor(Path(argv[0]), int(argv[1]))))
    finally:
        # As when the power goes: nobody is asked. What a person wants to keep is copied before.
        end_descendants()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
