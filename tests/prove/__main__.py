"""Takes one behaviour away at a time, and expects its test to be red: `python -m tests.prove [ROW...]`.

Each change is applied to a copy of the sources, never to this folder. The tests that it is about are run unchanged
first: red means something only where green is possible. The exit code is 1 if any change goes unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.prove import audio, store, system
from tests.prove.change import ROOT, Change

CHANGES = (*audio.CHANGES, *store.CHANGES, *system.CHANGES)
_NOT_COPIED = (".*", "__pycache__", "dist", "build")
_PATIENCE = 1500


def pytest(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy, against that copy."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )


def unnoticed(change: Change, folder: Path) -> str | None:
    """Apply a change to a copy and run its test; None if it is red, else what is wrong."""
    if change.stands(folder) != 1:
        return f"{change.old!r} stands there {change.stands(folder)} times; correct the table"
    path = folder / change.file
    text = path.read_text()
    path.write_text(text.replace(change.old, change.new))
    try:
        done = pytest(folder, "-x", change.test)
    finally:
        path.write_text(text)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]
    # An error while it is collected or set up is no word of the test's.
    if done.returncode == 1 and " failed" in last:
        return None
    return f"{change.test} is not red: {last}"


def main(rows: list[str]) -> int:
    """Apply the changes of some rows, or all."""
    chosen = [change for change in CHANGES if not rows or str(change.row) in rows]
    if not chosen:
        print(f"no change is of row {', '.join(rows)}")
        return 1
    with tempfile.TemporaryDirectory(prefix="prove-") as name:
        folder = Path(name) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        green = pytest(folder, *sorted({change.test for change in chosen}))
        if green.returncode or "skipped" in green.stdout.splitlines()[-1]:
            print(green.stdout + green.stderr)
            print("these tests are to be green, and none skipped, before anything is taken away")
            return 1
        missed = 0
        for change in chosen:
            wrong = unnoticed(change, folder)
            missed += wrong is not None
            word = "red  " if wrong is None else "GREEN"
            print(f"{word} {change.row or '-':>2} {change.file}: {' '.join(change.old.split())[:70]}", flush=True)
            if wrong is not None:
                print(f"         {wrong}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} changes are noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
