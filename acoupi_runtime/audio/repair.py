"""repair: makes whole what a crash or a power cut left behind. Touches only `.part` files that no recorder holds."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from acoupi_runtime.audio import flacfile, guano, wavfile
from acoupi_runtime.audio.paths import PART
from acoupi_runtime.data import Capture, Recording
from acoupi_runtime.disk import sync_dir

log = logging.getLogger(__name__)

BROKEN = ".broken"


def repair_parts(spool: Path) -> list[Path]:
    """Give each unfinished recording its sizes and its name; it is whole up to where it was cut, and says so.

    What holds no sound is deleted. What does not say what it is, is set aside as `.broken`, and kept.

    Returns:
        The files that are recordings now.
    """
    repaired = []
    for part in sorted(spool.glob(f"*{PART}")):
        if part.is_symlink():
            continue  # none of ours, whoever put it here
        try:
            made = _repair(part)
        except FileNotFoundError:
            continue  # it was completed meanwhile
        except OSError as error:
            log.error("%s: cannot be repaired now (%s); it is tried again", part, error)  # noqa: TRY400 - one line
        else:
            repaired += [made] if made is not None else []
    return repaired


def _repair(part: Path) -> Path | None:
    descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None  # a recorder is writing it
        if not os.path.samestat(os.fstat(descriptor), part.lstat()):
            return None  # the name has become another file's
        return _make_whole(part, descriptor)
    finally:
        os.close(descriptor)


def _make_whole(part: Path, descriptor: int) -> Path | None:
    if part.suffixes[-2:-1] == [".flac"]:
        found, frames = _flac(descriptor)
    else:
        found, frames = _wav(descriptor)
    if found is None:
        if _is_empty(descriptor):
            part.unlink()
            return None
        part.rename(part.with_name(part.name + BROKEN))
        log.warning("%s: does not say what it is; it is kept as %s", part, part.name + BROKEN)
        return None
    if not frames:
        part.unlink()
        return None
    recording, capture = found
    if capture.frames != frames or capture.rms is None:
        text = _cut_short(recording, capture, frames)
        _write(part, descriptor, text, frames)
        log.warning("%s: was cut short after %.1f s; it is kept", part, frames / recording.samplerate)
    os.fsync(descriptor)
    path = part.with_suffix("")
    part.rename(path)
    sync_dir(path.parent)
    return path


def _cut_short(recording: Recording, capture: Capture, frames: int) -> str:
    return guano.compose(
        recording.model_copy(update={"duration": frames / recording.samplerate}),
        capture.model_copy(update={"frames": frames, "truncated": True}),
    )


def _write(part: Path, descriptor: int, text: str, frames: int) -> None:
    if part.suffixes[-2:-1] == [".flac"]:
        flacfile.replace_text(descriptor, text.encode())
        return
    head = wavfile.read_head(descriptor)
    assert head is not None  # noqa: S101 - it was read a moment ago
    wavfile.finish(descriptor, head._replace(data_size=frames * head.form.frame_size), text.encode())


def _wav(descriptor: int) -> tuple[tuple[Recording, Capture] | None, int]:
    """What a WAV says it is, and how many whole frames are in it."""
    head = wavfile.read_head(descriptor)
    if head is None:
        return None, 0
    there = max(0, os.fstat(descriptor).st_size - head.start)
    size = min(head.data_size, there) if head.data_size else there
    return guano.parse(head.text.decode(errors="replace")), size // head.form.frame_size


def _flac(descriptor: int) -> tuple[tuple[Recording, Capture] | None, int]:
    """What a FLAC says it is, and how many frames are in it; what was cut short is made whole."""
    text = flacfile.read_text(descriptor)
    if text is None:
        return None, 0
    return guano.parse(text.decode(errors="replace")), flacfile.frames_of(descriptor) or flacfile.recover(descriptor)


def _is_empty(descriptor: int) -> bool:
    """Whether there is nothing in it: a power cut may also leave zeros."""
    place = 0
    while block := os.pread(descriptor, 1 << 20, place):
        if any(block):
            return False
        place += len(block)
    return True
