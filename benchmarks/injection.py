"""injection: the n-th system call fails, for n = 1, 2, 3, ... until a life ends without a fault. Is anything lost?

    python -m benchmarks.injection [--life processing ...] [--fault EIO ...] [--call fsync ...] [--first 1] [--every 1]

As SQLite is tested, but from outside the process: strace attaches to a sensor's process (`lives`) before it begins, and
makes one call of it fail (EIO, ENOSPC, EINTR), or be the last one that it makes (kill -9, at every call of any kind).
A process that was told of an error has to come to the end of its work by itself; after a kill, another one has to.
Then the books are compared, after each single fault.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from acoupi_runtime.audio.guano import read_guano
from benchmarks.device import calls
from benchmarks.ledger import Ledger
from benchmarks.lives import LEFT_TO_ITSELF, LIVES, RATE, SECONDS, SECONDS_AFTER, Gates, Place, live
from tests.receiver import receiving

_READS = ("openat", "read", "pread64", "newfstatat", "fstat", "statx", "statfs", "access", "getdents64", "readlink")
_WRITES = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate")
_NAMES = ("rename", "unlink", "mkdir", "rmdir", "chmod", "fchmod", "fchown", "utimensat")
_NETWORK = ("socket", "connect", "sendto", "recvfrom", "poll")
CALLS = {
    # What a file system, or the way to it, may answer. Not `close`: where it is not made, the descriptor stays open, as
    # no kernel leaves it. Not `mmap`: it fails for memory.
    "EIO": (*_READS, *_WRITES, *_NAMES, *_NETWORK),
    "ENOSPC": ("openat", *_WRITES, "rename", "mkdir"),
    "EINTR": ("openat", "read", "pread64", *_WRITES, "fcntl", "flock", *_NETWORK),
}
"""By fault: the calls at which it can happen. A process may be killed at any."""
FAULTS = (*CALLS, "kill")
MEMORY = Path("/dev/shm")
PATIENCE = 120.0
"""Seconds after which a process counts as hanging."""
_BLOCK = 8192
"""Frames that may not have come in yet when a recorder is told to end."""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["benchmarks.lives"])


@dataclass
class Round:
    """What one fault did.

    Attributes:
        hit: Whether the life came to the call that was to fail.
        code: With what its process ended; negative: a signal.
        wrong: What breaks a promise.
    """

    hit: bool
    code: int | None
    wrong: list[str]


class Bench:
    """Where one kind of life is lived again and again, each time from the same beginning.

    Args:
        name: Which of `LIVES`.
        folder: A new one.
        url: A receiver's.
        stored: What that has received.
    """

    def __init__(self, name: str, folder: Path, url: str, stored: dict[str, bytes]) -> None:
        self.name, self._life = name, LIVES[name]
        self._stored = stored
        memory = MEMORY / f"injection-{os.getpid()}" if self._life.in_memory else None
        self._place = Place(folder / "sensor", url, self._life.max_size, memory)
        self._trace = folder / "trace"
        folder.mkdir()
        self._source = _samples(calls(self._place.microphone, 11, RATE, 1))
        self._place.folder.mkdir()
        self._life.prepare(self._place)
        self._ledger = Ledger(self._place, folder / "scratch")
        self._ledger.look()
        self._seen = dict(self._ledger.seen)
        self._sent = dict(stored)
        self._gates = Gates(PROCESSES, self._life.thread)
        self._folders = {self._place.folder: folder / "before"}
        if memory is not None:
            self._folders[memory] = folder / "before in memory"
        for lived, before in self._folders.items():
            shutil.move(lived, before)

    def round(self, fault: str, call: str, number: int) -> Round:
        """Live once, with a fault at the n-th call."""
        self._restore()
        hit, code = self._disturbed(fault, call, number)
        self._ledger.look()
        killed = fault == "kill" and code == -signal.SIGKILL
        wrong = []
        if code is None:
            wrong.append("hangs")
        elif code not in (0, LEFT_TO_ITSELF) and not killed:
            wrong.append(f"ended with {code}")
        if killed or self._life.records:
            after = self._undisturbed()
            wrong += [] if after == 0 else [f"the one after it ended with {after}"]
        return Round(hit, code, wrong + self._broken(killed=killed))

    def calls(self) -> Counter[str]:
        """The calls that a life makes, by kind."""
        self._restore()
        self._disturbed("none", "all", 0)
        lines = self._trace.read_text(errors="replace").splitlines()
        return Counter(line.partition("(")[0].split()[-1] for line in lines if line[:1].islower() and "(" in line)

    def close(self) -> None:
        """Leave nothing in memory."""
        for lived in self._folders:
            shutil.rmtree(lived, ignore_errors=True)

    def said(self) -> str:
        """What the processes of the last round said."""
        return self._place.errors.read_text() if self._place.errors.exists() else ""

    def _restore(self) -> None:
        for lived, before in self._folders.items():
            shutil.rmtree(lived, ignore_errors=True)
            shutil.copytree(before, lived)
        self._place.errors.unlink(missing_ok=True)
        self._ledger.seen = dict(self._seen)
        self._stored.clear()
        self._stored.update(self._sent)

    def _disturbed(self, fault: str, call: str, number: int) -> tuple[bool, int | None]:
        gates = self._gates
        gates.shut()
        process = PROCESSES.Process(target=live, args=(self.name, self._place, gates))
        process.start()
        try:
            thread = gates.arrival(process, PATIENCE)
            if thread is None:
                raise SystemExit(f"injection: {self.name} does not begin: {self.said()}")
            with self._watched(thread, fault, call, number):
                gates.let_through()
                gates.arrival(process, PATIENCE)
            gates.let_through()
            process.join(PATIENCE)
            hit = fault != "kill" and "(INJECTED)" in self._trace.read_text(errors="replace")
            if process.is_alive():
                return hit, None
            return hit or process.exitcode == -signal.SIGKILL, process.exitcode
        finally:
            process.kill()
            process.join()

    @contextmanager
    def _watched(self, thread: int, fault: str, call: str, number: int) -> Iterator[None]:
        command = ["strace", "-o", str(self._trace), "-e", f"trace={call}", "-p", str(thread)]
        if number:
            what = "signal=KILL" if fault == "kill" else f"error={fault}"
            command += ["-e", f"inject={call}:{what}:when={number}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            try:
                line = strace.stderr.readline()
                if "attached" not in line:
                    raise SystemExit(f"injection: {line.strip()}")
                yield
            finally:
                strace.terminate()

    def _undisturbed(self) -> int | None:
        process = PROCESSES.Process(target=live, args=(self.name, self._place, None))
        process.start()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
        process.join()
        return process.exitcode

    def _broken(self, *, killed: bool) -> list[str]:
        """What is not as it was promised."""
        verdict = self._ledger.verdict(self._stored)
        kinds = ("lost", "altered", "malformed", "unknown", "unfinished", "missing", "extra")
        wrong = [f"{kind}: {what}" for kind in kinds for what in getattr(verdict, kind)]
        if verdict.integrity != "ok":
            wrong.append(verdict.integrity)
        counted = {name: verdict.counters.get(name, 0) for name in ("recordings", "kept")}
        if set(counted.values()) != {verdict.completed}:
            wrong.append(f"{verdict.completed} recordings, counted as {counted}")
        given_up = {name: verdict.counters.get(name, 0) for name in ("quarantined", "missing")}
        wrong += [f"{name}: {number}" for name, number in given_up.items() if number]
        if verdict.counters.get("store_rebuilt", 0) != self._life.rebuilds:
            wrong.append("the store was rebuilt" if not self._life.rebuilds else "the store was not rebuilt, once")
        left = [path.name for path in self._place.spool.glob("*.wav")]
        wrong += [f"not filed: {name}" for name in left]
        return wrong + (self._out_of_order(killed=killed) if self._life.records else [])

    def _out_of_order(self, *, killed: bool) -> list[str]:
        """Frames that are missing, or not those that were to be heard."""
        wrong = []
        streams = defaultdict[str, list[tuple[int, Path]]](list)
        for path in self._place.recordings.rglob("*.wav"):
            found = read_guano(path)
            if found is not None:
                streams[found[1].stream].append((found[1].first_frame, path))
        heard = 0
        for pieces in streams.values():
            end = 0
            for first, path in sorted(pieces):
                sound = _samples(path)
                if first != end:
                    wrong.append(f"frames {end} to {first} are missing, or there twice")
                if not np.array_equal(sound, np.take(self._source, range(first, first + len(sound)), mode="wrap")):
                    wrong.append(f"{path.name}: is not what was heard")
                end = first + len(sound)
            heard += end
        # One stream is of the life after it: this one ended before it heard anything. A third is there where the
        # microphone could not be read, and was opened again.
        lives = SECONDS_AFTER + (SECONDS if len(streams) > 1 else 0) - (2 if len(streams) > 2 else 0)
        if not killed and heard < lives * RATE - 2 * _BLOCK:
            wrong.append(f"only {heard} frames")
        return wrong


def _samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as wav:
        return np.frombuffer(wav.readframes(wav.getnframes()), "<i2")


@dataclass
class Walk:
    """All n of one kind of call and one fault, in one kind of life.

    Attributes:
        faults: How many there were.
        raised: How many of them something was said of, or a process ended by itself for.
        wrong: Those that broke a promise, with what the process said.
    """

    life: str
    fault: str
    call: str
    faults: int = 0
    raised: int = 0
    wrong: list[str] = field(default_factory=list)


def points(made: Counter[str]) -> list[tuple[str, str, int]]:
    """All faults that there can be in a life that makes these calls: which, at which kind of call, at which of them."""
    return [
        (fault, call, number)
        for fault in FAULTS
        for call in CALLS.get(fault, sorted(made))
        for number in range(1, made[call] + 1)
    ]


def walk(bench: Bench, fault: str, call: str, first: int = 1, every: int = 1) -> Walk:
    """Let the n-th call fail, for n = first, first + every, ... until there is no n-th one."""
    result = Walk(bench.name, fault, call)
    number = first
    while (made := bench.round(fault, call, number)).hit or made.wrong:
        result.faults += made.hit
        result.raised += made.code == LEFT_TO_ITSELF
        if made.wrong:
            result.wrong.append(f"{bench.name}, {fault} at {call} {number}: {'; '.join(made.wrong)}\n{bench.said()}")
        if not made.hit:
            break
        number += every
    return result


class Hall:
    """The benches of one process that walks; each life has its own, with a receiver."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._benches: dict[str, Bench] = {}
        self._receivers = ExitStack()

    def bench(self, life: str) -> Bench:
        """The bench of one kind of life."""
        if life not in self._benches:
            receiver = self._receivers.enter_context(receiving())  # it ends with this process
            folder = self._folder / f"{os.getpid()}-{life.replace(' ', '-')}"
            self._benches[life] = Bench(life, folder, receiver.url, receiver.stored)
        return self._benches[life]

    def close(self) -> None:
        """End what runs and stands beside the folder."""
        for bench in self._benches.values():
            bench.close()
        self._receivers.close()


