"""recorder: the loop that turns a microphone into recordings. Touches the microphone, the spool, and ACOUPI_HOME/run.

One thread beside PortAudio's. It looks about once a second at what has come in, and cuts it by frame number: no instant
has to be met, and a stall shorter than the buffer costs nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from acoupi_runtime.audio.cuts import ScheduledCuts, TriggeredCuts
from acoupi_runtime.audio.lane import Lane
from acoupi_runtime.audio.levels import Levels
from acoupi_runtime.audio.paths import in_memory, spool_dir
from acoupi_runtime.audio.ring import Ring, ring_dtype
from acoupi_runtime.audio.source import Source, Stream, open_source
from acoupi_runtime.audio.state import LastRecording, RecorderState, Situation, write_state
from acoupi_runtime.audio.tape import Tape
from acoupi_runtime.audio.trigger import LevelTrigger
from acoupi_runtime.clock import Clock, SystemClock
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.data import Capture, Deployment, Recording
from acoupi_runtime.errors import AcoupiError, DeviceConfigurationError, DeviceError, DeviceUnavailableError
from acoupi_runtime.home import Home

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
_SOON = 0.05
"""Seconds between two looks when a recording is about to end, or the first sound is to come."""
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between two looks for a missing microphone; the last one stands for ever."""
_STALLED_AFTER = 4.0
"""Seconds without a frame, beyond the length of a block, after which the microphone counts as dead."""
_DEAD_OPENINGS = 4
"""Openings without a single frame after which only a new process can help."""
_SILENT_RECORDINGS = 3


class AlreadyRecordingError(AcoupiError):
    """Another recorder runs in this home."""


class RestartNeededError(DeviceError):
    """The microphone stays dead, however often it is opened: a new process may find it alive."""


class Sink(Protocol):
    """Who is told of recordings."""

    def completed(self, recording: Recording, capture: Capture) -> None:
        """A recording has its final name and lasts. Called by the recorder's thread: must return at once."""


