"""chaos: a sensor's real processes under everything that can happen to them at once, and what of it is lost. Root only.

    python -m benchmarks.chaos [--seconds 1300] [--seed N] [--cut 20] [--kill 2.5] [--without-fsync]

Recorder, Redis, Celery worker and messenger run as their units would run them, on a card of their own, and report to a
receiver. By chance: each process is killed (kill -9), Redis is killed and flushed, the receiver refuses or stores and
hangs up, the card is full for some seconds, and the power is cut, after which all goes on from what the card holds.
Then nothing more happens to them, they come to their end, and the books are compared. `--without-fsync` is the control:
fsync and fdatasync do nothing there (strace answers in the kernel's place), which has to lose something.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.device import UNITS, Device, calls, ended
from benchmarks.ledger import Ledger, Verdict
from benchmarks.powercut import card, why_not
from tests.receiver import Receiver, receiving

RATE = 16_000
CARD = 768
"""Megabytes."""
TICK = 0.05
ROOM = 6_000_000
"""Bytes that recordings may take: some 200 of them; what was uploaded goes then."""
PATIENCE = 600.0
"""Seconds for what must come; only a hopeless wait takes as long."""
_STRACE = ("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync")
NO_FSYNC = (*_STRACE, "-e", "inject=fsync,fdatasync:retval=0")
_WAITING = "recording WHERE state = 'recorded'"
_ALL = (_WAITING, "recording WHERE moving_from IS NOT NULL", "delivery WHERE acknowledged_on IS NULL")
FLUSH, MOOD, FULL, FULL_FOR = 8.0, 6.0, 20.0, (1.0, 4.0)
"""Mean seconds between two flushes of Redis, two moods of the receiver, two full cards; how long the last one lasts."""


@dataclass
class Report:
    """What happened, and what is left."""

    seed: int
    seconds: float
    fsync: bool
    faults: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def kills(self) -> int:
        return sum(number for name, number in self.faults.items() if name.startswith("kill "))

    def text(self) -> str:
        verdict = self.verdict
        each = ", ".join(f"{name} {self.faults['kill ' + name]}" for name in UNITS)
        lines = [
            ("seed, seconds, fsync", f"{self.seed}, {self.seconds:.0f}, {'yes' if self.fsync else 'no'}"),
            ("kill -9", f"{self.kills} ({each})"),
            ("power cuts", f"{self.faults['cut']}"),
            ("Redis flushed, card full", f"{self.faults['flush']}, {self.faults['full']}"),
            ("completed recordings", f"{verdict.completed}"),
            ("... cut short and repaired", f"{verdict.counters.get('truncated', 0)}"),
            ("... uploaded and deleted to make room", f"{verdict.deleted}"),
            ("lost, altered, malformed", f"{len(verdict.lost)}, {len(verdict.altered)}, {len(verdict.malformed)}"),
            ("without a row, unfinished", f"{len(verdict.unknown)}, {len(verdict.unfinished)}"),
            ("detections expected, received", f"{verdict.expected}, {verdict.received}"),
            ("missing, extra", f"{len(verdict.missing)}, {len(verdict.extra)}"),
            ("repeats absorbed by the receiver", f"{self.repeats}"),
            ("integrity_check; stores rebuilt", f"{verdict.integrity}; {verdict.counters.get('store_rebuilt', 0)}"),
            ("nameless files set aside", f"{verdict.broken}"),
        ]
        table = "\n".join(f"| {name} | {value} |" for name, value in lines)
        wrong = {name: value[:10] for name, value in asdict(verdict).items() if isinstance(value, list) and value}
        return f"| | |\n|---|---|\n{table}" + (f"\n{json.dumps(wrong, indent=1)}" if wrong else "")


class Storm:
    """Everything that happens to a sensor, by chance."""

    def __init__(
        self, device: Device, ledger: Ledger, receiver: Receiver, chance: random.Random, faults: Counter[str]
    ) -> None:
        self._device, self._ledger, self._receiver = device, ledger, receiver
        self._chance, self._faults = chance, faults
        self._due: dict[str, float] = {}
        self._actions: dict[str, tuple[Callable[[], None], Callable[[], float]]] = {}

    def rage(self, seconds: float, kill: float, cut: float) -> None:
        """Let it all happen for some time."""
        chance = self._chance
        for name in UNITS:
            self._plan(f"kill {name}", lambda name=name: self._kill(name), lambda: chance.expovariate(1 / kill))  # type: ignore[misc]
        self._plan("flush", self._flush, lambda: chance.expovariate(1 / FLUSH))
        self._plan("mood", self._mood, lambda: chance.expovariate(1 / MOOD))
        self._plan("full", self._fill, lambda: chance.expovariate(1 / FULL))
        self._plan("cut", self._cut, lambda: cut * chance.uniform(0.5, 1.5))
        end = time.monotonic() + seconds
        self._plan("tell", self._tell, lambda: 60.0)
        while (now := time.monotonic()) < end:
            for name in [name for name, at in self._due.items() if at <= now]:
                action, pause = self._actions[name]
                self._due[name] = now + pause()
                action()
            self._device.keep_up()
            self._ledger.look()
            time.sleep(TICK)
        self._make_room()
        self._receiver.behave = lambda *_: 200

    def _plan(self, name: str, action: Callable[[], None], pause: Callable[[], float]) -> None:
        self._actions[name] = (action, pause)
        self._due[name] = time.monotonic() + pause()

    def _kill(self, name: str) -> None:
        self._faults[f"kill {name}"] += self._device.kill(name)

    def _flush(self) -> None:
        with contextlib.suppress(redis.RedisError), contextlib.closing(_redis(self._device)) as client:
            client.flushall()
            self._faults["flush"] += 1

    def _mood(self) -> None:
        moods: tuple[tuple[int | None, ...], ...] = ((200,), (200,), (500,), (None,), (200, 200, 500, None))
        answers = self._chance.choice(moods)
        pick = random.Random(self._chance.random())
        self._receiver.behave = lambda *_: pick.choice(answers)

    def _fill(self) -> None:
        self._device.card.fill()
        self._faults["full"] += 1
        self._plan("room", self._make_room, lambda: self._chance.uniform(*FULL_FOR))

    def _tell(self) -> None:
        told = ", ".join(f"{name} {number}" for name, number in sorted(self._faults.items()))
        print(f"{len(self._ledger.seen)} recordings; {told}", file=sys.stderr, flush=True)

    def _make_room(self) -> None:
        self._device.card.make_room()
        self._due.pop("room", None)

    def _cut(self) -> None:
        self._ledger.look()
        self._device.card.power_off()
        for name in UNITS:
            self._device.kill(name)
        self._device.card.power_on()
        self._make_room()
        self._device.boot()
        self._faults["cut"] += 1


def _redis(device: Device) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(device.home.redis_socket), socket_timeout=2)


def settle(device: Device, ledger: Ledger) -> bool:
    """Let the sensor come to its end without faults; False if it does not."""
    until(device, ledger, lambda: device.running("recording"))
    device.end("recording")
    calm = True
    for so in (lambda: not _left(device, _WAITING), lambda: not _left(device, *_ALL)):
        device.end("processing")  # started anew, it looks at once for what was left, and no messenger is at rest
        calm = until(device, ledger, so, ("redis", "processing")) and calm
    device.end("processing")
    device.end("redis")
    return calm


def until(device: Device, ledger: Ledger, so: Callable[[], Any], names: tuple[str, ...] = UNITS) -> bool:
    """Keep these running until something is so; False if it does not become so."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        device.keep_up(names)
        ledger.look()
        if so():
            return True
        time.sleep(0.2)
    return False


