"""together: the same work for many hosts at once, results as they come. Touches threads only."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from acoupi_fleet.errors import HostError
from acoupi_fleet.inventory import Host

T = TypeVar("T")


def together(hosts: Sequence[Host], forks: int, work: Callable[[Host], T]) -> Iterator[tuple[Host, T | HostError]]:
    """Do the work for each host in a thread of its own, at most `forks` at once; a host's failure is a value.

    The threads do not outlive the program: Ctrl-C ends the waiting here at once, and what a device has begun it sees
    through by itself.

    Raises:
        Exception: What the work raises besides a HostError is a mistake of ours, and stops everything.
    """
    waiting: queue.SimpleQueue[Host] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Host, T | HostError | BaseException]] = queue.SimpleQueue()
    for host in hosts:
        waiting.put(host)

    def worker() -> None:
        while True:
            try:
                host = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((host, work(host)))
            except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
                done.put((host, error))

    for number in range(min(max(forks, 1), len(hosts))):
        threading.Thread(target=worker, name=f"host-{number}", daemon=True).start()
    for _ in hosts:
        host, result = done.get()
        if isinstance(result, BaseException) and not isinstance(result, HostError):
            raise result
        yield host, result