_halls: list[Hall] = []


def _open_hall(folder: Path) -> None:
    _halls.append(Hall(folder))
    multiprocessing.util.Finalize(None, _halls[0].close, exitpriority=1)


def _walk(life: str, fault: str, call: str, first: int, every: int) -> Walk:
    return walk(_halls[0].bench(life), fault, call, first, every)


def _kinds(life: str) -> list[tuple[str, str]]:
    return sorted({(fault, call) for fault, call, _ in points(_halls[0].bench(life).calls())})


def table(walks: Sequence[Walk]) -> str:
    """What was tried, by life and fault."""
    lines = ["| life | fault | kinds of calls | faults | of them: said | a promise broken |"]
    lines.append("|---|---|---|---|---|---|")
    for life in LIVES:
        for fault in FAULTS:
            mine = [each for each in walks if (each.life, each.fault) == (life, fault) and each.faults]
            if mine:
                faults, raised = sum(each.faults for each in mine), sum(each.raised for each in mine)
                broken = sum(len(each.wrong) for each in mine)
                lines.append(f"| {life} | {fault} | {len(mine)} | {faults} | {raised} | {broken} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Is anything lost, whichever system call fails?")
    parser.add_argument("--life", nargs="+", choices=LIVES, default=list(LIVES))
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--call", nargs="+", help="only these kinds of calls")
    parser.add_argument("--first", type=int, default=1, help="the n to begin with")
    parser.add_argument("--every", type=int, default=1, help="the step from one n to the next")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="lives at a time")
    chosen = parser.parse_args()
    if (reason := why_not()) is not None:
        raise SystemExit(f"injection: {reason}")
    began = time.monotonic()
    walks = []
    # Processes, not threads: each has a forkserver of its own, and `multiprocessing` waits for children in one thread.
    processes = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="injection-") as name,
        ProcessPoolExecutor(chosen.jobs, processes, _open_hall, (Path(name),)) as pool,
    ):
        waiting = [
            pool.submit(_walk, life, fault, call, chosen.first, chosen.every)
            for life, kinds in zip(chosen.life, pool.map(_kinds, chosen.life), strict=True)
            for fault, call in kinds
            if fault in chosen.fault and call in (chosen.call or (call,))
        ]
        for each in as_completed(waiting):
            done = each.result()
            walks.append(done)
            if done.faults or done.wrong:
                print(f"{done.life}: {done.fault} at {done.call}: {done.faults} times", flush=True)
            for wrong in done.wrong:
                print(f"WRONG {wrong}", flush=True)
    print(f"\n{sum(each.faults for each in walks)} faults in {(time.monotonic() - began) / 60:.0f} minutes\n")
    print(table(walks))
    return 1 if any(each.wrong for each in walks) else 0


def why_not() -> str | None:
    """Why no call can be made to fail here, or None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


if __name__ == "__main__":
    sys.exit(main())
