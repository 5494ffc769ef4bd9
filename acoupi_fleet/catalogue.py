"""catalogue: an inventory, shown: for a person, or in the shape in which Ansible prints it. Touches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from acoupi_fleet.errors import UsageError
from acoupi_fleet.inventory import Host, Inventory

_SECRET = re.compile(r"pass(word|wd)?$|_pass$|secret|token|headers|api_?key", re.IGNORECASE)
MASK = "**********"


def lines(hosts: Sequence[Host]) -> Iterator[str]:
    """One line a host: its name, how it is reached, and its groups."""
    rows = [(host.name, _address(host), ", ".join(host.groups)) for host in hosts]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for row in rows:
        yield f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip()


def _address(host: Host) -> str:
    to = host.connection
    user = f"{to.user}@" if to.user else ""
    return f"{user}{to.address}{f':{to.port}' if to.port else ''}"


def variables(host: Host) -> dict[str, Any]:
    """A host's merged variables as they are written, secrets masked."""
    shown: dict[str, Any] = {}
    for key, variable in host.variables.items():
        name = variable.key if variable.raw is not None else ".".join(variable.path) or key
        shown[name] = MASK if _SECRET.search(name) else variable.value
    return shown


def as_ansible(inventory: Inventory) -> dict[str, Any]:
    """What `ansible-inventory --list` prints of it."""
    groups = {name: {"hosts": list(hosts)} for name, hosts in inventory.groups.items() if name != "all" and hosts}
    return {
        "_meta": {"hostvars": {host.name: variables(host) for host in inventory.hosts}},
        "all": {"children": sorted(groups)},
        **groups,
    }


def named(inventory: Inventory, name: str) -> Host:
    """One host by its name.

    Raises:
        UsageError: If there is no such host.
    """
    host = next((host for host in inventory.hosts if host.name == name), None)
    if host is None:
        raise UsageError(f"--host {name}: {inventory.path} has no such host; acoupi-fleet inventory lists them")
    return host
