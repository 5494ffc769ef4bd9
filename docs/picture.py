"""picture: draws docs/demo.svg from a real run of the demonstration: `make picture`. Touches that file only."""

# ruff: noqa: INP001 - a script, in no package

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 124
PICTURE = Path(__file__).parent / "demo.svg"
DRAWN = ("1.", "3.", "4.")
"""How the headings of the parts begin that are drawn: a picture that nobody has to scroll through."""
FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    """Run it as a person would, and draw what the terminal showed."""
    command = [sys.executable, "-m", "acoupi_fleet", "demo"]
    terminal = {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    done = subprocess.run(
        command, env={**os.environ, **terminal}, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ ", "bright_black") + Text("acoupi-fleet demo", "cyan"))
    for part in done.stdout.decode().strip("\n").split("\n\n\x1b[1m"):  # before each heading is a free line
        if part.startswith(DRAWN):
            console.print()
            console.print(Text.from_ansi(f"\x1b[1m{part}"))
    drawn = console.export_svg(title="acoupi-fleet demo", unique_id="demo")
    # No font from somebody's server: whoever looks at the picture has one. And spaces at a line's beginning count.
    drawn = FACES.sub("", drawn).replace("Fira Code, monospace", "monospace")
    PICTURE.write_text(drawn.replace("<svg ", '<svg xml:space="preserve" ', 1), encoding="utf-8")


if __name__ == "__main__":
    main()
