"""flacfile: FLAC files that are written while they grow, and can be repaired. The only importer of soundfile, lazily.

libsndfile writes the comments of a FLAC before its first frame. So room is kept in a comment of that size, and the
final metadata, a comment named GUANO, is written over it when the file is complete.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acoupi_runtime.audio.wavfile import Format, write_all

if TYPE_CHECKING:
    from acoupi_runtime.audio.ring import Frames

_GROWTH = 2048
_NAME = b"GUANO="
_STREAMINFO, _PADDING, _COMMENT = 0, 1, 4
_LAST = 0x80
_HEADER = 4
"""Bytes before each metadata block: whether it is the last one and its kind, and its length."""
_INFO = 4 + _HEADER
"""Where STREAMINFO, always the first block, begins."""
_FRAME_HEADER = 16
"""Bytes of the longest frame header, checksum included (RFC 9639, section 9.1)."""
_EXTRA_FOR_SIZE = {6: 1, 7: 2}
_EXTRA_FOR_RATE = {12: 1, 13: 2, 14: 2}
"""Codes of a header's third byte after which a size or a rate follows, and its bytes."""
_TAIL = 1 << 20
"""Bytes in which the last frame is looked for at once: several of the largest frames."""


class FlacFile:
    """A FLAC in the making.

    Attributes:
        frames: Frames that were handed to the encoder.
    """

    def __init__(self, descriptor: int, form: Format, text: str) -> None:
        import soundfile

        self._file = descriptor
        self._bits = form.bits
        self.frames = 0
        # It gets a descriptor of its own to close; the offset in the file is shared.
        self._sound: Any = soundfile.SoundFile(
            os.dup(descriptor), "w", form.samplerate, form.channels, f"PCM_{form.bits}", format="FLAC"
        )
        self._sound.comment = "\n" * (len(text.encode()) + _GROWTH)
        self._first_text = text
        self._begun = False

    def write(self, block: Frames) -> None:
        """Append frames.

        Raises:
            OSError: If they could not all be written.
        """
        samples = block if self._bits == 16 else block.astype("=i4") << 8  # noqa: PLR2004
        self._guarded(lambda: self._sound.write(samples))
        self.frames += len(block)
        if not self._begun and os.fstat(self._file).st_size:
            self._begun = True
            replace_text(self._file, self._first_text.encode())

    def sync(self) -> None:
        """Make what was written last over a power cut."""
        os.fsync(self._file)

    def finish(self, text: str) -> None:
        """Write what the encoder still holds, and the final metadata. Renaming the file is the caller's."""
        self._guarded(self._sound.close)
        replace_text(self._file, text.encode())

    @staticmethod
    def _guarded(action: Callable[[], Any]) -> None:
        import soundfile

        try:
            action()
        except (soundfile.SoundFileError, AssertionError) as error:
            # libsndfile does not pass on which system call failed and why; a full card is the usual reason.
            raise OSError(errno.ENOSPC, f"the encoder could not write ({error})") from error


def _blocks(descriptor: int) -> Iterator[tuple[int, int, int, bool]]:
    """The metadata blocks: kind, where the content begins, its length, whether it is the last one."""
    if os.pread(descriptor, 4, 0) != b"fLaC":
        return
    place, last = 4, False
    while not last:
        head = os.pread(descriptor, _HEADER, place)
        if len(head) < _HEADER:
            return
        last, length = bool(head[0] & _LAST), int.from_bytes(head[1:], "big")
        yield head[0] & ~_LAST, place + _HEADER, length, last
        place += _HEADER + length


def replace_text(descriptor: int, text: bytes) -> None:
    """Put a GUANO text into the room that was kept for it; what is over becomes padding.

    Raises:
        OSError: If there is no such room.
    """
    blocks = list(_blocks(descriptor))
    at = next((index for index, block in enumerate(blocks) if block[0] == _COMMENT), None)
    if at is None:
        raise OSError(errno.EINVAL, "no room for metadata in this FLAC")
    _, place, room, last = blocks[at]
    if not last and blocks[at + 1][0] == _PADDING:
        room, last = room + _HEADER + blocks[at + 1][2], blocks[at + 1][3]
    vendor = os.pread(descriptor, 4 + struct.unpack("<I", os.pread(descriptor, 4, place))[0], place)
    comment = vendor + struct.pack("<II", 1, len(_NAME) + len(text)) + _NAME + text
    padding = room - len(comment) - _HEADER
    if padding < 0:
        raise OSError(errno.EINVAL, "the metadata has outgrown its room")
    content = bytes([_COMMENT]) + len(comment).to_bytes(3, "big") + comment
    content += bytes([_PADDING | (_LAST if last else 0)]) + padding.to_bytes(3, "big") + bytes(padding)
    write_all(descriptor, content, place - _HEADER)


