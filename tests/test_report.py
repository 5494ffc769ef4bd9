"""What is shown: one complete line each behind a pipe, no control characters, counts and words as documented."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from acoupi_fleet.doctor import Examination, Finding
from acoupi_fleet.provision import Note, Result
from acoupi_fleet.report import Report, Talk, ago
from acoupi_fleet.status import Look

RICH_LISTENS_TO = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
LONG = "no answer within 10 s; is it on, and in this network? " * 5

RESULTS = [
    Result("orchard", "changed", ("release 1", "restart acoupi.target"), warnings=("quiet",), seconds=1.25),
    Result("pond", "ok", seconds=0.4),
    Result("gate", "unreachable", error=LONG, exit_code=4),
    Result("shed", "failed", ("release 1",), error="it broke; look", exit_code=2),
    Result("barn", "skipped", error="not begun"),
]


def in_a_terminal(code: str, columns: int) -> str:
    """What a person sees who runs this code in a terminal of so many columns, with its control sequences."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in RICH_LISTENS_TO}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=inner,
        stderr=inner,
        cwd=Path(__file__).parents[1],
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(inner)
    seen = b""
    with contextlib.suppress(OSError):  # that is how the end of a terminal is told
        while piece := os.read(outer, 1 << 16):
            seen += piece
    os.close(outer)
    assert process.wait(60) == 0, seen.decode()
    return seen.decode().replace("\r\n", "\n")


def without_control(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def run_all(report: Report) -> None:
    with report.progress([result.host for result in RESULTS]) as observe:
        observe(Note("orchard", "change", "release 1"))
        observe(Note("orchard", "progress", "received a wheel", 40.0))
        observe(Note("orchard", "warning", "quiet"))
        for result in RESULTS:
            observe(result)
    report.recap(RESULTS)


def test_behind_a_pipe_each_result_is_one_complete_line(capsys: pytest.CaptureFixture[str]) -> None:
    run_all(Report())
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "warning       orchard  quiet",
        "changed       orchard  2 changes (1.2 s)",
        "                       - release 1",
        "                       - restart acoupi.target",
        "ok            pond     nothing to do (0.4 s)",
        f"unreachable   gate     {LONG}".rstrip(),
        "failed        shed     it broke; look",
        "skipped       barn     not begun",
        "",
        "orchard : ok=1  changed=2  unreachable=0  failed=0  skipped=0",
        "pond    : ok=1  changed=0  unreachable=0  failed=0  skipped=0",
        "gate    : ok=0  changed=0  unreachable=1  failed=0  skipped=0",
        "shed    : ok=0  changed=1  unreachable=0  failed=1  skipped=0",
        "barn    : ok=0  changed=0  unreachable=0  failed=0  skipped=1",
    ]


def test_verbose_lists_steps_but_not_how_far_each_has_come(capsys: pytest.CaptureFixture[str]) -> None:
    run_all(Report(verbose=True))
    out = capsys.readouterr().out
    assert "              orchard  release 1\n" in out
    assert "received a wheel" not in out


def test_many_changes_are_counted_and_listed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result("pond", "changed", tuple(f"step {number}" for number in range(9)), seconds=2.0)
    for verbose, expected in ((False, "9 changes (2.0 s; -v lists them)"), (True, "- step 8")):
        with Report(verbose=verbose).progress(["pond"]) as observe:
            observe(result)
        assert expected in capsys.readouterr().out


def test_a_check_says_what_would_change_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    with Report().progress(["pond"], checking=True) as observe:
        observe(Result("pond", "changed", tuple(f"step {number}" for number in range(9))))
    out = capsys.readouterr().out
    assert out.startswith("would change  pond  9 changes")
    assert "- step 8" in out


def test_a_terminal_gets_colours_and_its_long_lines_hang_behind_the_host() -> None:
    seen = in_a_terminal("from tests.test_report import *; run_all(Report())", 64)
    plain = without_control(seen)
    assert "\x1b[31munreachable" in seen
    assert max(map(len, plain.replace("\r", "\n").splitlines())) <= 64
    hanging = [line for line in plain.splitlines() if line.startswith(" " * 23) and not line[23:].startswith("- ")]
    assert len(hanging) >= 5


