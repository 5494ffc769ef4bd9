"""hostnames: from the first word of a host line to the names it stands for. Touches nothing."""

from __future__ import annotations

import ipaddress
import itertools
import re
import string
from collections.abc import Iterator, Sequence

MAX_HOSTS = 10_000
"""A slip such as `[1:99999999]` is told at once, instead of filling the memory."""

MAX_PORT = 65_535

# A name becomes a folder of `render` and an argument of `ssh -G`: it begins like neither an option nor a path.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,252}")
_RANGE = re.compile(r"\[([^\[\]]*)\]")
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?")


class NameProblemError(ValueError):
    """What is wrong with the word, and what to do; the caller knows the line."""


def expand(word: str) -> tuple[list[str], int | None]:
    """The names that a word stands for, and the port behind its colon.

    Raises:
        NameProblemError: If it is no name, no range and no port.
    """
    pattern, port = _split_port(word)
    names = list(_expand_ranges(pattern))
    for name in names:
        check(name)
    return names, port


def check(name: str) -> None:
    """Refuse what would be dangerous as a path or as an argument.

    Raises:
        NameProblemError: If the name is not safe.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise NameProblemError(
            f"{name[:80]!r} is no host name; use letters, digits and . _ : - (at most 253, not first . : -, no '..')"
        )


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _split_port(word: str) -> tuple[str, int | None]:
    bracketed = _BRACKETED.fullmatch(word)
    if bracketed and _is_ipv6(bracketed[1]):
        return bracketed[1], _port(bracketed[2]) if bracketed[2] else None
    rest = _RANGE.sub("", word)
    if rest.count(":") != 1 or "[" in rest:
        return word, None  # no colon, the colons of an IPv6 address, or those of half a range
    pattern, _, port = word.rpartition(":")
    if "]" in port:
        return word, None
    return pattern, _port(port)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_PORT)) and 1 <= int(text) <= MAX_PORT):
        raise NameProblemError(
            f"after the colon stands {text[:80]!r}; put a port from 1 to {MAX_PORT} there, or nothing"
        )
    return int(text)


def _expand_ranges(pattern: str) -> Iterator[str]:
    pieces = _RANGE.split(pattern)  # text, range, text, range, ..., text
    spans = [_range(bounds) for bounds in pieces[1::2]]
    count = 1
    for span in spans:
        count *= len(span)
        if count > MAX_HOSTS:
            raise NameProblemError(f"{pattern[:80]!r} stands for more than {MAX_HOSTS} hosts; make the range smaller")
    for choice in itertools.product(*spans):
        yield "".join(itertools.chain(*zip(pieces[::2], (*choice, ""), strict=True)))


def _range(text: str) -> Sequence[str]:
    """The words of `01:20`, `a:f` or `1:10:3`, both ends included, as in Ansible."""
    first, *rest = text.split(":")
    if len(rest) not in (1, 2) or not rest[0]:
        raise NameProblemError(f"[{text[:80]}] is no range; write [first:last] or [first:last:step]")
    first, last, step = first or "0", rest[0], _number(rest[1], text) if len(rest) == 2 else 1  # noqa: PLR2004
    if step < 1:
        raise NameProblemError(f"[{text[:80]}]: a step is at least 1; correct it")
    letters = string.ascii_letters
    if len(first) == len(last) == 1 and first in letters and last in letters:
        span: Sequence[str] = letters[letters.index(first) : letters.index(last) + 1 : step]
    else:
        width = len(first) if first.startswith("0") and len(first) > 1 else 0
        if width and width != len(last):
            raise NameProblemError(
                f"[{text[:80]}]: with leading zeros both ends have the same length; write them alike"
            )
        numbers = range(_number(first, text), _number(last, text) + 1, step)
        if len(numbers) > MAX_HOSTS:
            raise NameProblemError(f"[{text[:80]}] stands for more than {MAX_HOSTS} hosts; make the range smaller")
        span = [f"{number:0{width}d}" for number in numbers]
    if not span:
        raise NameProblemError(f"[{text[:80]}] is empty; the first is not behind the last")
    return span


def _number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):  # noqa: PLR2004 - fits 64 bits, so that len() does
        raise NameProblemError(f"[{whole[:80]}] is no range; its ends are two numbers or two letters")
    return int(text)