def read_text(descriptor: int) -> bytes | None:
    """The GUANO text of a FLAC; None if it has none."""
    for kind, place, length, _ in _blocks(descriptor):
        if kind == _COMMENT:
            content = os.pread(descriptor, length, place)
            at = content.find(_NAME)
            if at < 4:  # noqa: PLR2004 - the length of the comment stands before it
                return None
            size = struct.unpack("<I", content[at - 4 : at])[0]
            return content[at + len(_NAME) : at + size].strip()
    return None


def frames_of(descriptor: int) -> int:
    """Frames that a FLAC says it has; 0 while it is being written."""
    info = os.pread(descriptor, 34, _INFO)
    return int.from_bytes(info[13:18], "big") & ((1 << 36) - 1)


def recover(descriptor: int) -> int:
    """Make whole what was cut short: what stands behind the last complete frame is cut off.

    Returns:
        Frames of sound that are left.

    Raises:
        OSError: If it cannot be written.
    """
    blocks = list(_blocks(descriptor))
    if not blocks or not blocks[-1][3]:
        return 0
    info = os.pread(descriptor, 34, _INFO)
    last = _last_frame(descriptor, blocks[-1][1] + blocks[-1][2])
    if last is None:
        return 0
    place, number = last
    length = _length_of_frame(os.pread(descriptor, os.fstat(descriptor).st_size - place, place))
    os.ftruncate(descriptor, place + length)
    frames = (number + (length > 0)) * int.from_bytes(info[2:4], "big")
    total = (int.from_bytes(info[13:18], "big") & (0xF << 36)) | frames
    # An MD5 of zeros means that none was computed (RFC 9639, section 8.2).
    write_all(descriptor, total.to_bytes(5, "big") + bytes(16), _INFO + 13)
    return frames


def read_blocks(path: Path, frames: int) -> Iterator[Frames]:
    """The sound of a FLAC, full scale being 1, as arrays of up to so many frames by channels."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        yield from file.blocks(frames, dtype="float32", always_2d=True)


def _length_of_frame(content: bytes) -> int:
    """Bytes of the frame with which a FLAC ends; 0 if it is cut. Zeros may follow it, as a power cut leaves them."""
    bare = content.rstrip(b"\0")
    # The checksum at its end may itself have zeros. It stays right when more are added, so that the shortest is meant.
    for length in range(len(bare), min(len(bare) + 2, len(content)) + 1):
        if _checksum(content[: length - 2], 16, 0x8005) == int.from_bytes(content[length - 2 : length], "big"):
            return length
    return 0


def _last_frame(descriptor: int, start: int) -> tuple[int, int] | None:
    """The last frame that begins in a FLAC: where, and its number."""
    size = os.fstat(descriptor).st_size
    # All frames but the last one of a closed file begin alike: the same size, rate, channels and bits.
    alike = os.pread(descriptor, 4, start)
    end = size
    while end > start:
        begin = max(start, end - _TAIL)
        window = os.pread(descriptor, end + _FRAME_HEADER - begin, begin)
        at = window.rfind(alike, 0, end - begin)
        while at >= 0:
            number = _frame_number(window[at : at + _FRAME_HEADER])
            if number is not None:
                return begin + at, number
            at = window.rfind(alike, 0, at)
        end = begin
    return None


def _frame_number(header: bytes) -> int | None:
    """The number in a frame's header; None if its checksum is wrong, so that it is none."""
    if len(header) < _FRAME_HEADER // 2:
        return None
    ones = 8 - (~header[4] & 0xFF).bit_length()
    after = 4 + max(1, ones)
    number = header[4] & (0x7F >> ones)
    for byte in header[5:after]:
        number = number << 6 | byte & 0x3F
    length = after + _EXTRA_FOR_SIZE.get(header[2] >> 4, 0) + _EXTRA_FOR_RATE.get(header[2] & 15, 0)
    return number if len(header) > length and _checksum(header[:length], 8, 0x07) == header[length] else None


def _checksum(content: bytes, width: int, polynomial: int) -> int:
    """The CRC of some bytes, most significant bit first, as FLAC has it."""
    top, mask = 1 << (width - 1), (1 << width) - 1
    table = []
    for value in range(256):
        entry = value << (width - 8)
        for _ in range(8):
            entry = (entry << 1) ^ (polynomial if entry & top else 0)
        table.append(entry & mask)
    crc = 0
    for byte in content:
        crc = (crc << 8 & mask) ^ table[crc >> (width - 8) ^ byte]
    return crc
