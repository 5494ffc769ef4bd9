"""cli: the command line: a table of verbs, their options, and what an error becomes. Shows through report."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from acoupi_fleet import commands
from acoupi_fleet.errors import EXIT_INTERRUPTED, FleetError, UsageError
from acoupi_fleet.report import Report

Options = Callable[[argparse.ArgumentParser], None]

EXIT_CODES = """\
exit codes:
  0 fine; 1 the command line, the inventory or a value in it is wrong, and nothing was contacted;
  2 a sensor failed; 3 check found something to change; 4 sensors could not be reached;
  5 a sensor showed a host key that is not trusted; 130 Ctrl-C. Of several, 2 wins over 5 over 4."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One command.

    Attributes:
        name: What is typed.
        help: One line of the list of commands.
        options: Functions that add its options.
        run: What it does; returns the exit code.
        examples: Lines that a person may type.
    """

    name: str
    help: str
    options: tuple[Options, ...]
    run: Callable[[argparse.Namespace, Report], int]
    examples: tuple[str, ...]


def _inventory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inventory", metavar="INVENTORY", type=Path, help="the file that names the sensors: sensors.ini"
    )
    _limit(parser)


def _limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", metavar="PATTERN", help="only these: a name, a group, 'pond*', 'woods:!pond', 'woods:&north'"
    )


def _network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--forks", metavar="N", type=_positive, default=50, help="sensors at once (default: 50)")
    parser.add_argument("--timeout", metavar="S", type=_seconds, help="seconds to wait for a connection (default: 10)")
    parser.add_argument(
        "--accept-new",
        action="store_true",
        help="trust host keys that are not known yet, and show their fingerprints; a changed key is refused",
    )


def _verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="show each step, and variables that are not ours")


def _templates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--templates", metavar="DIR", type=Path, action="append", default=[], help="your own templates, laid over ours"
    )


def _diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--diff", action="store_true", help="show the text that differs, secrets masked")


def _sound(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require-sound", action="store_true", help="a missing or silent microphone is a failure, not a warning"
    )


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only say what would change (exit 3 if something would)")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for a program: a list of objects, one for each sensor")


def _render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="DIR/<sensor>/{home,units} is written"
    )
    parser.add_argument("--show-secrets", action="store_true", help="write secrets as they are, instead of asterisks")


def _restart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--serial", metavar="N", type=_positive, help="N sensors after N; none is begun after one has failed"
    )


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inventory", metavar="HOST_OR_INVENTORY", type=Path, help="pi@192.168.1.20, or the file that names the sensors"
    )
    parser.add_argument("--identity", metavar="FILE", type=Path, help="the private key to log in to HOST with")
    _limit(parser)


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--python", metavar="X.Y.Z", help="do not ask the sensors: python3 --version there")
    parser.add_argument("--machine", metavar="M", help="do not ask the sensors: uname -m there: aarch64 or x86_64")
    parser.add_argument("--glibc", metavar="X.Y", help="its C library, where --python does not tell: ldd --version")


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="FILE", type=Path, default=Path("sensors.ini"), help="the new file (default: sensors.ini)"
    )


def _list(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--list", action="store_true", help="all of it as JSON, as ansible-inventory --list prints it")
    which.add_argument("--host", metavar="NAME", help="one sensor's merged variables as JSON")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="leave the sensors running")
    parser.add_argument("--stop", action="store_true", help="end the sensors that --keep left running")
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, help="where all of it is (default: in the folder for temporary files)"
    )


VERBS = (
    Verb(
        "init",
        "write a first inventory, by asking",
        (_init,),
        commands.first_inventory,
        ("acoupi-fleet init", "acoupi-fleet init --output woods.ini"),
    ),
    Verb(
        "doctor",
        "look at devices before anything is written to them",
        (_doctor, _network, _json),
        commands.examine,
        ("acoupi-fleet doctor pi@raspberrypi.local", "acoupi-fleet doctor sensors.ini --limit pond --json"),
    ),
    Verb(
        "provision",
        "make every sensor what the inventory says",
        (_inventory, _templates, _check, _diff, _sound, _network, _verbose),
        commands.provision,
        ("acoupi-fleet provision sensors.ini", "acoupi-fleet provision sensors.ini --limit pond --check --diff"),
    ),
    Verb(
        "status",
        "one line a sensor: is it recording, how loud, how much room is left",
        (_inventory, _network, _json),
        commands.status,
        ("acoupi-fleet status sensors.ini", "watch -n 60 acoupi-fleet status sensors.ini"),
    ),
    Verb(
        "restart",
        "restart sensors, and wait until sound flows again",
        (_inventory, _restart, _sound, _network, _verbose),
        commands.restart,
        ("acoupi-fleet restart sensors.ini --limit pond", "acoupi-fleet restart sensors.ini --serial 1"),
    ),
    Verb(
        "check",
        "what provision would change, and whether the sensors are well",
        (_inventory, _templates, _diff, _sound, _network, _verbose),
        commands.check,
        ("acoupi-fleet check sensors.ini", "acoupi-fleet check sensors.ini || mail -s 'sensors' me@example.org"),
    ),
    Verb(
        "render",
        "write the files that sensors would get, without a network",
        (_inventory, _templates, _render, _verbose),
        commands.render,
        ("acoupi-fleet render sensors.ini --output out",),
    ),
    Verb(
        "prepare",
        "download what sensors need, for a trip without internet",
        (_inventory, _templates, _prepare, _network),
        commands.fill_cache,
        (
            "acoupi-fleet prepare sensors.ini",
            "acoupi-fleet prepare sensors.ini --python 3.11.2 --machine aarch64",
        ),
    ),
    Verb(
        "inventory",
        "show an inventory: hosts, groups, merged variables",
        (_inventory, _list),
        commands.list_inventory,
        ("acoupi-fleet inventory sensors.ini", "acoupi-fleet inventory sensors.ini --host pond"),
    ),
    Verb(
        "demo",
        "show a fleet on this computer, without hardware",
        (_demo,),
        commands.demo,
        ("acoupi-fleet demo", "acoupi-fleet demo --keep"),
    ),
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines, and short options stand beside what they do."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=100)


class _Parser(argparse.ArgumentParser):
    """Its errors are ours: one line, and exit code 1 instead of argparse's 2, which means that a sensor failed."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:  # noqa: PLR2004 - an hour; also refuses `nan`
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds, more than 0 and at most 3600")
    return seconds


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    listed = "\n".join(f"  {verb.name:11}{verb.help}" for verb in VERBS)
    top = _Parser(
        prog="acoupi-fleet",
        usage="acoupi-fleet COMMAND ...",
        description=f"Provision, restart, check and watch a fleet of acoustic sensors over SSH.\n\ncommands:\n{listed}",
        epilog=f"acoupi-fleet COMMAND --help has examples.\n\n{EXIT_CODES}",
        formatter_class=_Help,
    )
    top.set_defaults(timeout=None, verbose=False)
    top.add_argument("--version", action="version", version=f"acoupi-fleet {_version()}")
    commands_of = top.add_subparsers(dest="command", prog="acoupi-fleet", help=argparse.SUPPRESS)
    for verb in VERBS:
        examples = "\n".join(f"  {example}" for example in verb.examples)
        sub = commands_of.add_parser(
            verb.name,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
            formatter_class=_Help,
        )
        for add in verb.options:
            add(sub)
        sub.set_defaults(run=verb.run)
    return top


def _version() -> str:
    try:
        return version("acoupi-fleet")
    except PackageNotFoundError:
        return "(run from its sources)"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    known = [verb.name for verb in VERBS]
    word = next((argument for argument in arguments if not argument.startswith("-")), None)
    if word is not None and word not in known:
        near = difflib.get_close_matches(word, known, 1)
        raise UsageError(
            f"acoupi-fleet: {word!r} is no command; "
            + (f"did you mean {near[0]}?" if near else f"commands are {', '.join(known)}")
        )
    top = parser()
    args = top.parse_args(arguments)
    if args.command is None:
        top.print_help()
        raise SystemExit(UsageError.exit_code)
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    report = Report()
    try:
        args = _parse(sys.argv[1:] if arguments is None else arguments)
        report.verbose = getattr(args, "verbose", False)
        code = int(args.run(args, report))
    except FleetError as error:
        report.error(error)
        code = error.exit_code
    except KeyboardInterrupt:
        report.interrupted()
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `acoupi-fleet status ... | head`: whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code == EXIT_INTERRUPTED:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """End now: Python would wait for threads that wait for sensors."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
