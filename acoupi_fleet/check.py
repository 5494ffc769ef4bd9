"""check: what provisioning would change, and whether the sensor is well as it is. Reads devices, writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from acoupi_fleet.desired import Desired
from acoupi_fleet.errors import HostError
from acoupi_fleet.inventory import Host
from acoupi_fleet.provision import Event, Note, Options, Result, provision
from acoupi_fleet.remote import HostKeys
from acoupi_fleet.status import Look, look
from acoupi_fleet.together import together


def check(
    hosts: Sequence[tuple[Host, Desired]], *, options: Options, keys: HostKeys, observe: Callable[[Event], None]
) -> list[Result]:
    """Compare each host with what it should be, then look whether it works.

    Args:
        hosts: Each host with what it should be.
        options: How to go about it; only its reading half is used.
        keys: The host keys that are trusted.
        observe: Called with notes, and with each result once it is whole.

    Returns:
        One result for each host: `changed` is drift, `failed` does not work.
    """
    seen = provision(hosts, options=replace(options, check=True), observe=lambda event: _only_notes(event, observe))
    compared = {result.host: result for result in seen}
    there = [host for host, _ in hosts if compared[host.name].status in {"ok", "changed"}]
    for host, health in together(there, options.forks, lambda host: look(host, keys)):
        compared[host.name] = _with_health(compared[host.name], health, observe, require_sound=options.require_sound)
    for result in compared.values():
        observe(result)
    return [compared[host.name] for host, _ in hosts]


def _only_notes(event: Event, observe: Callable[[Event], None]) -> None:
    if isinstance(event, Note):
        observe(event)


def _with_health(
    result: Result, seen: Look | HostError, observe: Callable[[Event], None], *, require_sound: bool
) -> Result:
    """A host that is what it should be and does not work has failed; one that nobody provisioned has only drifted."""
    if isinstance(seen, HostError):
        return replace(result, status="failed", error=str(seen), exit_code=seen.exit_code)
    if seen.health == "well" or seen.state == "not provisioned":
        return result
    text = ": ".join(filter(None, [seen.state, seen.detail]))
    if seen.health == "problem" or require_sound:
        return replace(result, status="failed", error=text, exit_code=HostError.exit_code)
    observe(Note(result.host, "warning", text))
    return replace(result, warnings=(*result.warnings, text))
