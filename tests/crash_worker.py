"""A processing worker's work on one folder, to be killed: `python -m tests.crash_worker FOLDER URL`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from acoupi_runtime.home import Home
from acoupi_runtime.programs import load_program_class
from acoupi_runtime.programs.energy import EnergyConfig
from acoupi_runtime.programs.energy import Program as EnergyProgram


def program_in(folder: Path, url: str) -> EnergyProgram:
    """The energy program over a folder, set up."""
    config = EnergyConfig(
        paths={"recordings": str(folder / "recordings"), "db_metadata": str(folder / "metadata.db")},
        messaging={"http": {"base_url": url, "timeout": 60}},
        processing={"max_attempts": 1000},  # hundreds of kills would quarantine what is not at fault
    )
    program = load_program_class("energy")(config, Home(folder))
    assert isinstance(program, EnergyProgram)
    program.setup(config)
    return program


def main() -> None:
    """Do everything that there is to do, once, in the order in which a sensor does it."""
    logging.basicConfig(level=logging.CRITICAL)
    program = program_in(Path(sys.argv[1]), sys.argv[2])
    for task in ("rescan", "process_backlog", "rescan", "send_messages", "housekeeping"):
        program.tasks[task].function()


if __name__ == "__main__":
    main()
