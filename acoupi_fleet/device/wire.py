"""wire: how the two ends talk: frames of JSON, and binary where it was announced. Touches only its stream."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """What frames are read from: a file, or a channel; read() blocks, and gives b"" when the other end is gone."""

        def read(self, size: int) -> bytes:
            """At most so many bytes."""


GREETING = "ACOUPI-AGENT "
LARGEST_FRAME = 64 * 1024 * 1024


class LinkLostError(Exception):
    """The other end went away in the middle of a frame, or said something that is no frame."""


def pack(message: dict[str, Any]) -> bytes:
    """One frame."""
    text = json.dumps(message, separators=(",", ":")).encode("utf-8")
    return struct.pack(">I", len(text)) + text


def unpack(stream: Readable) -> dict[str, Any] | None:
    """The next frame, or None when the other end has closed between two frames."""
    first = stream.read(1)
    if not first:
        return None
    (size,) = struct.unpack(">I", first + exactly(stream, 3))
    if size > LARGEST_FRAME:
        raise LinkLostError("the other end does not speak in frames")
    text = exactly(stream, size)
    try:
        message = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise LinkLostError("a frame that is no JSON") from None
    if not isinstance(message, dict):
        raise LinkLostError("a frame that is no object")
    return message


def exactly(stream: Readable, size: int) -> bytes:
    """Read so many bytes, in as many pieces as they come."""
    pieces = []
    while size > 0:
        piece = stream.read(min(size, 1 << 20))
        if not piece:
            raise LinkLostError("the other end went away")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
