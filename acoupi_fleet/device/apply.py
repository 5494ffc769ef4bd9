"""apply: carries out a plan on this device, as one transaction that succeeds or goes back. The only writer here.

It goes on when the workstation is gone. Once everything was received nothing can be left half done, except by a power
cut; and for that the marker `due.json` says that a change was begun, and the release is whole before anything points
to it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import environment, facts, files, health, packages, release, system, undo, users
from acoupi_fleet.device.layout import TARGET, Layout, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acoupi_fleet.device.call import Call

    Step = dict[str, Any]

STEPS: dict[str, Callable[[Call, Layout, Step], Any]] = {
    "create-user": lambda _, layout, __: users.create_user(layout),
    "join-group": lambda _, layout, step: users.join_group(layout, step["user"], step["group"]),
    "linger": lambda _, layout, __: users.linger(layout),
    "install-packages": lambda call, layout, step: packages.install(call, layout, step["names"], step["proxy"]),
    "build-environment": environment.build,
    "use-runtime": lambda _, layout, step: environment.try_runtime(layout, step["path"], step["imports"]),
    "push-release": release.push,
    "make-home": lambda _, layout, step: users.make_home(layout, step["folders"], step["links"]),
    "stop-units": lambda _, layout, step: system.systemctl(layout, "stop", *step["names"], timeout=120.0),
    "switch": lambda _, layout, step: release.switch(layout, step["name"]),
    "link-units": lambda _, layout, step: release.link_units(layout, step["names"]),
    "reload": lambda _, layout, __: system.must(system.systemctl(layout, "daemon-reload"), "systemctl daemon-reload"),
    # Its answer is not judged: whether it works is what the look afterwards tells.
    "restart": lambda _, layout, __: system.systemctl(layout, "restart", TARGET, timeout=180.0),
    "prune": lambda _, layout, step: release.prune(layout, step["releases"], step["envs"]),
}
# From the first of these on, what runs is touched.
TOUCHING = ("stop-units", "switch", "link-units", "reload", "restart")


def apply(call: Call) -> dict[str, Any]:
    """The verb: `scope`, `owner`, `expected`, `needs_bytes`, `steps`, `afterwards`, `previous` and `health` in.

    Out: `outcome`, `why`, and the `health` that was seen. Outcomes: `done`; `unhealthy` (it stays, since it was no
    better before, or there is nothing to go back to); `rolled-back`.
    """
    asked = call.args
    layout = Layout(asked["scope"])
    with ExitStack() as held:
        with room_for(layout, asked["needs_bytes"]):
            was_due = begin(call, layout, held)
        call.say("go")
        return Transaction(call, layout, was_due).run()


def begin(call: Call, layout: Layout, held: ExitStack) -> Any:
    """Have this sensor alone, see that it is as it was looked at, and mark it; what was due before."""
    asked = call.args
    held.enter_context(only_one(layout, asked["owner"]))
    now = {"current": files.points_to(layout.current), "due": facts.read_json(layout.due)}
    if now != asked["expected"]:
        raise Refusal("somebody changed this sensor while it was looked at; run again")
    free = files.free_bytes(layout.prefix)
    if free < asked["needs_bytes"]:
        raise Refusal(no_space(layout, free, asked["needs_bytes"]))
    begun = {"owner": asked["owner"], "since": time.time(), "previous": asked["previous"]}
    files.replace(layout.due, json.dumps(begun).encode(), 0o644)
    return now["due"]


class Transaction:
    """All steps in their order, then a look; on a failure what they had touched of what runs is put back."""

    def __init__(self, call: Call, layout: Layout, was_due: Any) -> None:
        self.call = call
        self.layout = layout
        self.asked = call.args
        self.was_due = was_due
        self.touched = False
        self.before = health.Health()

    def run(self) -> dict[str, Any]:
        """Carry it out, to one of its ends."""
        try:
            self.steps()
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            why = no_space(self.layout, 0, self.asked["needs_bytes"]) if full else str(error) or type(error).__name__
            if self.touched and self.asked["previous"] is not None:
                return self.rolled_back([why])
            if not self.touched:
                undo_marker(self.layout, self.was_due)
            if full:
                raise Refusal(why) from None
            raise
        if not self.touched:
            return self.done(health.Health())
        seen = health.wait(self.layout, self.asked["health"], self.call)
        worse = seen.worse_than(self.before)
        if worse and self.asked["previous"] is not None:
            return self.rolled_back(worse)
        if seen.problems:
            # The marker stays: the next run starts it again and looks again, although no file differs.
            undo.take_up(self.layout)
            return {"outcome": "unhealthy", "why": list(seen.problems.values()), "health": seen.as_dict()}
        return self.done(seen)

    def steps(self) -> None:
        """One after the other; before the first that touches what runs, see how well that does."""
        for number, step in enumerate(self.asked["steps"]):
            if step["do"] in TOUCHING and not self.touched:
                if self.asked["previous"] is not None:
                    self.before = health.look(self.layout, self.demands_of(self.asked["previous"]))
                self.touched = True
            if step["do"] == "switch" and self.asked["previous"] is not None:
                undo.lay(self.layout, self.asked["previous"], self.asked["health"]["units"])
            self.call.say("step", number=number)
            STEPS[step["do"]](self.call, self.layout, step)

    def done(self, seen: health.Health) -> dict[str, Any]:
        """The change is good: nothing is due any more, and what nobody can go back to goes."""
        self.forget()
        for number, step in enumerate(self.asked["afterwards"], start=len(self.asked["steps"])):
            self.call.say("step", number=number)
            STEPS[step["do"]](self.call, self.layout, step)
        return {"outcome": "done", "why": [], "health": seen.as_dict()}

    def rolled_back(self, why: list[str]) -> dict[str, Any]:
        """Go back to the release that was in force, and see whether it works."""
        previous = self.asked["previous"]
        self.call.say("progress", text="going back to release " + previous)
        failed = files.points_to(self.layout.current)
        wanted = self.demands_of(previous)
        release.go_back(self.layout, previous, sorted(set(self.asked["health"]["units"]) - set(wanted["units"])))
        if failed is not None and failed != "releases/" + previous:
            files.remove(self.layout.prefix / failed)
        undo.take_up(self.layout)
        seen = health.wait(self.layout, wanted, self.call)
        if not seen.problems:
            self.forget()
        return {"outcome": "rolled-back", "why": why, "health": seen.as_dict()}

    def demands_of(self, name: str) -> dict[str, Any]:
        """What has to work when an earlier release is in force: its own units and workers, not the new one's."""
        manifest = facts.read_json(self.layout.releases / name / "manifest.json") or {}
        return dict(self.asked["health"], **manifest.get("runs", {}))

    def forget(self) -> None:
        """Take the marker away, and the way back."""
        undo.take_up(self.layout)
        files.remove(self.layout.due)
        files.sync_dir(self.layout.prefix)


