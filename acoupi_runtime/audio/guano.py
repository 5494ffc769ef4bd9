"""guano: what a file says of itself, as GUANO text (version 1.0). Reads files; in finished ones writes only their time.

The standard's fields are for other programs; two lines of our own hold all that rows of the store are made of.
"""

from __future__ import annotations

import os
import uuid
from datetime import datetime
from functools import cache
from pathlib import Path

from pydantic import ValidationError

import acoupi_runtime
from acoupi_runtime.audio import flacfile, wavfile
from acoupi_runtime.data import Capture, Recording

_RECORDING = "Acoupi|Recording"
_CAPTURE = "Acoupi|Capture"
_DEVICE_TREE = Path("/sys/firmware/devicetree/base")


def compose(recording: Recording, capture: Capture) -> str:
    """The text of a recording's metadata."""
    place = recording.deployment
    fields: dict[str, str | int | float | None] = {
        "GUANO|Version": "1.0",
        "Timestamp": recording.created_on.isoformat(timespec="microseconds"),
        "Length": f"{recording.duration:.6f}",
        "Samplerate": recording.samplerate,
        "TE": f"{recording.time_expansion:g}" if recording.time_expansion != 1 else None,
        "Loc Position": None
        if place.latitude is None or place.longitude is None
        else f"{place.latitude} {place.longitude}",
        "Make": "acoupi-fleet",
        "Model": _device("model"),
        "Serial": _device("serial-number") or f"{uuid.getnode():012x}",
        "Firmware Version": acoupi_runtime.__version__,
        "Acoupi|Deployment Name": " ".join(place.name.split()),
        _RECORDING: recording.model_dump_json(exclude={"path"}),
        _CAPTURE: capture.model_dump_json(),
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)


def parse(text: str) -> tuple[Recording, Capture] | None:
    """What a text of ours says; None if it is not one."""
    lines = dict(line.split(": ", 1) for line in text.split("\n") if ": " in line)
    try:
        return Recording.model_validate_json(lines[_RECORDING]), Capture.model_validate_json(lines[_CAPTURE])
    except (KeyError, ValidationError):
        return None


def read_guano(path: Path) -> tuple[Recording, Capture] | None:
    """What a finished file says of itself; None if it is not a recording of ours.

    Raises:
        OSError: If it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = (flacfile if path.suffix == ".flac" else wavfile).read_text(descriptor)
    finally:
        os.close(descriptor)
    found = parse(text.decode(errors="replace")) if text else None
    return found and (found[0].model_copy(update={"path": path}), found[1])


def correct_time(path: Path, created_on: datetime) -> None:
    """Write into a finished file when it was really made, in place: its metadata is within one page of the disk.

    Raises:
        OSError: If it cannot be read or written.
    """
    found = read_guano(path)
    if found is None:
        return
    recording, capture = found
    recording = recording.model_copy(update={"created_on": created_on})
    text = compose(recording, capture.model_copy(update={"clock_synced": True})).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if path.suffix == ".flac":
            flacfile.replace_text(descriptor, text)
        elif (head := wavfile.read_head(descriptor)) is not None:
            wavfile.finish(descriptor, head, text)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def _device(name: str) -> str | None:
    try:
        return (_DEVICE_TREE / name).read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