class Recorder:
    """Records as its configuration says, until it is stopped.

    Args:
        config: The program's configuration.
        home: Its `run` folder holds the lock and the live state.
        deployment: Says which deployment a recording belongs to.
        sink: Is told of each completed recording.
        alive: Is called about once a second, with a status, while frames come in or the microphone is being looked for.
        clock: The machine's, or a simulation.
        source: Another source than the one that the configuration names.
    """

    def __init__(
        self,
        config: BasicConfig,
        home: Home,
        *,
        deployment: Callable[[], Deployment],
        sink: Sink,
        alive: Callable[[str], None],
        clock: Clock | None = None,
        source: Source | None = None,
    ) -> None:
        self._config = config
        self._home = home
        self._deployment = deployment
        self._sink = sink
        self._alive = alive
        self._clock = clock or SystemClock()
        self._source = source or open_source(config.microphone, config.recording, self._clock)
        self._spool = spool_dir(config)
        self._memory_mode = in_memory(self._spool)
        self._trigger: LevelTrigger | None = None
        self._lanes = self._make_lanes()
        self._known = Deployment(name="unknown")
        self._last: LastRecording | None = None
        self._recordings = 0
        self._frames = 0
        self._overflows = 0
        self._silent = 0
        self._meter = _Meter(config.recording.bits, config.microphone.audio_channels, None)
        self._failing: set[str] = set()
        self._written = float("-inf")
        self._starting = False

    def run(self, stop: threading.Event) -> None:
        """Record until `stop` is set; then close the current files, whole.

        Raises:
            AlreadyRecordingError: If another recorder runs in this home.
            RestartNeededError: If only a new process can bring the microphone back.
        """
        with self._only_one():
            dead = 0
            quiet = ""
            self._written = float("-inf")
            while not stop.is_set():
                opened = self._look_for_microphone(stop, anew=dead > 0)
                if opened is None:
                    return
                stream, tape = opened
                gone = ""
                try:
                    self._listen(stream, tape, stop, quiet)
                except DeviceUnavailableError as error:
                    gone = str(error)
                finally:
                    self._frames += tape.ring.head
                    self._overflows += tape.lost
                    _close(stream)
                if gone:
                    log.warning("%s", gone)
                    self._report("no-microphone", gone, None)
                dead, quiet = (0, "") if tape.ring.head else (dead + 1, gone)
                if dead >= _DEAD_OPENINGS:
                    raise RestartNeededError(f"{stream.device}: opened {dead} times and gave no sound; restart")

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        self._home.run_dir.mkdir(parents=True, exist_ok=True)
        path = self._home.run_dir / "recorder.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRecordingError(f"{path}: a recorder runs in this home already; stop it first") from None
            yield
            self._home.recorder_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def _make_lanes(self) -> tuple[Lane, ...]:
        config = self._config
        full = self._home.full_file
        deployment, done = self._current_deployment, self._done
        lanes = [Lane(config, self._spool, ScheduledCuts(config), deployment, done, full_file=full)]
        if config.recording.trigger is not None:
            self._trigger = LevelTrigger(config.recording.trigger, config.microphone.samplerate, config.recording.bits)
            triggered = TriggeredCuts(config, self._trigger)
            lanes.append(Lane(config, self._spool, triggered, deployment, done, full_file=full))
        return tuple(lanes)

    def _new_tape(self) -> Tape:
        recording, microphone = self._config.recording, self._config.microphone
        before = max(recording.pre_roll, recording.trigger.pre_roll if recording.trigger else 0)
        capacity = max(round((recording.buffer + before) * microphone.samplerate), 4 * recording.chunksize)
        spare = round(recording.buffer * microphone.samplerate / 4)
        ring = Ring(capacity, microphone.audio_channels, ring_dtype(recording.bits))
        return Tape(microphone.samplerate, ring, spare, self._clock)

    def _look_for_microphone(self, stop: threading.Event, *, anew: bool) -> tuple[Stream, Tape] | None:
        """Open the microphone, however long it takes; None if it was told to stop meanwhile."""
        tries = 0
        told = ""
        while not stop.is_set():
            tape = self._new_tape()
            try:
                if anew or tries:
                    self._source.reset()
                stream = self._source.open(tape.ring)
            except DeviceError as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("%s", told)
                refused = isinstance(error, DeviceConfigurationError)
                self._wait_for_microphone(stop, _WAITS[min(tries, len(_WAITS) - 1)], told, refused=refused)
                tries += 1
            else:
                if told:
                    log.warning("%s: found", stream.device)
                return stream, tape
        return None

    def _wait_for_microphone(self, stop: threading.Event, seconds: float, detail: str, *, refused: bool) -> None:
        until = self._clock.steady() + seconds
        while not stop.is_set() and (left := until - self._clock.steady()) > 0:
            self._report("error" if refused else "no-microphone", detail, None)
            self._clock.wait(stop, min(left, _LOOK_EVERY))

    def _listen(self, stream: Stream, tape: Tape, stop: threading.Event, quiet: str) -> None:
        """Record from an open microphone until it is gone or `stop` is set.

        Args:
            stream: The microphone.
            tape: What comes of it.
            stop: Ends it.
            quiet: Why the last opening gave not a frame: that it opens again is no sign of life, its first frame is.
        """
        recording, microphone = self._config.recording, self._config.microphone
        patience = _STALLED_AFTER + recording.chunksize / microphone.samplerate
        if self._trigger is not None:
            self._trigger.begin()
        self._meter = _Meter(recording.bits, microphone.audio_channels, self._trigger)
        last_heard = self._clock.steady()
        self._written = float("-inf")
        if quiet:
            self._report("no-microphone", quiet, (stream, tape))
        else:
            self._report("starting", "the microphone is open", (stream, tape))
        try:
            while True:
                ending = stop.is_set()
                stream.poll()
                now = self._clock.steady()
                if tape.listen():
                    last_heard = now
                    self._take_in(tape)
                    self._report(*self._situation(), (stream, tape))
                elif now - last_heard > patience:
                    raise DeviceUnavailableError(
                        f"{stream.device}: has given no sound for {now - last_heard:.0f} s; see to its cable"
                    )
                if ending:
                    return
                self._clock.wait(stop, self._pause(tape))
        finally:
            tape.listen()
            if tape.head:
                self._take_in(tape)
                for lane in self._lanes:
                    lane.finish(tape, self._clock.steady())

    def _take_in(self, tape: Tape) -> None:
        """Make of what has come in what is due."""
        self._meter.read(tape)
        for lane in self._lanes:
            lane.advance(tape, self._clock.steady())

    def _pause(self, tape: Tape) -> float:
        if not tape.head:
            return _SOON  # that sound comes is what a start is waited for
        ends = [lane.until for lane in self._lanes if lane.recording and lane.until is not None]
        left = min(((end - tape.head) / tape.samplerate for end in ends), default=_LOOK_EVERY)
        return min(_LOOK_EVERY, self._config.recording.buffer / 4, max(_SOON, left))

    def _situation(self) -> tuple[Situation, str]:
        troubles = [lane.trouble for lane in self._lanes if lane.trouble is not None]
        if troubles:
            return ("paused" if troubles[0].full else "error"), troubles[0].text
        return ("recording" if any(lane.recording for lane in self._lanes) else "listening"), ""

    def _report(self, state: Situation, detail: str, open_: tuple[Stream, Tape] | None) -> None:
        now = self._clock.steady()
        if now - self._written < _LOOK_EVERY / 2 and not self._starting:
            return
        self._written, self._starting = now, state == "starting"
        stream, tape = open_ or (None, None)
        level = self._meter.restart()
        microphone = self._config.microphone
        answer = RecorderState(
            state=state,
            detail=detail,
            pid=os.getpid(),
            boot_id=self._clock.boot_id,
            boottime=now,
            device=None if stream is None else stream.device,
            samplerate=microphone.samplerate,
            channels=microphone.audio_channels,
            frames=self._frames + (0 if tape is None else tape.ring.head),
            level_rms=level.rms,
            level_peak=level.peak,
            silent=self._silent >= _SILENT_RECORDINGS,
            overflows=self._overflows + (0 if tape is None else tape.lost),
            lost_seconds=round(sum(lane.lost for lane in self._lanes) / microphone.samplerate, 3),
            clock_synced=self._clock.synced(),
            true_samplerate=None if tape is None else tape.true_samplerate,
            last_recording=self._last,
            recordings=self._recordings,
            stream="" if tape is None else tape.id,
            memory_mode=self._memory_mode,
        )
        with self._tolerated("the live state cannot be written"):
            write_state(self._home, answer)
        self._alive(f"{state}: {detail}" if detail else f"{state}, {level.rms} dBFS, {self._recordings} recordings")

    @contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        """Whatever somebody else suffers from, the recorder goes on; it says so once, until it is over."""
        try:
            yield
        except Exception:
            if what not in self._failing:
                log.exception("%s; the recorder goes on", what)
            self._failing.add(what)
        else:
            self._failing.discard(what)

    def _current_deployment(self) -> Deployment:
        with self._tolerated("the deployment cannot be read, so that the last one known is noted"):
            self._known = self._deployment()
        return self._known

    def _done(self, recording: Recording, capture: Capture) -> None:
        assert recording.path is not None  # noqa: S101 - for the type checker
        self._recordings += 1
        self._silent = self._silent + 1 if capture.silent else 0
        self._last = LastRecording(
            path=recording.path,
            created_on=recording.created_on,
            duration=recording.duration,
            rms=capture.rms,
            peak=capture.peak,
        )
        with self._tolerated("a recording cannot be handed over: its file is whole, and the rescan will find it"):
            self._sink.completed(recording, capture)


class _Meter:
    """Follows the level of all that comes in."""

    def __init__(self, bits: int, channels: int, trigger: LevelTrigger | None) -> None:
        self._bits = bits
        self._trigger = trigger
        self._position = 0
        self._out = np.zeros((1 << 15, channels), ring_dtype(bits))
        self._level = Levels(bits)

    def restart(self) -> Levels:
        """The level since this was last asked."""
        level, self._level = self._level, Levels(self._bits)
        return level

    def read(self, tape: Tape) -> None:
        """Take in what has come since the last time."""
        while True:
            first, count = tape.read(self._position, self._out)
            if not count:
                return
            block = self._out[:count] if self._bits == 16 else self._out[:count] >> 8  # noqa: PLR2004
            self._level.add(block)
            if self._trigger is not None:
                self._trigger.hear(first, block)
            self._position = first + count


def _close(stream: Stream) -> None:
    try:
        stream.close()
    except DeviceError as error:
        log.warning("%s", error)
