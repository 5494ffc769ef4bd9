"""One behaviour less: the form of the tables beside this file."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Change:
    """A change of the product after which a test has to be red.

    Attributes:
        row: The fault that is survived no more, as docs/faults.md numbers them; 0 for what stands beside them.
        file: Where.
        old: What stands there, once.
        new: What stands there without the behaviour.
        test: Which test must be red then, as pytest names it.
    """

    row: int
    file: str
    old: str
    new: str
    test: str

    def stands(self, root: Path = ROOT) -> int:
        """How often the old text is there: once, or this table is out of date."""
        return (root / self.file).read_text().count(self.old)


def is_a_test(test: str) -> bool:
    """Whether there is a test of this name, as pytest names it; its parameters are not looked at."""
    file, _, name = test.partition("::")
    path = ROOT / file
    if not path.is_file():
        return False
    functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    return name.partition("[")[0] in functions
