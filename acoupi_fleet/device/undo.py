"""undo: a release that was not seen to work goes back at the next boot. Touches one unit and one script of its own.

The agent goes on when the workstation is gone; only a power cut, between the switch and the look that says that all is
well, ends it. For that the way back is laid before the switch, and taken up again once all is well.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from acoupi_fleet.device import files

if TYPE_CHECKING:
    from pathlib import Path

    from acoupi_fleet.device.layout import Layout

UNIT = "acoupi-undo.service"


def lay(layout: Layout, previous: str, units: list[str]) -> None:
    """Lay the way back to a release. `units`: what must not start before it was taken."""
    files.replace(script(layout), way_back(layout, previous).encode(), 0o755)
    files.replace(layout.unit_dir / UNIT, unit(layout, units).encode(), 0o644)
    layout.wants_dir.mkdir(parents=True, exist_ok=True)
    files.link(layout.wants_dir / UNIT, "../" + UNIT)


def take_up(layout: Layout) -> None:
    """All is well, or gone back already: nothing is to happen at the next boot."""
    for path in (layout.wants_dir / UNIT, layout.unit_dir / UNIT, script(layout)):
        files.remove(path)


def script(layout: Layout) -> Path:
    """The way back, as a script: what is run at boot must not need the release that may be broken."""
    return layout.prefix / "undo.sh"


def unit(layout: Layout, units: list[str]) -> str:
    """Run before anything of ours starts. Its name is nobody's: a first release has no way back, and no such unit."""
    return (
        "[Unit]\n"
        "Description=acoupi: back to the release that was seen to work\n"
        f"ConditionPathExists={layout.due}\n"
        f"Before={' '.join(units)}\n"
        "[Service]\n"
        "Type=oneshot\n"
        f'ExecStart=/bin/sh "{script(layout)}"\n'
    )


def way_back(layout: Layout, previous: str) -> str:
    """Switch as `release.switch` does, give systemd that release's units, and forget what was due."""
    current, due = shlex.quote(str(layout.current)), shlex.quote(str(layout.due))
    there = shlex.quote(str(layout.unit_dir))
    old = shlex.quote("releases/" + previous)
    control = "systemctl" if layout.system else "systemctl --user"
    return (
        "set -eu\n"
        f"failed=$(readlink {current})\n"
        f"ln -sfn {old} {current}.tmp\n"
        f"mv -T {current}.tmp {current}\n"
        f"for unit in {current}/units/*; do\n"
        f'  ln -sfn "$unit" {there}/"${{unit##*/}}"\n'
        "done\n"
        f"for unit in {there}/acoupi*; do\n"
        f'  case "$(readlink "$unit")" in {current}/units/*) [ -e "$unit" ] || rm "$unit" ;; esac\n'
        "done\n"
        "sync\n"
        f'[ "$failed" = {old} ] || rm -rf {shlex.quote(str(layout.prefix))}/"$failed"\n'
        f"rm -f {due} {shlex.quote(str(layout.wants_dir / UNIT))} {there}/{UNIT} {shlex.quote(str(script(layout)))}\n"
        f"{control} daemon-reload\n"
    )
