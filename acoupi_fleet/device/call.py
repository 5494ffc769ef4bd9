"""call: one request of the conversation, as the verb that answers it sees it. Touches nothing but the conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

from acoupi_fleet.device import wire

if TYPE_CHECKING:
    from collections.abc import Callable


class Call:
    """One request.

    Args:
        args: What the workstation asked with.
        tell: Sends a frame; never fails, since nobody may be listening any more.
        stream: Where the rest of what the workstation sends comes from.
    """

    def __init__(self, args: dict[str, Any], tell: Callable[[dict[str, Any]], None], stream: BinaryIO) -> None:
        self.args = args
        self._tell = tell
        self._stream = stream

    def say(self, event: str, **about: Any) -> None:
        """Tell the workstation something at once."""
        self._tell({"event": event, **about})

    def take(self, size: int) -> bytes:
        """The next bytes of what the workstation sends after this request."""
        return wire.exactly(self._stream, size)
