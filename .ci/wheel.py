"""Says what is missing in the wheel in dist/: everything a workstation needs is inside it, the templates too."""
# ruff: noqa: INP001, T201 -- a script, which prints

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Compare the sources with the one wheel that was built."""
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        print(f"dist/ has {len(wheels)} wheels: make wheel", file=sys.stderr)
        return 1
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in ("acoupi_fleet", "acoupi_runtime")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    templates = [path for path in (ROOT / "templates").rglob("*") if path.is_file()]
    wanted |= {f"acoupi_runtime/{path.relative_to(ROOT).as_posix()}" for path in templates}
    missing = sorted(wanted - names)
    if missing or not templates:
        print(f"{wheels[0].name} lacks {', '.join(missing) or 'templates'}", file=sys.stderr)
        return 1
    print(f"{wheels[0].name}: {len(names)} files, {len(templates)} templates, {wheels[0].stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
