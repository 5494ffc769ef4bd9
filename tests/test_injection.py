"""One system call fails, or is the last one that a process makes: nothing is lost, and nothing is done twice.

These are some of all the faults that there can be, the same ones each time; `benchmarks/injection.py` goes through all.
"""

from __future__ import annotations

import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.injection import Bench, points, why_not
from benchmarks.lives import LIVES
from tests.receiver import Receiver

ROUNDS = 16


@pytest.mark.timeout(600)
@pytest.mark.parametrize("life", LIVES)
def test_whichever_system_call_fails_or_is_the_last_nothing_is_lost(
    life: str, tmp_path: Path, receiver: Receiver
) -> None:
    if (reason := why_not()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"this must not be skipped with CI=true: {reason}")
        pytest.skip(reason)
    hit = 0
    with closing(Bench(life, tmp_path / "bench", receiver.url, receiver.stored)) as bench:
        for fault, call, number in random.Random(life).sample(points(bench.calls()), ROUNDS):
            made = bench.round(fault, call, number)
            assert not made.wrong, f"{fault} at {call} {number}\n{bench.said()}"
            hit += made.hit
    assert hit > ROUNDS / 2, "calls are not made to fail"
