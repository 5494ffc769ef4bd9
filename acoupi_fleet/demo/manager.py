"""manager: stands in for a user's systemd in one virtual sensor. Owns its services; answers systemctl on a socket.

It understands what is asked of a user's manager here: show, start, stop, restart, enable, disable, is-active,
is-enabled, daemon-reload. Anything else is refused by name, so that nobody mistakes it for more.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from acoupi_fleet.demo.service import Service
from acoupi_fleet.demo.units import Unit, load

_NOT_FOUND = 5
"""systemctl's exit code for a unit that does not exist."""


class RefusedError(Exception):
    """What systemctl would answer with an error."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class Manager:
    """The units of one user.

    Args:
        home: The user's home.
        runtime: XDG_RUNTIME_DIR.
        path: PATH of the services.
    """

    def __init__(self, home: Path, runtime: Path, path: str) -> None:
        self._home = home
        self._folder = home / ".config/systemd/user"
        self._runtime = runtime
        self._environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "PATH": path, "LANG": "C.UTF-8"}
        self._services: dict[str, Service] = {}
        self._active_targets: set[str] = set()
        self._lock = asyncio.Lock()

    async def answer(self, argv: list[str]) -> tuple[int, str]:
        """Do what one call of systemctl asks; its exit code and what it prints."""
        options = [word for word in argv if word.startswith("-")]
        verb, *names = [word for word in argv if not word.startswith("-")] or ["list-units"]
        try:
            async with self._lock:
                return await self._do(verb, names, options)
        except RefusedError as refused:
            return refused.code, f"{refused}\n"

    async def _do(self, verb: str, names: list[str], options: list[str]) -> tuple[int, str]:
        match verb:
            case "show":
                return 0, self._show(names, options)
            case "start" | "stop" | "restart":
                for name in names:
                    await self._change(name, verb)
                return 0, ""
            case "is-active":
                states = [self._state(name) for name in names]
                return (0 if "active" in states else 3), "\n".join(states) + "\n"
            case "enable" | "disable":
                self._enable(names, wanted=verb == "enable")
                return 0, ""
            case "is-enabled":
                enabled = [self._enabled(name) for name in names]
                return (0 if any(enabled) else 1), "\n".join(
                    "enabled" if is_so else "disabled" for is_so in enabled
                ) + "\n"
            case "daemon-reload":
                self._reload()
                return 0, ""
            case _:
                raise RefusedError(f"{verb}: the stand-in for systemd of a demonstration does not know this verb")

    async def _change(self, name: str, verb: str) -> None:
        if verb != "start":
            await self._stop(name)
        if verb != "stop":
            await self._start(name)

    def _reload(self) -> None:
        for service in self._services.values():
            service.unit = self._load(service.unit.name) or service.unit

    async def close(self) -> None:
        """Stop everything, as a shutdown does."""
        await asyncio.gather(*(service.stop() for service in self._services.values()))

    async def boot(self) -> None:
        """Start what is enabled, as a boot does."""
        for link in sorted((self._folder / "default.target.wants").glob("*")):
            await self._start(link.name)

    def _load(self, name: str) -> Unit | None:
        return load(self._folder, name, {"h": str(self._home), "t": str(self._runtime)})

    def _must_load(self, name: str) -> Unit:
        unit = self._load(name)
        if unit is None:
            raise RefusedError(f"Unit {name} not found.", _NOT_FOUND)
        return unit

    async def _start(self, name: str) -> None:
        unit = self._must_load(name)
        if name.endswith(".target"):
            self._active_targets.add(name)
            wanted = [each for each in unit.words("Unit.Wants") if self._load(each)]
            # What is ordered behind another one of them waits for it, as After= says.
            later = [each for each in wanted if set(self._must_load(each).words("Unit.After")) & set(wanted)]
            await asyncio.gather(*(self._start(each) for each in wanted if each not in later))
            await asyncio.gather(*(self._start(each) for each in later))
            return
        service = self._services.setdefault(name, Service(unit, self._environment, self._runtime))
        if not service.running:
            service.unit = unit
        await service.start()

    async def _stop(self, name: str) -> None:
        self._must_load(name)
        parts = [each for each in self._services.values() if name in each.unit.words("Unit.PartOf")]
        own = [self._services[name]] if name in self._services else []
        self._active_targets.discard(name)
        await asyncio.gather(*(service.stop() for service in (*parts, *own)))

    def _state(self, name: str) -> str:
        if name.endswith(".target"):
            return "active" if name in self._active_targets else "inactive"
        return self._services[name].active if name in self._services else "inactive"

    def _wants_link(self, name: str) -> Path:
        wanted_by = self._must_load(name).words("Install.WantedBy")
        if not wanted_by:
            raise RefusedError(f"The unit file {name} has no installation config.")
        return self._folder / f"{wanted_by[0]}.wants" / name

    def _enable(self, names: list[str], *, wanted: bool) -> None:
        for name in names:
            link = self._wants_link(name)
            link.unlink(missing_ok=True)
            if wanted:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._folder / name)

    def _enabled(self, name: str) -> bool:
        return self._load(name) is not None and self._wants_link(name).is_symlink()

    def _show(self, names: list[str], options: list[str]) -> str:
        asked = next(
            (option.partition("=")[2].split(",") for option in options if option.startswith("--property=")), []
        )
        if not names:
            manager = {"Version": "demonstration", "SystemState": "running"}
            return "".join(f"{key}={value}\n" for key, value in manager.items() if not asked or key in asked)
        blocks = []
        for name in names:
            if "*" in name:
                blocks += [self._properties(each) for each in sorted(self._services) if fnmatch.fnmatch(each, name)]
            else:
                blocks.append(self._properties(name))
        return "\n".join(
            "".join(f"{key}={value}\n" for key, value in block.items() if not asked or key in asked) for block in blocks
        )

    def _properties(self, name: str) -> Mapping[str, str]:
        if name in self._services:
            return self._services[name].properties()
        unit = self._load(name)
        return {
            "Id": name,
            "LoadState": "loaded" if unit else "not-found",
            "ActiveState": self._state(name),
            "SubState": "active" if name in self._active_targets else "dead",
            "FragmentPath": str(unit.path) if unit else "",
            "NRestarts": "0",
            "NeedDaemonReload": "no",
        }


async def serve(home: Path, runtime: Path, path: str) -> None:
    """Run one manager until SIGTERM; systemctl finds it at `systemd.sock` in the runtime folder."""
    manager = Manager(home, runtime, path)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        code, text = await manager.answer(json.loads(await reader.readline()))
        writer.write(json.dumps({"code": code, "text": text}).encode() + b"\n")
        await writer.drain()
        writer.close()

    listening = runtime / "systemd.sock"
    listening.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(converse, str(listening))
    await manager.boot()
    await stopped.wait()
    server.close()
    await manager.close()
    listening.unlink(missing_ok=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), os.environ["PATH"]))
