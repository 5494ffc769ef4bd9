"""errors: every way in which the workstation's program can refuse or fail, with its exit code. Touches nothing.

FleetError
├── UsageError             1   a wrong command line
├── InventoryError         1   a wrong line of an inventory: `file:line: what; what to do`
├── ConfigurationError     1   a value that the runtime's models refuse, named by its line
└── HostError              2   one host failed; the others go on
    ├── UnreachableError   4   no connection: nothing was changed
    └── HostKeyError       5   the host's key is not the one that is trusted: nothing was sent
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_OK = 0
EXIT_DRIFT = 3
EXIT_INTERRUPTED = 130


class FleetError(Exception):
    """The root: its text is one clear line, `where: what is wrong; what to do`."""

    exit_code: ClassVar[int] = 1


class UsageError(FleetError):
    """The command line asks for something that does not exist."""


class InventoryError(FleetError):
    """A line of the inventory cannot be understood."""


class ConfigurationError(FleetError):
    """A value of the inventory is refused by the model that will read it on the device."""


class HostError(FleetError):
    """Something went wrong on one host."""

    exit_code: ClassVar[int] = 2


class UnreachableError(HostError):
    """The host could not be reached, or would not let us in; nothing was changed there."""

    exit_code: ClassVar[int] = 4


class HostKeyError(HostError):
    """The host showed a key that is not trusted; nothing was sent to it."""

    exit_code: ClassVar[int] = 5


@contextmanager
def understood() -> Iterator[None]:
    """While a device's answer is read: one of another shape is that host's failure, and not the end of all hosts.

    Raises:
        HostError: The answer has not the shape that it should have.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise HostError(
            f"its answer is not understood; run again, and report this if it stays ({type(error).__name__}: {error})"
        ) from error
