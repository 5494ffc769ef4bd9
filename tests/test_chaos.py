"""A short storm over the real processes of a sensor: whatever is killed, or cut off from power, nothing is lost.

The long one, and its control without fsyncs, is `benchmarks/chaos.py`; its figures are in docs/reliability.md. What is
asserted here are promises, never rates: on a slow machine less happens, and to the same end.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.chaos import chaos
from benchmarks.powercut import why_not

SEED = 12
"""Of what comes when: the card is full after 9 s, the power goes after 6 s."""
SECONDS = 60
"""For which it rages. Starting, and coming to an end, take some more."""


@pytest.mark.timeout(1800)
def test_nothing_is_lost_whatever_is_killed_and_whenever_the_power_is_cut() -> None:
    if (reason := why_not()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"this must not be skipped with CI=true: {reason}")
        pytest.skip(reason)
    report = chaos(SECONDS, SEED, kill=3, cut=8)
    print(report.text())
    assert report.faults["cut"] >= 1
    assert report.kills >= 1
    verdict = report.verdict
    assert verdict.completed > 0
    assert verdict.received > 0
    assert verdict.lost == verdict.altered == verdict.malformed == verdict.unknown == []
    assert verdict.missing == verdict.extra == []
    assert verdict.unfinished == []
    assert verdict.integrity == "ok"
    assert verdict.counters.get("store_rebuilt", 0) == 0
    assert verdict.counters.get("quarantined", 0) == 0
