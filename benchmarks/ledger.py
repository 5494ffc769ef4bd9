"""What a sensor owes: each completed recording, as it was seen when it was complete, and whether it is still there.

It is looked at from outside: a file that has its final name is copied away and listened to there, so that what is to be
reported of it is known whatever becomes of the sensor. Ids follow from the recording and what is heard in it, which
makes the comparison with what was received exact.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol
from uuid import UUID

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.home import Home
from acoupi_runtime.programs.energy import EnergyConfig
from acoupi_runtime.programs.energy import Program as EnergyProgram
from acoupi_runtime.tasks.pipeline import Pipeline


class Sensor(Protocol):
    """Whose books are kept."""

    @property
    def home(self) -> Home: ...

    @property
    def recordings(self) -> Path: ...

    @property
    def spool(self) -> Path: ...

    @property
    def store(self) -> Path: ...

    @property
    def config(self) -> object: ...


@dataclass(frozen=True)
class Seen:
    """A completed recording.

    Attributes:
        sound: The hash of its sound.
        messages: Ids of what is to be sent of it.
        detections: Ids of what is heard in it.
    """

    sound: str
    messages: frozenset[UUID]
    detections: frozenset[UUID]


@dataclass
class Verdict:
    """What there is at the end, and what is wrong with it: each list names what breaks a promise."""

    completed: int = 0
    lost: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    expected: int = 0
    received: int = 0
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    deleted: int = 0
    """Uploaded, and let go to make room."""
    broken: int = 0
    """Files that a cut left without their first page: nobody can say any more what they were to become."""
    integrity: str = ""
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def kept_all(self) -> bool:
        """Whether all promises are kept."""
        wrong = (self.lost, self.altered, self.malformed, self.unknown, self.unfinished, self.missing, self.extra)
        return not any(wrong) and self.integrity == "ok" and not self.counters.get("store_rebuilt")


class Ledger:
    """Follows a sensor's recordings.

    Attributes:
        seen: All completed recordings so far.
    """

    def __init__(self, sensor: Sensor, scratch: Path) -> None:
        self._sensor = sensor
        self._scratch = scratch
        self._pipeline = _pipeline(sensor)
        self.seen: dict[UUID, Seen] = {}
        scratch.mkdir()

    def look(self) -> None:
        """Note what is complete by now."""
        for identity, path in self._files():
            if identity not in self.seen:
                with contextlib.suppress(FileNotFoundError):  # it is being filed: it is found there the next time
                    self._note(identity, path)

    def _files(self) -> Iterator[tuple[UUID, Path]]:
        spool = self._sensor.spool
        # The spool last: what is filed meanwhile is met twice, and never missed twice.
        for path in (*self._sensor.recordings.glob("2*/*/*/*.wav"), *spool.glob("*.wav"), *self._quarantined()):
            yield UUID(path.stem.rpartition("_")[2]), path

    def _quarantined(self) -> Iterator[Path]:
        yield from (self._sensor.recordings / "quarantine").glob("*.wav")

    def _note(self, identity: UUID, path: Path) -> None:
        copy = self._scratch / f"{identity}.wav"
        shutil.copyfile(path, copy)
        try:
            self.seen[identity] = self._listen(copy)
        except (wave.Error, ValueError, EOFError):
            pass  # only without fsyncs: it is malformed, which the verdict says
        finally:
            copy.unlink()

    def _listen(self, path: Path) -> Seen:
        found = read_guano(path)
        if found is None:
            raise ValueError(f"{path}: does not say what it is")
        outcome = self._pipeline.decide(found[0])
        return Seen(
            _sound(path),
            frozenset(message.id for message in outcome.messages),
            frozenset(detection.id for output in outcome.outputs for detection in output.detections),
        )

    def verdict(self, received: Mapping[str, bytes]) -> Verdict:
        """Compare with what is there, and with what was received. Nothing runs any more."""
        self.look()
        verdict = Verdict(completed=len(self.seen))
        paths: dict[UUID, Path] = dict(self._files())
        rows = self._judge_store(verdict)
        for identity, path in paths.items():
            _judge_file(verdict, path)
            if identity not in rows:
                verdict.unknown.append(str(path))
        for identity in self.seen.keys() | rows.keys():
            state, uploaded = rows.get(identity, ("", False))
            if identity in paths:
                if identity in self.seen and _hash_or_none(paths[identity]) != self.seen[identity].sound:
                    verdict.altered.append(str(paths[identity]))
            elif state == "dropped" and uploaded:
                verdict.deleted += 1
            else:
                verdict.lost.append(f"{identity} {state}")
        verdict.unfinished += [path.name for path in self._sensor.spool.glob("*.part")]
        verdict.unfinished += [path.name for path in self._sensor.recordings.rglob("*.copy")]
        verdict.broken = sum(1 for _ in self._sensor.spool.glob("*.broken"))
        self._judge_messages(verdict, received)
        return verdict

    def _judge_store(self, verdict: Verdict) -> dict[UUID, tuple[str, bool]]:
        with contextlib.closing(sqlite3.connect(self._sensor.store)) as store:
            verdict.integrity = str(store.execute("PRAGMA integrity_check").fetchone()[0])
            verdict.counters = dict(store.execute("SELECT name, value FROM counter"))
            rows = {}
            for identity, state, uploaded, busy in store.execute(
                "SELECT id, state, uploaded_on IS NOT NULL, lease_owner IS NOT NULL OR moving_from IS NOT NULL"
                " FROM recording"
            ):
                name = UUID(bytes=identity)
                rows[name] = (state, bool(uploaded))
                if busy or state not in ("kept", "dropped"):
                    verdict.unfinished.append(f"{name} {state}")
            waiting = store.execute("SELECT count(*) FROM delivery WHERE acknowledged_on IS NULL").fetchone()[0]
            verdict.unfinished += [f"{waiting} messages wait"] if waiting else []
        return rows

    def _judge_messages(self, verdict: Verdict, received: Mapping[str, bytes]) -> None:
        messages: set[UUID] = set()
        detections: set[UUID] = set()
        for key, body in received.items():
            content = json.loads(body)
            if "name_model" in content:  # not a heartbeat
                messages.add(UUID(key))
                detections.update(UUID(one["id"]) for one in content["detections"])
        wanted = frozenset[UUID]().union(*(one.messages for one in self.seen.values()))
        heard = frozenset[UUID]().union(*(one.detections for one in self.seen.values() if one.messages))
        verdict.expected, verdict.received = len(heard), len(detections)
        verdict.missing = [str(one) for one in (wanted - messages) | (heard - detections)]
        verdict.extra = [str(one) for one in (messages - wanted) | (detections - heard)]


def _judge_file(verdict: Verdict, path: Path) -> None:
    """Whether a WAV parses, and holds all the sound that its header and its metadata speak of."""
    try:
        with wave.open(str(path)) as wav:
            whole = len(wav.readframes(wav.getnframes())) == wav.getnframes() * wav.getnchannels() * wav.getsampwidth()
            found = read_guano(path)
            if not whole or found is None or found[1].frames != wav.getnframes() or not wav.getnframes():
                verdict.malformed.append(str(path))
    except (wave.Error, EOFError) as error:
        verdict.malformed.append(f"{path}: {error}")


def _sound(path: Path) -> str:
    with wave.open(str(path)) as wav:
        return hashlib.sha256(wav.readframes(wav.getnframes())).hexdigest()


def _hash_or_none(path: Path) -> str | None:
    try:
        return _sound(path)
    except (wave.Error, EOFError):
        return None


def _pipeline(sensor: Sensor) -> Pipeline:
    """What the program does with a recording, as the ledger does it too."""
    config = sensor.config
    assert isinstance(config, EnergyConfig)
    program = EnergyProgram(config, sensor.home)
    return replace(program.pipeline(config), model=program.model(config))
