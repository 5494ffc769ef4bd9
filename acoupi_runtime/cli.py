"""cli: the command line of a sensor, `acoupi-runtime`. Words in, one call, words out; what is wrong is one line.

Exit codes: 0 done, 1 refused or failed, 70 a worker that ended itself, 75 somebody does this already, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import acoupi_runtime
from acoupi_runtime.errors import AcoupiError, ConfigurationError
from acoupi_runtime.home import Home
from acoupi_runtime.system.identity import become_owner

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130

Command = Callable[[argparse.Namespace, Home], int]


class _Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_REFUSED, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words say; the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command is not _setup:
        parser.error(f"{rest[0]}: not understood")
    arguments.rest = rest
    try:
        home = Home.from_environment()
        if arguments.command not in (_setup, _workers):  # systemctl is root's
            become_owner(home)
        return int(arguments.command(arguments, home))
    except AcoupiError as error:
        from acoupi_runtime.system.supervise import EXIT_TEMPFAIL, AlreadyRunningError

        print(f"acoupi-runtime: {error}", file=sys.stderr)
        return EXIT_TEMPFAIL if isinstance(error, AlreadyRunningError) else EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="acoupi-runtime", description="A sensor: its workers, and what to ask of it.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=acoupi_runtime.__version__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, command: Command, help_: str, within: Any = verbs) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = within.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        made.set_defaults(command=command)
        return made

    def group(name: str, help_: str) -> Any:
        return verbs.add_parser(name, help=help_, allow_abbrev=False).add_subparsers(metavar="VERB", required=True)

    new = verb(
        "setup", _setup, "write ACOUPI_HOME: --recording.duration 10 --celery.timezone UTC --deployment.name Oak"
    )
    new.add_argument("--program", default="default", help="a name, or module:Class")
    new.add_argument(
        "--units", action="store_true", help="let the user's systemd run it, from now on and after each boot"
    )

    seen = verb("status", _status, "what the sensor does now")
    seen.add_argument("--json", action="store_true", help="all of it, for programs")
    seen.add_argument(
        "--watch-frames", type=_seconds, metavar="SECONDS", help="wait for so many seconds of live frames"
    )
    verb("check", _check, "whether the sensor has what it needs")

    deployment = group("deployment", "where the sensor stands")
    begin = verb("start", _deployment_start, "start a deployment", deployment)
    begin.add_argument("--name")
    begin.add_argument("--latitude", type=float)
    begin.add_argument("--longitude", type=float)
    verb("stop", _deployment_stop, "end the deployment; recording pauses until one is started", deployment)
    verb("status", _deployment_status, "the deployment that runs", deployment)

    config = group("config", "the program's configuration")
    verb("get", _config_get, "print it, or one field", config).add_argument("field", nargs="?", metavar="FIELD")
    change = verb("set", _config_set, "set one field", config)
    change.add_argument("field", metavar="FIELD", help="named with dots: recording.duration")
    change.add_argument("value", metavar="VALUE")

    task = group("task", "what the program does")
    verb("list", _task_list, "its tasks", task)
    run = verb("run", _task_run, "have a worker run one, and wait for it", task)
    run.add_argument("name", metavar="NAME")
    run.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="JSON, or else text")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS")

    workers = group("workers", "all workers of this sensor")
    for name in ("start", "stop", "restart"):
        verb(name, _workers, f"{name} them, through systemd where it has our units", workers).set_defaults(action=name)
    verb("worker", _worker, "be one worker, in the foreground").add_argument("name", metavar="NAME")
    verb("beat", _beat, "be the beat alone, in the foreground")

    archived = verb("archived", _archived, "note that recordings are safe elsewhere, so that they may go first")
    archived.add_argument(
        "--before", type=_instant, required=True, metavar="INSTANT", help="2026-05-01 or 2026-05-01T04:00Z"
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:  # noqa: PLR2004 - a day
        raise argparse.ArgumentTypeError(f"{text}: between 0 and 86400 seconds")
    return value


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write it as 2026-05-01 or 2026-05-01T04:00Z") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _print(value: Any) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


# What each word does -------------------------------------------------------------------------------------------------


def _worker(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.system.worker import run_worker

    run_worker(arguments.name, home)


def _beat(arguments: argparse.Namespace, home: Home) -> int:
    del arguments
    from acoupi_runtime.system.worker import run_beat

    return run_beat(home)


def _workers(arguments: argparse.Namespace, home: Home) -> int:
    script = home.bin_dir / f"acoupi-workers-{arguments.action}.sh"
    if not script.exists():
        raise ConfigurationError(
            f"{home.root}: there is no sensor here; run `acoupi-runtime setup`, or set ACOUPI_HOME"
        )
    os.execv(script, [str(script)])  # noqa: S606 - it is this home's own, and has no arguments


def _setup(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.configuration import CeleryConfig, DeploymentConfig
    from acoupi_runtime.programs import load_program_class
    from acoupi_runtime.system.config import validated
    from acoupi_runtime.system.setup import setup_program

    found = load_program_class(arguments.program)
    sections = _settings(arguments.rest)
    celery = validated(CeleryConfig, sections.pop("celery", {}), "celery")
    place = sections.pop("deployment", None)
    deployment = None if place is None else validated(DeploymentConfig, place, "deployment")
    config = validated(found.config_schema, sections, "program")
    changed = setup_program(home, arguments.program, config, celery, deployment, units=arguments.units)
    print(f"{home.root}: {'written' if changed else 'as it was'}; `acoupi-runtime workers start` starts it")
    return 0


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """`--a.b value` and `--a.b=value` as nested values; `program.` in front is allowed."""
    from acoupi_runtime.system.config import value_of

    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ConfigurationError(f"setup: {word!r} is not understood; write --recording.duration 10")
        if not equals:
            if not rest:
                raise ConfigurationError(f"setup: --{name} has no value; write --{name} VALUE")
            text = rest.pop(0)
        *sections, key = name.removeprefix("program.").split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"setup: --{name} and a value for {section!r}; give one of them")
        place[key] = value_of(text)
    return found


def _status(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.system.status import status

    seen = status(home, watch_frames=arguments.watch_frames)
    if arguments.json:
        return _print(seen)
    for line in _lines(seen):
        print(line)
    return 0


def _lines(seen: dict[str, Any]) -> list[str]:
    """The status for a person: one line for each thing."""
    answering = seen["celery"]["responding"]
    lines = [f"{seen['home']}: {seen['program']}, acoupi-runtime {seen['version']}"]
    for name, worker in seen["workers"].items():
        answer = "answers" if name in answering else "does not answer"
        lines.append(f"worker {name}: " + (f"process {worker['pid']}, {answer}" if worker["alive"] else "not running"))
    recorder = seen["recorder"]
    if recorder is None:
        lines.append("recorder: not running")
    else:
        silent = ", SILENT" if recorder["silent"] else ""
        frames = f", {recorder['frames_delta']} frames just now" if "frames_delta" in recorder else ""
        detail = f" ({recorder['detail']})" if recorder["detail"] else ""
        lines.append(f"recorder: {recorder['state']}{detail}, {recorder['level_rms']} dBFS{silent}{frames}")
    deployment = seen["deployment"]
    lines.append(f"deployment: {'none' if deployment is None else deployment['name']}")
    if seen["store"] is not None:
        last = seen["store"]["last_recording"]
        waits = f"{seen['store']['backlog']} to process, {sum(seen['store']['outbox'].values())} to send"
        lines.append(f"store: {waits}, last recording {last and last['created_on']}")
        counted = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in seen["store"]["counters"].items())
        lines.append(f"counted: {counted or 'nothing yet'}")
    if seen["store_error"]:
        lines.append(f"store: {seen['store_error']}")
    if seen["disk"] is not None:
        days = seen["disk"]["days_left"]
        lines.append(
            f"disk: {seen['disk']['free'] / 1e9:.1f} GB free" + ("" if days is None else f", for {days:g} days")
        )
    degrees = seen["board"]["temperature"]
    if degrees is not None or seen["board"]["undervoltage"]:
        weak = ", UNDERVOLTAGE: its supply is too weak" if seen["board"]["undervoltage"] else ""
        lines.append(f"board: {'-' if degrees is None else f'{degrees:.0f}'} °C{weak}")
    lines.append(f"clock: {seen['clock']['now']}, {'' if seen['clock']['synced'] else 'NOT '}synchronised")
    return lines


def _check(arguments: argparse.Namespace, home: Home) -> int:
    del arguments
    from acoupi_runtime.system.check import check

    findings = check(home)
    for finding in findings:
        print(f"{finding.verdict:8}{finding.what}: {finding.text}")
    return int(any(finding.verdict == "failed" for finding in findings))


def _deployment_start(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.system.deployments import start_by_hand

    given = {
        key: getattr(arguments, key) for key in ("name", "latitude", "longitude") if getattr(arguments, key) is not None
    }
    started = start_by_hand(home, given)
    print(f"{started.name}: started; the next recording belongs to it")
    return 0


def _deployment_stop(arguments: argparse.Namespace, home: Home) -> int:
    del arguments
    from acoupi_runtime.system.deployments import stop_by_hand

    print(f"{stop_by_hand(home).name}: stopped; recording pauses until one is started")
    return 0


def _deployment_status(arguments: argparse.Namespace, home: Home) -> int:
    del arguments
    from acoupi_runtime.system.deployments import running

    found = running(home)
    return _print(None if found is None else found.model_dump(mode="json"))


def _config_get(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.system import config

    return _print(config.get(home, arguments.field))


def _config_set(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.system import config

    changed = config.set_(home, arguments.field, arguments.value)
    print(f"{arguments.field}: {'set; `acoupi-runtime workers restart` makes it so' if changed else 'as it was'}")
    return 0


def _task_list(arguments: argparse.Namespace, home: Home) -> int:
    del arguments
    from acoupi_runtime.system.tasks import list_tasks

    return _print(list_tasks(home))


def _task_run(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.system.tasks import run_task

    result = run_task(home, arguments.name, arguments.arguments, arguments.timeout)
    return _print(result.model_dump(mode="json") if hasattr(result, "model_dump") else result)


def _archived(arguments: argparse.Namespace, home: Home) -> int:
    from acoupi_runtime.system import files
    from acoupi_runtime.system.status import open_store

    store = open_store(files.configured_program(home))
    if store is None:
        raise ConfigurationError(f"{home.root}: there is no store yet, and so no recording")
    try:
        number = store.mark_archived(arguments.before)
    finally:
        store.close()
    print(f"{number} recordings are noted as archived")
    return 0
