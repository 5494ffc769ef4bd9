"""The lists of faults cannot rot: the page that people read and the table of proofs speak of what is there."""

from __future__ import annotations

import re

import pytest

from tests.prove.__main__ import CHANGES, main
from tests.prove.change import ROOT, Change, is_a_test

ROWS = range(31, 60)
"""Faults of a device; those before are a fleet's."""


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.row}-{change.file}")
def test_what_is_to_be_taken_away_stands_once_and_its_test_exists(change: Change) -> None:
    assert change.stands() == 1, f"correct tests/prove: {change.old!r} of {change.file}"
    assert change.new not in (change.old, change.old.strip())
    assert is_a_test(change.test), change.test


def test_every_fault_has_a_proof() -> None:
    assert {change.row for change in CHANGES} - {0} == set(ROWS)


def test_the_page_of_faults_names_every_row_and_only_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+) \|(.+)\|$", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(ROWS)
    for number, text in rows:
        tests = re.findall(r"`(test_\w+\.py::test_\w+)`", text)
        assert tests, f"row {number} names no test"
        for test in tests:
            assert is_a_test(f"tests/{test}"), f"row {number}: {test}"


def test_a_change_that_no_test_notices_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unnoticed = Change(
        99,
        "acoupi_runtime/tasks/board.py",
        "HOT = 80.0",
        "HOT = 80.5",
        "tests/test_beat.py::test_an_interval_starts_at_once_and_keeps_its_pace",
    )
    monkeypatch.setattr("tests.prove.__main__.CHANGES", (unnoticed,))
    assert main(["99"]) == 1
    assert "GREEN 99 acoupi_runtime/tasks/board.py" in capsys.readouterr().out
    assert main(["98"]) == 1
