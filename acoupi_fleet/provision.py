"""provision: the table of contents: facts -> plan -> [check stops] -> apply -> look again -> Result. Touches nothing.

What happens to a host is a value. Only a mistake in this program raises.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from acoupi_fleet.apply import Demands, Outcome, apply
from acoupi_fleet.changes import BuildEnvironment, Change, Prune
from acoupi_fleet.errors import (
    EXIT_DRIFT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    FleetError,
    HostError,
    HostKeyError,
    UnreachableError,
)
from acoupi_fleet.facts import Facts, look
from acoupi_fleet.plan import plan
from acoupi_fleet.remote import HostKeys, LinkLostError, Session, converse
from acoupi_fleet.wheelhouse import Wheelhouse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from acoupi_fleet.desired import Desired
    from acoupi_fleet.inventory import Host

Status: TypeAlias = Literal["ok", "changed", "unreachable", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to go about it.

    Attributes:
        forks: How many hosts at once.
        check: Only say what would change.
        require_sound: A missing or silent microphone is a failure.
        accept_new: Trust host keys that nobody has vouched for, and say so.
        health_seconds: How long a host may take until all of it works.
        known_hosts: Files of trusted host keys; OpenSSH's own where none are given.
        cache: Where wheels are kept; the default where none is given.
    """

    forks: int = 50
    check: bool = False
    require_sound: bool = False
    accept_new: bool = False
    health_seconds: float = 60.0
    known_hosts: tuple[Path, ...] = ()
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person may want to see while a host is worked on.

    Attributes:
        host: The host's name.
        kind: `change` begins a change; `progress` is inside of one; `warning` will also be in the result.
        text: One line.
        percent: How far a long step is, where that is known.
    """

    host: str
    kind: Literal["change", "progress", "warning"]
    text: str
    percent: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one host.

    Attributes:
        host: Its name.
        status: One of the words of the recap.
        changes: What was done, or, with `check`, what would be done.
        warnings: What is not wrong enough to fail.
        error: One line: what is wrong; what to do.
        exit_code: What the program would exit with for this host alone.
        seconds: How long it took.
        facts: What the device was when it was looked at last.
    """

    host: str
    status: Status
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = EXIT_OK
    seconds: float = 0.0
    facts: Facts | None = field(default=None, repr=False)


Event: TypeAlias = Note | Result


def provision(
    hosts: Sequence[tuple[Host, Desired]],
    *,
    options: Options = Options(),
    observe: Callable[[Event], None] = lambda _: None,
) -> list[Result]:
    """Make each host what it should be.

    Ctrl-C ends it at once: hosts that were not begun are `skipped`, those in the middle are `failed` with what is
    known, both with exit code 130. A device that has received everything finishes by itself.

    Args:
        hosts: Each host with what it should be, rendered before any is touched.
        options: How to go about it.
        observe: Called with notes and with each result as it comes, never by two threads at once.

    Returns:
        One result for each host, in the given order.
    """
    run = _Run(options, observe)
    return run.all(hosts)


def exit_code(results: Sequence[Result]) -> int:
    """What the program exits with: interrupted, then failed, then a refused host key, then unreachable, then drift."""
    codes = {result.exit_code for result in results}
    order = (EXIT_INTERRUPTED, 1, HostError.exit_code, HostKeyError.exit_code, UnreachableError.exit_code, EXIT_DRIFT)
    return next((code for code in order if code in codes), EXIT_OK)


