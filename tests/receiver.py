"""A receiver of messages: a real HTTP server that stores by key, and misbehaves when it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Receiver:
    """What came in.

    Attributes:
        url: Where to send to.
        stored: Bodies by their key: what comes again is absorbed.
        repeats: How many came again.
        requests: Method, path and headers of everything that came, in order.
        behave: Given the number of the request (from 1) and its key, says what happens: a status to answer with (2xx
            stores the message), or None to store it and hang up without an answer. A status of 3xx leads on.
        leads_to: Where.
    """

    url: str
    stored: dict[str, bytes] = field(default_factory=dict)
    repeats: int = 0
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    behave: Callable[[int, str], int | None] = field(default_factory=lambda: answers(200))
    leads_to: str = "/elsewhere"
    lock: threading.Lock = field(default_factory=threading.Lock)


def answers(status: int) -> Callable[[int, str], int | None]:
    """Always the same."""
    return lambda *_: status


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            key = self.headers["Idempotency-Key"]
            with receiver.lock:
                receiver.requests.append((self.command, self.path, dict(self.headers)))
                answer = receiver.behave(len(receiver.requests), key)
                if answer is None or answer < 300:
                    receiver.repeats += key in receiver.stored
                    receiver.stored[key] = body
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer)
            if 300 <= answer < 400:
                self.send_header("Location", receiver.leads_to)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        do_PUT = do_POST  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/messages")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)