def test_one_line_a_sensor_and_a_count_below(capsys: pytest.CaptureFixture[str]) -> None:
    looks = [
        Look(
            "orchard",
            "recording",
            release="9ad4e086b0b4",
            recording=True,
            last_age=8,
            last_duration=10,
            last_level=-41.24,
            disk_free=21_400_000_000,
            days_left=38,
            clock_offset=0.0,
            clock_synced=True,
            backlog=0,
        ),
        Look("pond", "SILENT", "loose", release="9ad4e086b0b4", clock_offset=75.0, last_level=-200),
        Look("gate", "unreachable", "10.0.0.9 port 22: no answer"),
    ]
    Report().looks(looks)
    assert capsys.readouterr().out.splitlines() == [
        "SENSOR   STATE        RELEASE       LAST RECORDING   LEVEL       FREE              CLOCK    BACKLOG  NOTE",
        "orchard  recording    9ad4e086b0b4  8 s ago, 10.0 s  -41.2 dBFS  21.4 GB, 38 days  in step  0",
        "pond     SILENT       9ad4e086b0b4  none             no sound    -                 +75 s    -        loose",
        "gate     unreachable  10.0.0.9 port 22: no answer",
        "3 sensors: 1 recording, 1 SILENT, 1 unreachable",
    ]
    Report().looks_json(looks)
    seen = json.loads(capsys.readouterr().out)
    assert [(each["host"], each["state"], each["health"]) for each in seen] == [
        ("orchard", "recording", "well"),
        ("pond", "SILENT", "warning"),
        ("gate", "unreachable", "problem"),
    ]


def test_a_narrow_terminal_gets_the_note_on_a_line_below() -> None:
    code = "Report().looks([Look('pond', 'SILENT', 'look at its cable', release='9ad4e086b0b4', clock_offset=0.0)])"
    lines = without_control(in_a_terminal(f"from tests.test_report import *; {code}", 90)).splitlines()
    assert lines[-1] == "        look at its cable"
    assert len(lines) == 3


def test_a_narrow_terminal_leaves_out_columns_that_say_the_same_of_every_sensor() -> None:
    made = (
        "from acoupi_fleet.report import Report; from acoupi_fleet.status import Look;"
        "look = lambda name, backlog: Look(name, 'recording', release='3f2a91c', last_age=8, last_duration=10,"
        "last_level=-41.2, disk_free=10**10, days_left=38, clock_offset=0, backlog=backlog);"
        "Report().looks([look('pond', 0), look('orchard', {backlog}), Look('gate', 'unreachable', 'no answer')])"
    )
    wide = without_control(in_a_terminal(made.format(backlog=0), 120))
    assert all(word in wide for word in ("RELEASE", "CLOCK", "BACKLOG"))
    narrow = without_control(in_a_terminal(made.format(backlog=0), 75))
    assert narrow.splitlines()[0].split() == ["SENSOR", "STATE", "LAST", "RECORDING", "LEVEL", "FREE", "NOTE"]
    assert max(map(len, narrow.splitlines())) <= 75
    differs = without_control(in_a_terminal(made.format(backlog=7), 75))
    assert "BACKLOG" in differs
    assert "RELEASE" not in differs


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after a text with the control sequences that rich uses."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d+)A", piece):
            row -= int(up[1])
        elif piece != "\r" and not piece.startswith("\x1b"):
            lines[row] += piece
    return lines


def test_what_is_drawn_while_results_come_wipes_none_of_them() -> None:
    code = """
import time
from acoupi_fleet import report
from acoupi_fleet.provision import Result
report.FRAME_SECONDS = 0.0002
for round in range(40):
    hosts = [f"host{round}.{number}" for number in range(8)]
    with report.Report().progress(hosts) as observe:
        for host in hosts:
            observe(Result(host, "ok"))
            time.sleep(0.002)
"""
    shown = [line.split()[1] for line in screen(in_a_terminal(code, 80)) if line.startswith("ok ")]
    assert shown == [f"host{round_}.{number}" for round_ in range(40) for number in range(8)]


def test_json_behind_a_pipe_is_json_whatever_is_said_of_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    report = Report()
    with report.waiting(["pond"]) as answered:
        answered("pond")
    report.looks_json([Look("pond", "stopped")])
    assert json.loads(capsys.readouterr().out)[0]["host"] == "pond"


def test_findings_stand_in_columns_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = Examination(
        "pond", (Finding("well", "Python", "3.11.2"), Finding("problem", "disk", "full; make room")), {"a": 1}
    )
    Report().examinations([found])
    assert capsys.readouterr().out == "pond\n  ok       Python  3.11.2\n  problem  disk    full; make room\n"
    Report().examinations_json([found])
    assert json.loads(capsys.readouterr().out)[0]["level"] == "problem"


def test_text_of_a_device_is_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with Report().progress(["pond"]) as observe:
        observe(Result("pond", "failed", error="[red]no[/red] :warning: {x}", exit_code=2))
    assert "[red]no[/red] :warning: {x}" in capsys.readouterr().out


def test_questions_take_their_answers_line_by_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("pond \n"))
    assert Talk(Report()).ask("Name", "sensor1") == "pond"
    assert capsys.readouterr().out == "Name [sensor1]: pond\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s ago"),
        (119, "119 s ago"),
        (150, "2 min ago"),
        (7200, "2 h ago"),
        (400_000, "5 d ago"),
        (-5, "5 s ahead"),
    ],
)
def test_an_age_is_told_in_the_unit_of_a_person(seconds: float, words: str) -> None:
    assert ago(seconds) == words
