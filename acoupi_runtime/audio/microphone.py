"""microphone: the real one, through PortAudio. The only importer of sounddevice, and only when a microphone is used.

Importing sounddevice initialises PortAudio, which costs tens of MiB and lists the devices there are at that moment: one
that is plugged in later is seen only after `reset()`.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from acoupi_runtime.audio.ring import Ring
from acoupi_runtime.configuration import MicrophoneConfig, RecordingConfig
from acoupi_runtime.errors import DeviceConfigurationError, DeviceUnavailableError

_LATENCY = 2.0
"""Seconds of sound that the sound card's own buffer is asked to hold, should Python not come to take it."""
_LEAST_DELAY, _MOST_DELAY = -1.0, 10.0
"""Seconds between which PortAudio's word on when a block was heard is believed."""
_HARDWARE = "(hw:"


def choose(wanted: str | None, devices: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """Find a capture device: its index and full name.

    Args:
        wanted: Part of its name, in any case; None for the only one.
        devices: All devices, as PortAudio lists them.

    Raises:
        DeviceUnavailableError: If there is none, or none of that name.
        DeviceConfigurationError: If there are several.
    """
    inputs = [(index, str(each["name"])) for index, each in enumerate(devices) if each["max_input_channels"] > 0]
    names = "; ".join(name for _, name in inputs) or "none"
    if wanted is not None:
        exact = [each for each in inputs if each[1] == wanted]
        found = exact or [each for each in inputs if wanted.casefold() in each[1].casefold()]
        where = f"microphone {wanted!r}"
    else:
        # A card is also listed under the names of what ALSA makes of it (default, sysdefault, ...).
        found = [each for each in inputs if _HARDWARE in each[1]] or inputs
        where = "microphone"
    if not found:
        raise DeviceUnavailableError(f"{where}: not found; plug it in, or name one of these: {names}")
    if len(found) > 1:
        raise DeviceConfigurationError(
            f"{where}: there are several: {'; '.join(name for _, name in found)}; "
            "set program.microphone.device_name to part of the name of one"
        )
    return found[0]


def find(wanted: str | None) -> str:
    """The full name of the microphone that is meant, without opening it.

    Raises:
        DeviceUnavailableError: If it is not there.
        DeviceConfigurationError: If the name is ambiguous.
    """
    return _choose_now(_sounddevice(), wanted)[1]


def _choose_now(sd: ModuleType, wanted: str | None) -> tuple[int, str]:
    try:
        return choose(wanted, list(sd.query_devices()))
    except sd.PortAudioError as error:
        raise DeviceUnavailableError(f"microphone: cannot be looked for ({error}); see to PortAudio") from error


class Microphone:
    """A sound card, by part of its name: names are stable over a reboot, indices are not."""

    def __init__(self, microphone: MicrophoneConfig, recording: RecordingConfig) -> None:
        self._microphone = microphone
        self._recording = recording

    def open(self, ring: Ring) -> _MicrophoneStream:
        """Open it and start to listen.

        Raises:
            DeviceUnavailableError: If it is not there, or in use.
            DeviceConfigurationError: If it refuses the samplerate or the channels, or its name is ambiguous.
        """
        sd = _sounddevice()
        wanted = self._microphone
        index, name = _choose_now(sd, wanted.device_name)
        form = {
            "device": index,
            "samplerate": wanted.samplerate,
            "channels": wanted.audio_channels,
            "dtype": "int16" if self._recording.bits == 16 else "int32",  # noqa: PLR2004
        }
        try:
            sd.check_input_settings(**form)
        except (sd.PortAudioError, ValueError) as error:
            most = sd.query_devices(index)["max_input_channels"]
            if _is_refusal(sd, error):
                raise DeviceConfigurationError(
                    f"{name}: refuses {wanted.samplerate} Hz with {wanted.audio_channels} channel(s) ({error}); "
                    f"set program.microphone.samplerate to one it has, and audio_channels to at most {most}"
                ) from error
            raise DeviceUnavailableError(f"{name}: cannot be opened ({error}); see whether it is in use") from error
        return _MicrophoneStream(sd, form, name, self._recording.chunksize, ring)

    def reset(self) -> None:
        """Make PortAudio look at the devices anew: it lists them only once.

        Raises:
            DeviceUnavailableError: If PortAudio does not come back.
        """
        sd = _sounddevice()
        try:
            sd._terminate()  # noqa: SLF001 - there is no public way, and python-sounddevice documents this one
            sd._initialize()  # noqa: SLF001
        except sd.PortAudioError as error:
            raise DeviceUnavailableError(f"microphone: PortAudio does not start ({error})") from error


class _MicrophoneStream:
    """An open stream. PortAudio's thread calls `_arrived` with each block, which copies it and notes when."""

    def __init__(self, sd: ModuleType, form: Mapping[str, Any], name: str, block: int, ring: Ring) -> None:
        self.device = name
        self._sd = sd
        self._ring = ring
        self._block_seconds = block / form["samplerate"]
        try:
            self._stream = sd.RawInputStream(**form, blocksize=block, latency=_LATENCY, callback=self._arrived)
            self._stream.start()
        except sd.PortAudioError as error:
            raise DeviceUnavailableError(f"{name}: cannot be opened ({error}); see whether it is in use") from error

    def poll(self) -> None:
        """Look whether it is still there.

        Raises:
            DeviceUnavailableError: If it is gone.
        """
        if not self._stream.active:
            raise DeviceUnavailableError(f"{self.device}: has stopped; see to its cable")

    def close(self) -> None:
        """Stop at once and let go of the device."""
        try:
            self._stream.abort(ignore_errors=True)
            self._stream.close(ignore_errors=True)
        except self._sd.PortAudioError as error:
            raise DeviceUnavailableError(f"{self.device}: cannot be closed ({error})") from error

    def _arrived(self, block: Any, frames: int, times: Any, status: Any) -> None:
        # Nothing but the copy and the note: whatever takes long here is sound that is lost.
        del frames
        delay = times.currentTime - times.inputBufferAdcTime - self._block_seconds
        self._ring.write(
            block,
            time.clock_gettime(time.CLOCK_BOOTTIME) - (delay if _LEAST_DELAY < delay < _MOST_DELAY else 0),
            overflow=bool(status.input_overflow),
        )


def _is_refusal(sd: ModuleType, error: Exception) -> bool:
    """Whether the device itself is there, and does not like what is asked of it."""
    if not isinstance(error, sd.PortAudioError) or len(error.args) < 2:  # noqa: PLR2004
        return True
    invalid_channels, invalid_rate, bad_format = -9998, -9997, -9994
    return error.args[1] in {invalid_channels, invalid_rate, bad_format}


def _sounddevice() -> ModuleType:
    if "sounddevice" not in sys.modules:
        _hush_alsa()
    try:
        return importlib.import_module("sounddevice")
    except OSError as error:
        raise DeviceUnavailableError(f"microphone: PortAudio is missing ({error}); install libportaudio2") from error


def _hush_alsa() -> None:
    """Keep ALSA from filling the journal: a missing microphone is looked for again and again, with 20 lines each time.

    PortAudio's errors say enough. The handler has to be a C function that ignores what it is given: one of Python's
    would need memory that is writable and executable, which the unit denies.
    """
    try:
        alsa, libc = ctypes.CDLL("libasound.so.2"), ctypes.CDLL(None)
        alsa.snd_lib_error_set_handler(ctypes.cast(libc.getpid, ctypes.c_void_p))
    except (OSError, AttributeError):
        return