class _Run:
    """One run over all hosts: what its threads share."""

    def __init__(self, options: Options, observe: Callable[[Event], None]) -> None:
        self._options = options
        self._observe = observe
        self._speaking = threading.Lock()
        self._keys = HostKeys(options.known_hosts)
        self._houses: dict[str, Wheelhouse] = {}
        self._housing = threading.Lock()

    def all(self, hosts: Sequence[tuple[Host, Desired]]) -> list[Result]:
        """Every host in a thread of its own, `forks` at a time."""
        pool = ThreadPoolExecutor(max_workers=max(1, self._options.forks), thread_name_prefix="host")
        results: dict[str, Result] = {}
        futures: dict[Future[Result], Host] = {}
        try:
            futures = {pool.submit(self.one, host, desired): host for host, desired in hosts}
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    results[futures[future].name] = future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for future, host in futures.items():
                results.setdefault(host.name, _interrupted(future, host))
        else:
            pool.shutdown()
        return [results[host.name] for host, _ in hosts]

    def one(self, host: Host, desired: Desired) -> Result:
        """One host, from the first look to the last."""
        began = time.monotonic()
        journal = _Journal(host.name, self.say)
        try:
            result = self._provision(host, desired, journal)
        except LinkLostError as error:
            result = journal.failed(
                "failed" if journal.writing else "unreachable", error, _code_when_lost(writing=journal.writing)
            )
        except UnreachableError as error:
            result = journal.failed("unreachable", error, error.exit_code)
        except FleetError as error:
            result = journal.failed("failed", error, max(error.exit_code, HostError.exit_code))
        result = journal.timed(result, time.monotonic() - began)
        self.say(result)
        return result

    def say(self, event: Event) -> None:
        """Tell the observer, one thread at a time."""
        with self._speaking:
            self._observe(event)

    def _provision(self, host: Host, desired: Desired, journal: _Journal) -> Result:
        accepted = journal.warn if self._options.accept_new else None
        with converse(host, desired.scope, keys=self._keys, accepted=accepted) as session:
            facts = look(session, desired)
            changes = plan(desired, facts)
            journal.changes = tuple(map(str, changes))
            if self._options.check:
                drift = EXIT_DRIFT if changes else EXIT_OK
                return Result(host.name, "changed" if changes else "ok", journal.changes, exit_code=drift, facts=facts)
            if not changes:
                return Result(host.name, "ok", facts=facts)
            return self._change(session, desired, facts, changes, journal)

    def _change(
        self, session: Session, desired: Desired, facts: Facts, changes: tuple[Change, ...], journal: _Journal
    ) -> Result:
        wheels: tuple[Path, ...] = ()
        if any(isinstance(change, BuildEnvironment) for change in changes):
            journal.note("progress", f"wheels for {facts.target}")
            wheels = self._house(desired.lock).ensure(facts.target)
        journal.writing = True
        demands = Demands(self._options.require_sound, self._options.health_seconds)
        outcome = apply(session, desired, facts, changes, wheels=wheels, demands=demands, observe=journal.hear(changes))
        for warning in outcome.warnings:
            journal.warn(warning)
        _judge(outcome, facts)
        after = look(session, desired)
        left = [change for change in plan(desired, after) if not isinstance(change, Prune)]
        if left:
            raise HostError(
                f"the sensor says that it is done, and yet is not what it should be: {left[0]}; run again, and report "
                "this if it stays"
            )
        return Result(journal.host, "changed", journal.changes, facts=after)

    def _house(self, lock: str) -> Wheelhouse:
        with self._housing:
            return self._houses.setdefault(lock, Wheelhouse(lock, self._options.cache))


@dataclass(slots=True)
class _Journal:
    """What has happened on one host so far; it belongs to that host's thread."""

    host: str
    say: Callable[[Event], None]
    changes: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    writing: bool = False

    def note(self, kind: Literal["change", "progress", "warning"], text: str, percent: float | None = None) -> None:
        self.say(Note(self.host, kind, text, percent))

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.note("warning", text)

    def hear(self, changes: Sequence[Change]) -> Callable[[dict[str, Any]], None]:
        """Translate the device's events."""
        order = [change for change in changes if not isinstance(change, Prune)] + [
            change for change in changes if isinstance(change, Prune)
        ]

        def hear(event: dict[str, Any]) -> None:
            match event:
                case {"event": "step", "number": int(number)} if 0 <= number < len(order):
                    self.begun.append(str(order[number]))
                    self.note("change", self.begun[-1])
                case {"event": "progress", "text": str(text), "percent": int() | float() as percent}:
                    self.note("progress", text, percent)
                case {"event": "progress", "text": str(text)}:
                    self.note("progress", text)
                case _:
                    pass

        return hear

    def failed(self, status: Status, error: FleetError, code: int) -> Result:
        return Result(self.host, status, tuple(self.begun), error=str(error), exit_code=code)

    def timed(self, result: Result, seconds: float) -> Result:
        return Result(
            host=result.host,
            status=result.status,
            changes=result.changes,
            warnings=tuple(self.warnings),
            error=result.error,
            exit_code=result.exit_code,
            seconds=seconds,
            facts=result.facts,
        )


def _judge(outcome: Outcome, facts: Facts) -> None:
    """Turn an end that is not good into the error that it is."""
    why = "; ".join(outcome.why)
    match outcome.end:
        case "done":
            return
        case "rolled-back":
            state = "which works" if not outcome.problems else f"which is not well either: {outcome.problems[0]}"
            before = (facts.due or {}).get("previous") or (facts.release.name if facts.release else "before")
            raise HostError(
                f"the new release did not work ({why}); it went back to release {before}, {state}; correct what is "
                "wrong and run again"
            )
        case _:
            raise HostError(
                f"the release is in place and does not work: {why}; look at `journalctl -u 'acoupi-*'` there"
            )


def _code_when_lost(*, writing: bool) -> int:
    return HostError.exit_code if writing else UnreachableError.exit_code


def _interrupted(future: Future[Result], host: Host) -> Result:
    """What is known about a host when Ctrl-C was pressed."""
    if future.done() and not future.cancelled():
        return future.result()
    if future.cancelled():
        return Result(host.name, "skipped", error="interrupted before it was begun", exit_code=EXIT_INTERRUPTED)
    return Result(
        host.name, "failed", error="interrupted in the middle; outcome unknown; run again", exit_code=EXIT_INTERRUPTED
    )
