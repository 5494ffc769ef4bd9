"""The demonstration: it shows what it promises, with the public command line, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from acoupi_fleet.demo import stage
from acoupi_fleet.demo.processes import Process
from tests.support import wait_until

ROOT = Path(__file__).parents[1]
DEMO = [sys.executable, "-m", "acoupi_fleet", "demo"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PATIENCE = 400.0
"""A hundred seconds on a machine that does much else; never a measure."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a demonstration may be; removed whatever happens."""
    path = Path(tempfile.mkdtemp(prefix="acoupi-"))
    yield path / "demo"
    stage.removed(path / "demo")
    shutil.rmtree(path)


def processes_of(folder: Path) -> list[str]:
    """The living processes that have a word or a variable of their environment below a folder."""
    wanted = f"{folder}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError, ProcessLookupError):
                about = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
                if wanted in about and Process.of(int(entry.name)).alive:
                    found.append(about.decode(errors="replace").replace("\0", " ")[:200])
    return found


@pytest.mark.timeout(PATIENCE + 60)
def test_the_whole_demonstration_shows_what_it_promises_and_leaves_nothing_behind(folder: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--folder", folder], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    # Each command with what it printed.
    shown = dict(re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", done.stdout, re.MULTILINE))
    first, second = re.findall(
        r"^\$ acoupi-fleet provision sensors.ini\n((?:(?!\$ ).*\n)*)", done.stdout, re.MULTILINE
    )[:2]
    for name in stage.RUNNING:
        assert re.search(rf"^changed +{name} ", first, re.MULTILINE), first
        assert re.search(rf"^ok +{name} ", second, re.MULTILINE), second
        assert f"[{name[:3]}" in shown["cat sensors.ini"]
    for said in (first, second):
        assert re.search(r"^unreachable +far1 .*refused", said, re.MULTILINE), said
    status = shown["acoupi-fleet status sensors.ini"]
    assert re.search(r"^bat2 +SILENT ", status, re.MULTILINE), status
    assert re.search(r"^far1 +unreachable ", status, re.MULTILINE), status
    for name in stage.CALLING:
        assert re.search(rf"^{name} +(recording|listening) .* dBFS ", status, re.MULTILINE), status
    assert any(command.startswith("kill -9 ") for command in shown)
    assert re.search(
        r"^owl2 +(recording|listening) ", shown["acoupi-fleet status sensors.ini --limit owl2"], re.MULTILINE
    )
    restarted = shown["acoupi-fleet restart sensors.ini --limit owls"]
    assert re.findall(r"^restarted +(\w+) ", restarted, re.MULTILINE) in (["owl1", "owl2"], ["owl2", "owl1"])
    checked = shown["acoupi-fleet check sensors.ini --limit owls:bats"]
    assert sorted(re.findall(r"^ok +(\w+) ", checked, re.MULTILINE)) == sorted(stage.RUNNING), checked
    assert not folder.exists()
    assert processes_of(folder) == []


def _begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a demonstration as a shell does, and return when its sensors are on."""
    process = subprocess.Popen(
        [*DEMO, "--folder", str(folder), *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("$ acoupi-fleet provision"):
            return process
    raise AssertionError("it ended before its sensors were on")


def test_ctrl_c_switches_everything_off_and_removes_it(folder: Path) -> None:
    with _begin(folder, "--keep") as process:
        assert processes_of(folder)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that is in the foreground
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, out
    assert out.splitlines()[-1] == "interrupted: the sensors are switched off and removed"
    assert not folder.exists()
    assert processes_of(folder) == []


def test_what_a_killed_demonstration_left_running_is_ended_by_its_own_verb(folder: Path) -> None:
    with _begin(folder) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    assert processes_of(folder)
    for answer in ("ended", "no demonstration was running"):
        done = subprocess.run(
            [*DEMO, "--stop", "--folder", folder], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"{answer}\n")
        assert not folder.exists()
        wait_until(lambda: processes_of(folder) == [], PATIENCE, "the last process to go")


@pytest.mark.parametrize("folder_is", ["taken", "too long", "unwritable"])
def test_a_folder_that_cannot_be_used_is_one_line_and_is_left_as_it_is(folder_is: str, folder: Path) -> None:
    if folder_is == "taken":
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
        wanted, said = folder, "remove it, or name another --folder"
    elif folder_is == "too long":
        wanted, said = folder / ("x" * 60), "name a --folder with a short, plain path"
    else:
        wanted, said = folder / "no/such/place", "No such file or directory"
    done = subprocess.run(
        [*DEMO, "--folder", wanted], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    if folder_is == "taken":
        stopped = subprocess.run([*DEMO, "--stop", "--folder", folder], env=ENVIRONMENT, check=False)
        assert stopped.returncode == 0
        assert (folder / "thesis.txt").read_text() == "mine"
        shutil.rmtree(folder)
