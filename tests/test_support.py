"""The servers that other tests rely on are real, are reachable only by their test, and leave nothing behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import free_port, running_redis, running_sshd, wait_until, why_no_sshd

if TYPE_CHECKING:
    from tests.support import RedisServer, SshServer


def processes_that_mention(text: str) -> list[int]:
    """Return the processes with this text in their command line, our own aside."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in words:
                found.append(int(entry.name))
    return found


def test_waiting_returns_the_first_true_answer() -> None:
    answers = iter([0, 0, 7])
    assert wait_until(lambda: next(answers), 60, "a seven") == 7


def test_waiting_in_vain_says_for_what_and_what_the_last_answer_was() -> None:
    with pytest.raises(AssertionError, match=r"waited 0 s for rain; the last answer was ''"):
        wait_until(lambda: "", 0, "rain")


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[1] < 32768


def test_redis_answers_on_its_socket_alone(redis_server: RedisServer) -> None:
    assert redis_server.command("SET", "frames", "48000") == "OK"
    assert redis_server.command("GET", "frames") == "48000"
    assert redis_server.command("CONFIG", "GET", "port").split() == ["port", "0"]


def test_redis_is_gone_after_its_test(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        assert processes_that_mention(str(server.socket))
    assert not processes_that_mention(str(server.socket))


def test_a_login_is_the_users_own_in_a_home_of_the_tests(sshd: SshServer) -> None:
    done = sshd.ssh("id -un; pwd; echo ~; touch here; cat", stdin="through stdin")
    real_home = str(Path("~").expanduser()) if os.environ.get("HOME") else ""
    user, working_directory, home, said = done.stdout.splitlines()
    assert done.stderr == ""
    assert (user, said) == (sshd.user, "through stdin")
    assert working_directory == home
    assert (sshd.home / "here").exists()
    assert not real_home or not (Path(real_home) / "here").exists()


def test_a_server_with_another_key_is_refused(sshd: SshServer) -> None:
    wrong = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7bXeMAIC0XvIsIxI6yU3y0oGrvnCDyrrrvPkYhJXyS"
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {wrong}\n")
    done = sshd.ssh("true")
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_the_ssh_server_takes_its_open_logins_along(tmp_path: Path) -> None:
    if (reason := why_no_sshd()) is not None:
        pytest.skip(reason)
    sign = f"sleep 98765{os.getpid()}"
    with running_sshd(tmp_path) as server:
        server.ssh(f"nohup {sign} >/dev/null 2>&1 &")
        wait_until(lambda: processes_that_mention(sign.replace(" ", "\0")), 60, "the login's process to begin")
    wait_until(lambda: not processes_that_mention(sign.replace(" ", "\0")), 60, "the login's process to end")
