"""source: where sound comes from, behind a small seam. Opens nothing itself.

A source opens a stream; the stream brings frames into a ring, in a thread of its own or when it is polled.
"""

from __future__ import annotations

from typing import Protocol

from acoupi_runtime.audio.ring import Ring
from acoupi_runtime.clock import Clock
from acoupi_runtime.configuration import MicrophoneConfig, RecordingConfig

FILE = "file:"
"""A device name that begins with it names a WAV file, which is played in a loop."""


class Stream(Protocol):
    """An open microphone.

    Attributes:
        device: Its full name.
    """

    device: str

    def poll(self) -> None:
        """Bring in what has arrived; for a microphone with a thread of its own, only look whether it is still there.

        Raises:
            DeviceUnavailableError: If it is gone.
        """

    def close(self) -> None:
        """Let go of the device. The ring is not written to afterwards."""


class Source(Protocol):
    """A microphone, there or not."""

    def open(self, ring: Ring) -> Stream:
        """Open it, to write into a ring of its own, from frame 0 on.

        Raises:
            DeviceUnavailableError: If it is not there.
            DeviceConfigurationError: If it refuses what is asked of it, or its name is ambiguous.
        """

    def reset(self) -> None:
        """Look at the devices anew, as after one was plugged in. No stream is open."""


def open_source(microphone: MicrophoneConfig, recording: RecordingConfig, clock: Clock) -> Source:
    """The source that a configuration names."""
    name = microphone.device_name
    if name is not None and name.startswith(FILE):
        from acoupi_runtime.audio.filesource import FileSource

        return FileSource(name.removeprefix(FILE), microphone, recording, clock)
    from acoupi_runtime.audio.microphone import Microphone

    return Microphone(microphone, recording)
