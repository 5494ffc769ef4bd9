"""restart: everything of ours on a host starts anew; it counts when sound flows again. Asks devices to act."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from acoupi_fleet.errors import HostError, UnreachableError, understood
from acoupi_fleet.inventory import Host
from acoupi_fleet.provision import Event, Note, Result
from acoupi_fleet.remote import HostKeys, LinkLostError, converse
from acoupi_fleet.status import scope_of
from acoupi_fleet.together import together

WELL_WITHIN = 60.0
"""Seconds that a sensor may take until frames arrive; a Pi Zero 2 W takes about 15."""


def restart(
    hosts: Sequence[Host],
    *,
    forks: int,
    serial: int | None,
    require_sound: bool,
    keys: HostKeys,
    accepted: Callable[[str], None] | None,
    observe: Callable[[Event], None],
) -> list[Result]:
    """Restart hosts, in batches where `serial` says how many; after a batch in which one failed, no other is begun.

    Returns:
        One result for each host, in the given order.
    """
    results: dict[str, Result] = {}
    size = serial or max(len(hosts), 1)
    for first in range(0, len(hosts), size):
        batch = hosts[first : first + size]
        if any(result.exit_code for result in results.values()):
            for host in batch:
                results[host.name] = Result(host.name, "skipped", error="not restarted, since one before it failed")
                observe(results[host.name])
            continue
        for host, result in together(batch, forks, lambda host: _one(host, keys, accepted, require_sound, observe)):
            results[host.name] = result if isinstance(result, Result) else failure(host, result)
            observe(results[host.name])
    return [results[host.name] for host in hosts]


def _one(
    host: Host,
    keys: HostKeys,
    accepted: Callable[[str], None] | None,
    require_sound: bool,  # noqa: FBT001 - private, and always named where it begins
    observe: Callable[[Event], None],
) -> Result:
    began = time.monotonic()
    question = {"scope": scope_of(host), "seconds": WELL_WITHIN, "require_sound": require_sound}

    def hear(event: dict[str, object]) -> None:
        match event:
            case {"event": "progress", "text": str(text)}:
                observe(Note(host.name, "progress", text))
            case _:
                pass

    with converse(host, scope_of(host), keys=keys, accepted=accepted) as session:
        answer = session.ask("restart", question, observe=hear)
    with understood():
        warnings = tuple(map(str, answer["warnings"].values()))
        restarted = ", ".join(answer["restarted"])
        why = "; ".join(answer["problems"].values())
    for warning in warnings:
        observe(Note(host.name, "warning", warning))
    result = Result(
        host.name,
        "changed",
        changes=(restarted,) if restarted else (),
        warnings=warnings,
        seconds=time.monotonic() - began,
    )
    if why:
        return replace(result, status="failed", error=f"{why}; look at `journalctl -u 'acoupi-*'` there", exit_code=2)
    return result


def failure(host: Host, error: HostError) -> Result:
    """The result of a host on which nothing could be done, or nobody knows what was."""
    unreachable = isinstance(error, UnreachableError)
    lost = isinstance(error, LinkLostError)
    return Result(
        host.name,
        "unreachable" if unreachable else "failed",
        error=str(error),
        exit_code=HostError.exit_code if lost else error.exit_code,
    )