def undo_marker(layout: Layout, was_due: Any) -> None:
    """Nothing that runs was touched: what is due is what was due before."""
    if was_due is None:
        files.remove(layout.due)
    else:
        files.replace(layout.due, json.dumps(was_due).encode(), 0o644)


def no_space(layout: Layout, free: int, needed: int) -> str:
    """The line for a full card."""
    mib = 1024 * 1024
    have = f"{free // mib} MiB are free" if free else "the card is full"
    return (
        f"no space below {layout.prefix}: {have}, {needed // mib + 1} MiB are needed; "
        "nothing was changed; free some and run again"
    )


@contextmanager
def room_for(layout: Layout, needed: int) -> Iterator[None]:
    """Say in the line for it that the card has no room even for what comes before a change."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Refusal(no_space(layout, 0, needed)) from None


@contextmanager
def only_one(layout: Layout, owner: str) -> Iterator[None]:
    """One change at a time: a second one is refused, and told who is at it since when."""
    layout.prefix.mkdir(parents=True, exist_ok=True)
    handle = os.open(str(layout.prefix / "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "r+", encoding="utf-8") as stream:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(
                "%s is changing this sensor; wait until that is done and run again" % (stream.read() or "somebody")
            ) from None
        stream.truncate(0)
        stream.write("{} (since {})".format(owner, time.strftime("%H:%M:%S", time.gmtime())) + " UTC")
        stream.flush()
        yield
