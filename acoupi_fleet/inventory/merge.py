"""merge: from lines to hosts. The one place where groups and variables come together; touches nothing.

The order is Ansible's: `all`, then groups from far to near (depth, then `ansible_group_priority`, then name), then the
host; what comes later wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from types import MappingProxyType

from pydantic import SecretStr

from acoupi_fleet.errors import InventoryError
from acoupi_fleet.inventory import connection
from acoupi_fleet.inventory.ini import GroupLines, HostLines, Lines
from acoupi_fleet.inventory.keys import Assignment, Level, level, overlay
from acoupi_fleet.inventory.model import Host, Variable

PRIORITY = "ansible_group_priority"


def merge(lines: Lines) -> tuple[tuple[Host, ...], Mapping[str, tuple[str, ...]]]:
    """The hosts with all that holds for them, in the order of the file, and the names of each group's hosts.

    Args:
        lines: What the inventory says.

    Raises:
        InventoryError: If a group is not declared, or contains itself, or a host cannot be reached as it is described.
    """
    _refuse_undeclared(lines)
    parents = _parents(lines)
    ranking = _ranking(lines, parents)
    levels = {name: _group_level(group) for name, group in lines.groups.items()}
    lineage = {name: _with_ancestors(name, parents) for name in ranking}
    own: dict[str, set[str]] = {name: set() for name in lines.hosts}
    for group in lines.groups.values():
        for name in group.hosts:
            own[name].add(group.name)
    hosts = []
    members: dict[str, list[str]] = {name: [] for name in lines.groups}
    for name, host_lines in lines.hosts.items():
        direct = own[name] - {"all", "ungrouped"} or {"ungrouped"}
        ranked = [group for group in ranking if any(group in lineage[near] for near in direct)]
        hosts.append(_host(name, host_lines, ranked, levels))
        for above in ranked:
            members[above].append(name)
    return tuple(hosts), MappingProxyType({name: tuple(names) for name, names in sorted(members.items())})


def _host(name: str, lines: HostLines, groups: list[str], levels: Mapping[str, Level]) -> Host:
    merged: Level = {}
    for group in groups:
        merged = overlay(merged, levels[group])
    if lines.port is not None:
        merged = overlay(merged, level([lines.port]))
    merged = overlay(merged, level(lines.assignments))
    variables = {".".join(path): variable for path, variable in sorted(merged.items())}
    reached = connection.resolve(name, variables)
    if reached.sudo_password is not None:
        variables["sudo_password"] = _masked(variables["sudo_password"], reached.sudo_password)
    near_groups = tuple(group for group in groups if group != "all")
    return Host(name, reached, MappingProxyType(variables), near_groups, lines.origin)


def _masked(variable: Variable, secret: SecretStr) -> Variable:
    return replace(variable, value=secret, raw=None)


def _refuse_undeclared(lines: Lines) -> None:
    declared = [group.name for group in lines.groups.values() if group.declared]
    for group in lines.groups.values():
        if not group.declared:
            near = difflib.get_close_matches(group.name, declared, 1)
            hint = f"did you mean {near[0]!r}? If not, write" if near else "write"
            raise InventoryError(
                f"{group.mentioned}: there is no group {group.name!r}; {hint} a section [{group.name}]"
            )


def _parents(lines: Lines) -> dict[str, list[str]]:
    # Lists, not sets: a circle is then always told from the same group on.
    parents: dict[str, list[str]] = {name: [] for name in lines.groups}
    for group in lines.groups.values():
        for child in group.children:
            parents[child].append(group.name)
    for name, above in parents.items():
        if not above and name != "all":
            above.append("all")
    return parents


def _ranking(lines: Lines, parents: Mapping[str, list[str]]) -> list[str]:
    """All groups, the ones that win last."""
    try:
        order = list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        circle: list[str] = error.args[1]
        origins = [lines.groups[above].children.get(below) for above, below in pairwise(circle)]
        where = next(origin for origin in origins if origin is not None)
        names = " > ".join(circle)
        raise InventoryError(f"{where}: groups contain each other: {names}; take one of them out") from None
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[above] for above in parents[name]), default=-1)
    return sorted(order, key=lambda name: (depth[name], _priority(lines.groups[name]), name))


def _with_ancestors(name: str, parents: Mapping[str, list[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        group = waiting.pop()
        if group not in found:
            found.add(group)
            waiting.extend(parents[group])
    return found


def _priority(group: GroupLines) -> int:
    given = [assignment for assignment in group.assignments if assignment.key == PRIORITY]
    if not given:
        return 1
    try:
        return int(given[-1].value)
    except (ValueError, TypeError, OverflowError):
        raise InventoryError(f"{given[-1].origin}: {PRIORITY}: it is no whole number; correct it") from None


def _group_level(group: GroupLines) -> Level:
    assignments: list[Assignment] = [assignment for assignment in group.assignments if assignment.key != PRIORITY]
    return level(assignments)
