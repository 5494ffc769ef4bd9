"""patterns: which hosts a `--limit` means, in Ansible's language. Touches nothing.

`a,b` or `a:b` is a union, `&c` keeps what is also in c, `!d` leaves out d; each is a host, a group, or a glob of both.
Unlike in Ansible, a term that matches nothing is an error: `all:!typo` would otherwise restart what was to be spared.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from acoupi_fleet.errors import UsageError

_COLON_OUTSIDE_BRACKETS = re.compile(r":(?![^\[\]]*\])")


def select(pattern: str, hosts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of the hosts that a pattern means, in the inventory's order.

    Raises:
        UsageError: If a term of it, or all of it together, matches nothing.
    """
    terms = _terms(pattern, {*hosts, *groups})
    matched = [
        (term[0] if term[0] in "&!" else "", _match(term.lstrip("&!"), pattern, hosts, groups)) for term in terms
    ]
    unions = [names for sign, names in matched if not sign]
    chosen = set().union(*unions) if unions else set(hosts)
    for sign, names in matched:
        if sign == "&":
            chosen &= names
        elif sign == "!":
            chosen -= names
    if not chosen:
        raise UsageError(f"--limit {pattern!r}: no host is left; correct the pattern")
    return [name for name in hosts if name in chosen]


def _terms(pattern: str, known: set[str]) -> list[str]:
    terms: list[str] = []
    for piece in pattern.split(","):
        term = piece.strip()
        # An IPv6 address that is a host's name has colons of its own.
        whole = term.lstrip("&!") in known
        terms.extend([term] if whole else (part.strip() for part in _COLON_OUTSIDE_BRACKETS.split(term)))
    terms = [term for term in terms if term]
    if not terms:
        raise UsageError(f"--limit {pattern!r}: it is empty; name a host or a group, or leave the option out")
    return terms


def _match(term: str, pattern: str, hosts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> set[str]:
    names: set[str] = set()
    for group, members in groups.items():
        if fnmatchcase(group, term):
            names.update(members)
    if term not in groups:  # as in Ansible, a group goes before a host of the same name
        names.update(host for host in hosts if fnmatchcase(host, term))
    if not names and term not in groups:
        near = difflib.get_close_matches(term, [*hosts, *groups], 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"groups are {', '.join(groups)}"
        raise UsageError(f"--limit {pattern!r}: {term!r} matches no host and no group; {hint}")
    if not names:
        raise UsageError(f"--limit {pattern!r}: the group {term!r} has no hosts; correct the pattern")
    return names
