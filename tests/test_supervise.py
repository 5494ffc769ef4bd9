"""Tests of how a process is seen from outside: real sockets, real locks, real files, real signals."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from acoupi_runtime.home import Home
from acoupi_runtime.system.supervise import AlreadyRunningError, FloodLimit, Notifier, holder_of, holding
from acoupi_runtime.system.watch import STANDSTILL, Watch
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def receiver(address: str) -> socket.socket:
    """Stand where systemd stands."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(address)
    listening.settimeout(60)
    return listening


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_what_is_sent(tmp_path: Path, *, abstract: bool) -> None:
    name = f"acoupi-test-{uuid.uuid4()}" if abstract else str(tmp_path / "notify")
    with receiver("\0" + name if abstract else name) as systemd:
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name if abstract else name, "WATCHDOG_USEC": "30000000"})
        notifier.send("READY=1", "STATUS=two\nlines")
        assert systemd.recv(1000) == b"READY=1\nSTATUS=two lines"
        assert notifier.watchdog == 30


def test_nothing_is_sent_where_nobody_listens(tmp_path: Path) -> None:
    Notifier({}).send("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog is None


def test_a_full_socket_keeps_nobody_waiting(tmp_path: Path) -> None:
    with receiver(str(tmp_path / "notify")):
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(5000):
            notifier.send("WATCHDOG=1", f"STATUS={'x' * 500}")


def test_a_pid_file_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "worker.pid"
    with holding(path, "worker"):
        assert holder_of(path) == os.getpid()
        with (
            pytest.raises(AlreadyRunningError, match=rf"worker: process {os.getpid()} does this already"),
            holding(path, "worker"),
        ):
            pass
        assert holder_of(path) == os.getpid()
    assert holder_of(path) is None
    assert not path.exists()


def test_a_pid_file_that_a_crash_left_stands_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid"
    path.write_text(f"{os.getpid()}\n")  # this process lives, and holds nothing
    assert holder_of(path) is None
    with holding(path, "worker"):
        assert holder_of(path) == os.getpid()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid"
    code = (
        "import sys, signal\nfrom pathlib import Path\nfrom acoupi_runtime.system.supervise import holding\n"
        "with holding(Path(sys.argv[1]), 'worker'):\n    signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        wait_until(lambda: holder_of(path) == process.pid, 60, "the other process to hold its pid file")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists()
    assert holder_of(path) is None


def flood(limit: FloodLimit, lines: Sequence[str]) -> list[str]:
    passed = []
    for line in lines:
        record = logging.makeLogRecord({"name": "test", "levelno": logging.WARNING, "msg": line})
        if limit.filter(record):
            passed.append(record.getMessage())
    return passed


def test_a_line_that_repeats_for_an_hour_is_logged_once_a_minute_with_its_count() -> None:
    now = [0.0]
    limit = FloodLimit(lambda: now[0])
    passed = []
    for second in range(3600):
        now[0] = second
        passed += flood(limit, [f"the microphone is away, trying again in {second} s"])
    assert len(passed) == 60
    assert passed[0] == "the microphone is away, trying again in 0 s"
    assert passed[1] == "the microphone is away, trying again in 60 s (59 more like this since the last one)"


def test_lines_that_say_something_else_are_all_logged() -> None:
    assert flood(FloodLimit(), ["one", "two", "one", "three"]) == ["one", "two", "three"]


def test_both_handlers_of_a_line_agree_on_it() -> None:
    limit = FloodLimit()
    record = logging.makeLogRecord({"name": "test", "levelno": logging.WARNING, "msg": "line"})
    assert (limit.filter(record), limit.filter(record)) == (True, True)


def test_logs_are_rotated_and_hold_warnings_only(tmp_path: Path) -> None:
    code = (
        "import sys, logging\nfrom pathlib import Path\nfrom acoupi_runtime.home import Home\n"
        "from acoupi_runtime.system.supervise import set_up_logging\n"
        "set_up_logging(Home(Path(sys.argv[1])), 'worker', sys.stderr)\n"
        "logging.getLogger('x').info('an info')\n"
        "for n in range(1200):\n    logging.getLogger(f'logger {n}').warning('%s', 'x' * 4000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "an info" in done.stderr
    logs = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert logs == ["worker.log", "worker.log.1", "worker.log.2"]
    assert all(path.stat().st_size <= 1_000_000 for path in (tmp_path / "log").iterdir())
    assert "an info" not in "".join(path.read_text() for path in (tmp_path / "log").iterdir())
    assert Home(tmp_path).log_file("worker").exists()


class Waiting:
    """Queues as Redis reports them."""

    def __init__(self, *lengths: int | None) -> None:
        self._lengths = list(lengths)

    def waiting(self, queues: Sequence[str]) -> int:
        assert queues == ["detection"]
        length = self._lengths.pop(0) if len(self._lengths) > 1 else self._lengths[0]
        if length is None:
            raise ConnectionError("Redis is away")
        return length


def looked(queues: Waiting, *, seconds: float, busy: bool = False, ends: bool = False) -> str | None:
    """What is doubted after so many seconds of looking at these queues."""
    now = [0.0]
    watch = Watch(soft=100, hard=200, clock=lambda: now[0])
    if busy:
        watch.begins("1", "slow")
    while now[0] < seconds:
        watch.look(queues, ["detection"])
        now[0] += 5
        if ends:
            watch.begins("2", "quick")
            watch.ends("2")
    return watch.doubt()


@pytest.mark.parametrize(
    ("doubt", "expected"),
    [
        (looked(Waiting(0), seconds=10_000), None),
        (looked(Waiting(3), seconds=STANDSTILL - 5), None),
        (looked(Waiting(3), seconds=STANDSTILL + 20), "tasks wait in detection and none was begun for 30 s"),
        (looked(Waiting(3), seconds=1000, ends=True), None),
        (looked(Waiting(3), seconds=150, busy=True), None),
        (looked(Waiting(3), seconds=300, busy=True), "task slow runs for more than 200 s (task_time_limit)"),
        (looked(Waiting(None), seconds=1000), None),
        (looked(Waiting(3, 0, 3, 0, 3), seconds=30), None),
    ],
)
def test_a_worker_is_doubted_only_when_it_does_not_move(doubt: str | None, expected: str | None) -> None:
    assert doubt == expected
