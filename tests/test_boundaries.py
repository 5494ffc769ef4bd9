"""The walls that an import contract cannot say: who opens which foreign library, and when it is loaded."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.support import python_code

ROOT = Path(__file__).parents[1]
DOORS = {
    "fabric": ("acoupi_fleet/remote",),
    "paramiko": ("acoupi_fleet/remote", "acoupi_fleet/demo"),  # the demo's own SSH server speaks through it
    "rich": ("acoupi_fleet/report.py",),
    "sounddevice": ("acoupi_runtime/audio/microphone.py",),
    "jinja2": ("acoupi_runtime/system/setup.py",),
}
HEAVY = ("celery", "kombu", "numpy", "sounddevice", "redis")


def modules(*places: str) -> list[Path]:
    """Return the modules of some places, a place being a file or a folder."""
    found = [path for place in places for path in [ROOT / place, *(ROOT / place).rglob("*.py")] if path.is_file()]
    assert found, places
    return found


def imported(path: Path) -> set[str]:
    """Return the top-level names that a module imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names.add(ast.unparse(node.args[0]).strip("'\"").partition(".")[0])
    return names


@pytest.mark.parametrize("library", DOORS)
def test_a_foreign_library_has_one_door(library: str) -> None:
    doors = set(modules(*DOORS[library]))
    assert any(library in imported(path) for path in doors), f"nothing imports {library}: take it out of this table"
    others = [path for path in modules("acoupi_fleet", "acoupi_runtime") if path not in doors]
    assert [str(path.relative_to(ROOT)) for path in others if library in imported(path)] == []


@pytest.mark.parametrize(
    "module",
    ["acoupi_runtime.programs", "acoupi_runtime.configuration", "acoupi_runtime.system.setup", "acoupi_fleet.render"],
)
def test_a_configuration_is_validated_without_what_only_a_sensor_needs(module: str) -> None:
    done = python_code(f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_what_runs_on_a_sensor_before_its_environment_is_there_is_understood_by_old_pythons() -> None:
    for path in modules("acoupi_fleet/device"):
        ast.parse(path.read_text(), feature_version=(3, 7))
        assert imported(path) <= sys.stdlib_module_names | {"acoupi_fleet"}, path.name


def test_every_module_says_on_its_first_line_what_room_it_is() -> None:
    silent = [
        path for path in modules("acoupi_fleet", "acoupi_runtime") if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert [str(path.relative_to(ROOT)) for path in silent] == []