def _left(device: Device, *what: str) -> bool:
    """Whether there are such rows, or files in the spool that have none yet."""
    spool = device.recordings / ".spool"
    if any(spool.glob("*.part")) or (len(what) > 1 and any(spool.glob("*.wav"))):
        return True
    with contextlib.closing(sqlite3.connect(f"file:{device.store}?mode=ro", uri=True, timeout=60)) as store:
        try:
            return any(store.execute(f"SELECT EXISTS (SELECT 1 FROM {each})").fetchone()[0] for each in what)
        except sqlite3.Error:  # without fsyncs it may be corrupt, and about to be replaced
            return True


def chaos(seconds: float, seed: int, *, kill: float, cut: float, fsync: bool = True) -> Report:
    """Run it all."""
    report = Report(seed, seconds, fsync)
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        receiver = stack.enter_context(receiving())
        made = stack.enter_context(card(folder, CARD))
        wav = calls(folder / "calls.wav", 61, RATE, seed)
        device = Device(folder, made, "energy", configured(wav, receiver.url), before=() if fsync else NO_FSYNC)
        stack.enter_context(ended(device))
        ledger = Ledger(device, folder / "scratch")
        begun = time.monotonic()
        if not until(device, ledger, lambda: ledger.seen):
            raise SystemExit(f"chaos: nothing is recorded\n{device.journal()}")
        # On a slow machine what is killed lives longer, so that there is something to kill.
        kill = max(kill, (time.monotonic() - begun) / 2)
        print(f"a process lives for {kill:.1f} s", file=sys.stderr)
        if not until(device, ledger, lambda: any(b"name_model" in body for body in list(receiver.stored.values()))):
            raise SystemExit(f"chaos: nothing is received\n{device.journal()}")
        Storm(device, ledger, receiver, chance, report.faults).rage(seconds, kill, cut)
        calm = settle(device, ledger)
        report.repeats = receiver.repeats
        report.verdict = ledger.verdict(receiver.stored)
        if not calm or not report.verdict.kept_all:
            print(device.journal(), file=sys.stderr)
    return report


def configured(wav: Path, url: str) -> dict[str, Any]:
    return {
        "timezone": "UTC",
        "microphone": {"device_name": f"file:{wav}", "samplerate": RATE},
        "recording": {
            "duration": 0.8,  # written in two portions, so that some are cut short
            "buffer": 2,
            "continuous": True,
            "chunksize": 1024,
            "schedule_start": "00:00:00",
            "schedule_end": "00:00:00",
        },
        "retention": {"reserve": 16, "max_size": ROOM / 1e9},
        "processing": {"max_attempts": 1000},  # hundreds of kills would quarantine what is not at fault
        "messaging": {"http": {"base_url": url}, "message_send_interval": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What a sensor loses when everything happens to it at once.")
    parser.add_argument("--seconds", type=float, default=1300)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--cut", type=float, default=20, help="mean seconds between two power cuts")
    parser.add_argument("--kill", type=float, default=2.5, help="mean seconds that each process lives")
    parser.add_argument("--without-fsync", action="store_true", help="the control: it must lose something")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was mounted and started is taken away
    if (reason := why_not()) is not None:
        raise SystemExit(f"chaos: {reason}")
    print(f"seed {arguments.seed}", flush=True)
    fsync = not arguments.without_fsync
    report = chaos(arguments.seconds, arguments.seed, kill=arguments.kill, cut=arguments.cut, fsync=fsync)
    print(report.text())
    if report.verdict.kept_all != fsync:
        raise SystemExit(
            "chaos: something was lost" if fsync else "chaos: the control lost nothing: this shows nothing"
        )


if __name__ == "__main__":
    main()
