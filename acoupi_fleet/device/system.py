"""system: the commands of the operating system that the agent calls, with their answers. Touches processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from acoupi_fleet.device.layout import Layout, Refusal, group_ids

if TYPE_CHECKING:
    from pathlib import Path

PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestamp,"
    "ActiveEnterTimestampMonotonic,InvocationID,NeedDaemonReload,FragmentPath,StatusText,ExecMainStatus"
)


class Answer:
    """What a command said and how it ended; -1 stands for `took too long`."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def reason(self) -> str:
        """The last line that it said, errors first."""
        lines = [line.strip() for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return lines[-1] if lines else f"it said nothing and exited with {self.code}"


def run(argv: list[str], env: dict[str, str], timeout: float = 60.0, cwd: str = "/") -> Answer:
    """Run one command to its end, without a terminal and without our stdin, which is the conversation."""
    return _run(argv, env, timeout, cwd, {})


def run_as_service(layout: Layout, argv: list[str], timeout: float = 60.0) -> Answer:
    """Run a command as the user that runs the services, in their environment."""
    who = {}
    ids = layout.ids()
    if layout.system and ids is not None and os.getuid() == 0:
        who = {"user": ids[0], "group": ids[1], "extra_groups": group_ids(layout.user), "umask": 0o077}
    return _run(argv, layout.service_env(), timeout, "/", who)


def _run(argv: list[str], env: dict[str, str], timeout: float, cwd: str, who: dict[str, object]) -> Answer:
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            argv,
            env=env,
            cwd=cwd,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            **who,
        )
    except subprocess.TimeoutExpired as late:
        return Answer(-1, _text(late.stdout), _text(late.stderr) or f"it took longer than {timeout:g} s")
    except OSError as error:
        return Answer(127, "", f"{argv[0]}: {error.strerror}")
    return Answer(done.returncode, _text(done.stdout), _text(done.stderr))


def _text(said: bytes | str | None) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else said or ""


def systemctl(layout: Layout, *words: str, timeout: float = 60.0) -> Answer:
    """Ask this scope's systemd."""
    scope = [] if layout.system else ["--user"]
    return run(["systemctl", *scope, "--no-ask-password", *words], layout.control_env(), timeout)


def must(answer: Answer, what: str) -> Answer:
    """Pass on the answer of a command that has to succeed."""
    if answer.code != 0:
        raise Refusal(f"{what} failed: {answer.reason}")
    return answer


def found(name: str) -> str | None:
    """Where a command is, with the folders that a login shell of a plain user leaves out."""
    return shutil.which(name, path=(os.environ.get("PATH") or "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")


def units(layout: Layout, names: list[str]) -> dict[str, dict[str, str]]:
    """The state of units by name, and of every instance of our workers that is loaded."""
    said = systemctl(layout, "show", "--property=" + PROPERTIES, *names, "acoupi-worker@*.service")
    states = {}
    for block in said.out.split("\n\n"):
        state = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if state.get("Id"):
            states[state["Id"]] = state
    return states


def verify(layout: Layout, paths: list[Path]) -> list[str]:
    """What systemd-analyze finds wrong with unit files. It exits 0 on misspelt keys: only its lines tell."""
    if found("systemd-analyze") is None or not paths:
        return []
    scope = [] if layout.system else ["--user"]
    said = run(["systemd-analyze", *scope, "--man=no", "verify", *map(str, paths)], layout.control_env())
    names = [path.name for path in paths] + [path.name.replace("@.", "@") for path in paths]
    # Commands stand below links that are made after this look, so `not executable` says nothing yet.
    ignored = ("is not executable", "Failed to connect to bus")
    return [
        line.strip()
        for line in said.err.splitlines()
        if any(name in line for name in names) and not any(word in line for word in ignored)
    ]
