"""agent: the device's side of the conversation: a request comes, a verb answers. Touches stdin, stdout, no files.

A verb is a function of one `Call`; it is added in one line of `VERBS`. What it returns is the answer. It may `say`
events on the way, and raise `Refusal` with one clear line. When the workstation goes away in the middle, the verb
goes on to its end: a change is never left half done because a laptop was closed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import apply, doctor, facts, restart, run, status, texts, wire
from acoupi_fleet.device.call import Call
from acoupi_fleet.device.layout import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

VERBS: dict[str, Callable[[Call], dict[str, Any]]] = {
    "facts": facts.facts,
    "apply": apply.apply,
    "run": run.run,
    "status": status.status,
    "restart": restart.restart,
    "doctor": doctor.doctor,
    "texts": texts.texts,
}
ALIVE_SECONDS = 5.0


class Conversation:
    """stdin and stdout of this process; children get neither."""

    def __init__(self) -> None:
        self.stream = sys.stdin.buffer
        self._out = os.fdopen(os.dup(1), "wb")
        self._lock = threading.Lock()
        os.dup2(2, 1)  # whatever a child or a library prints must not fall between two frames

    def say(self, message: dict[str, Any]) -> None:
        """Send a frame, if somebody still listens."""
        with self._lock:
            try:
                self._out.write(wire.pack(message))
                self._out.flush()
            except (OSError, ValueError):
                pass

    def breathe(self) -> None:
        """Show that this process lives while a verb takes its time; a link that says nothing at all is dead."""
        tick = threading.Event()
        while not tick.wait(ALIVE_SECONDS):
            self.say({"event": "alive"})


def main() -> None:
    """Answer requests until the workstation closes its end."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    os.chdir("/")
    conversation = Conversation()
    threading.Thread(target=conversation.breathe, daemon=True).start()
    while True:
        try:
            request = wire.unpack(conversation.stream)
        except wire.LinkLostError:
            return
        if request is None:
            return
        conversation.say(answer(request, conversation))


def answer(request: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """Carry out one request. Every way to fail is an answer, since a traceback on stderr helps nobody far away."""
    verb = VERBS.get(request["verb"])
    if verb is None:
        return {"broken": "no such verb: {}".format(request["verb"])}
    try:
        return {"answer": verb(Call(request["args"], conversation.say, conversation.stream))}
    except Refusal as refusal:
        return {"refused": str(refusal)}
    except wire.LinkLostError as lost:
        return {"refused": f"{lost} in the middle of what it sent"}
    except Exception as error:  # noqa: BLE001 - the workstation raises it; here it would be lost
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"broken": f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"}
