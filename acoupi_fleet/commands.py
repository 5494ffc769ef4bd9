"""commands: what each verb does with its arguments: calls a room, and hands the results to report."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from acoupi_fleet import catalogue, doctor, init, prepare
from acoupi_fleet.check import check as check_hosts
from acoupi_fleet.configuration import Configuration, configure_all, scopes
from acoupi_fleet.desired import Desired
from acoupi_fleet.diff import differences
from acoupi_fleet.errors import EXIT_INTERRUPTED, EXIT_OK, HostError, HostKeyError, UnreachableError, UsageError
from acoupi_fleet.inventory import Host, load_inventory
from acoupi_fleet.provision import Options, exit_code
from acoupi_fleet.provision import provision as provision_hosts
from acoupi_fleet.remote import HostKeys
from acoupi_fleet.render import render as render_host
from acoupi_fleet.render import write
from acoupi_fleet.report import Report, Talk
from acoupi_fleet.restart import restart as restart_hosts
from acoupi_fleet.status import blind, look
from acoupi_fleet.together import together
from acoupi_fleet.wheelhouse import Target, bundled_lock

T = TypeVar("T")
Accepted: TypeAlias = Callable[[str], None] | None
"""Told of each host key that is trusted from now on; None: no unknown key is trusted."""


def provision(args: Namespace, report: Report) -> int:
    """Make every sensor what the inventory says."""
    hosts = _rendered(args, report)
    options = Options(forks=args.forks, check=args.check, require_sound=args.require_sound, accept_new=args.accept_new)
    if args.diff:
        _show_differences(args, report, hosts)
    with report.progress([host.name for host, _ in hosts], checking=args.check) as observe:
        results = provision_hosts(hosts, options=options, observe=observe)
    report.recap(results)
    return exit_code(results)


def check(args: Namespace, report: Report) -> int:
    """Say what provisioning would change, and whether the sensors are well."""
    hosts = _rendered(args, report)
    options = Options(forks=args.forks, require_sound=args.require_sound, accept_new=args.accept_new)
    if args.diff:
        _show_differences(args, report, hosts)
    with report.progress([host.name for host, _ in hosts], checking=True) as observe:
        results = check_hosts(hosts, options=options, keys=HostKeys(), observe=observe)
    report.recap(results)
    return exit_code(results)


def restart(args: Namespace, report: Report) -> int:
    """Restart sensors, and wait until sound flows again."""
    hosts = _hosts(args)
    scopes(hosts)  # a wrong one is said before any of them is touched
    with report.progress([host.name for host in hosts], done_word="restarted") as observe:
        results = restart_hosts(
            hosts,
            forks=args.forks,
            serial=args.serial,
            require_sound=args.require_sound,
            keys=HostKeys(),
            accepted=_accepted(args, report),
            observe=observe,
        )
    report.recap(results)
    return exit_code(results)


def render(args: Namespace, report: Report) -> int:
    """Write what sensors would get, without a network."""
    for host, desired in _rendered(args, report):
        folder = args.output / host.name
        write(desired, folder, show_secrets=args.show_secrets)
        report.line(f"{folder}: {sum(not file.path.startswith('lib/') for file in desired.files)} files")
    return EXIT_OK


def status(args: Namespace, report: Report) -> int:
    """One line a sensor."""
    looks, code = _ask_each(_hosts(args), args, report, look, blind, lambda one: one.health == "problem")
    if args.json:
        report.looks_json(looks)
    else:
        report.looks(looks)
    return code


def examine(args: Namespace, report: Report) -> int:
    """Look at devices before anything is written to them."""
    examinations, code = _ask_each(
        _hosts_or_one(args), args, report, doctor.examine, doctor.blind, lambda one: one.level == "problem"
    )
    if args.json:
        report.examinations_json(examinations)
    else:
        report.examinations(examinations)
    return code


def fill_cache(args: Namespace, report: Report) -> int:
    """Download what sensors need, for a trip without internet."""
    if bool(args.python) != bool(args.machine):
        raise UsageError("prepare: --python and --machine belong together; give both, or neither to ask the sensors")
    hosts = _rendered(args, report)
    locks = {host.name: desired.lock for host, desired in hosts if desired.runtime is None}
    wanted: list[tuple[str, str, Target]] = []
    codes = []
    if args.python:
        target = prepare.by_hand(args.python, args.machine, args.glibc)
        wanted = [(name, lock, target) for name, lock in (locks or {"any": bundled_lock()}).items()]
    else:
        keys, accepted = HostKeys(), _accepted(args, report)
        asked = [host for host, _ in hosts if host.name in locks]
        with report.waiting([host.name for host in asked]) as done:
            for host, answer in together(asked, args.forks, lambda host: prepare.ask(host, keys, accepted)):
                if isinstance(answer, HostError):
                    report.error(f"{host.name}: {answer}")
                else:
                    wanted.append((host.name, locks[host.name], answer))
                codes.append(_code(answer))
                done(host.name)
    for filled in prepare.fill(wanted):
        megabytes = sum(wheel.stat().st_size for wheel in filled.wheels) / 1e6
        report.line(
            f"ready: {len(filled.wheels)} wheels, {megabytes:.0f} MB, for {filled.target}: {', '.join(filled.hosts)}"
        )
        report.line(f"       {filled.wheels[0].parent}")
    return _worst(codes)


def first_inventory(args: Namespace, report: Report) -> int:
    """Write a first inventory by asking."""
    path: Path = args.output
    if path.exists():
        raise init.exists(path)
    text = init.interview(Talk(report), init.RealDevices(), zone=os.environ.get("TZ") or _own_zone())
    init.write_new(path, text)
    report.line(f"\nWritten: {path}. Next:")
    for line in (f"acoupi-fleet doctor {path}", f"acoupi-fleet provision {path}", f"acoupi-fleet status {path}"):
        report.line(f"  {line}")
    return EXIT_OK


def list_inventory(args: Namespace, report: Report) -> int:
    """Show an inventory: for a person, or as Ansible's inventory plugins print it."""
    inventory = load_inventory(args.inventory)
    if args.host:
        report.json(catalogue.variables(catalogue.named(inventory, args.host)))
    elif args.list:
        report.json(catalogue.as_ansible(inventory))
    else:
        for line in catalogue.lines(inventory.limit(args.limit)):
            report.line(line)
    return EXIT_OK


def demo(args: Namespace, report: Report) -> int:
    """Show a fleet on this machine, without hardware."""
    from acoupi_fleet.demo import stage, story

    folder = (args.folder or stage.default_folder()).absolute()
    if args.stop:
        report.line("ended" if stage.removed(folder) else "no demonstration was running")
        return EXIT_OK
    return story.run(folder, keep=args.keep, voice=report)


def _hosts(args: Namespace) -> list[Host]:
    hosts = load_inventory(args.inventory).limit(args.limit)
    if args.timeout is None:
        return list(hosts)
    return [replace(host, connection=replace(host.connection, connect_timeout=args.timeout)) for host in hosts]


def _hosts_or_one(args: Namespace) -> list[Host]:
    """A path is an inventory; anything else is somebody's `user@host:port`, whom no inventory knows yet."""
    word = str(args.inventory)
    if args.inventory.exists() or "/" in word or args.inventory.suffix in {".ini", ".yml", ".yaml", ".cfg"}:
        return _hosts(args)
    host = doctor.single(word, args.identity)
    if args.timeout is not None:
        host = replace(host, connection=replace(host.connection, connect_timeout=args.timeout))
    return [host]


def _rendered(args: Namespace, report: Report) -> list[tuple[Host, Desired]]:
    """All hosts with what they should be, before any of them is touched."""
    hosts = _hosts(args)
    configurations = configure_all(hosts)
    if args.verbose:
        _list_ignored(configurations, report)
    return [(host, render_host(host, configurations[host.name], templates=args.templates)) for host in hosts]


def _list_ignored(configurations: dict[str, Configuration], report: Report) -> None:
    ignored = sorted({key for configuration in configurations.values() for key in configuration.ignored})
    if ignored:
        report.line(f"not ours, passed over: {', '.join(ignored)}")


def _show_differences(args: Namespace, report: Report, hosts: Sequence[tuple[Host, Desired]]) -> None:
    keys, wanted = HostKeys(), {host.name: desired for host, desired in hosts}
    accepted = _accepted(args, report)
    shown = [host for host, _ in hosts]
    for host, lines in together(shown, args.forks, lambda host: differences(host, wanted[host.name], keys, accepted)):
        if not isinstance(lines, HostError) and lines:  # whoever cannot be asked will be told of in a moment
            report.diff(host.name, lines)


def _accepted(args: Namespace, report: Report) -> Accepted:
    return report.line if args.accept_new else None


def _ask_each(
    hosts: Sequence[Host],
    args: Namespace,
    report: Report,
    ask: Callable[[Host, HostKeys, Accepted], T],
    blind: Callable[[Host, HostError], T],
    is_bad: Callable[[T], bool],
) -> tuple[list[T], int]:
    """What each host answers, in their order, and the exit code of all; of one that cannot be asked, `blind` tells."""
    scopes(hosts)  # a wrong one is said before any of them is asked
    keys = HostKeys()
    accepted = _accepted(args, report)
    found: dict[str, T] = {}
    codes = []
    with report.waiting([host.name for host in hosts]) as done:
        for host, answer in together(hosts, args.forks, lambda host: ask(host, keys, accepted)):
            found[host.name] = blind(host, answer) if isinstance(answer, HostError) else answer
            codes.append(_code(answer, failed=is_bad(found[host.name])))
            done(host.name)
    return [found[host.name] for host in hosts], _worst(codes)


def _code(answer: object, *, failed: bool = False) -> int:
    if isinstance(answer, HostError):
        return answer.exit_code
    return HostError.exit_code if failed else EXIT_OK


def _worst(codes: Iterable[int]) -> int:
    order = (EXIT_INTERRUPTED, HostError.exit_code, HostKeyError.exit_code, UnreachableError.exit_code)
    seen = set(codes)
    return next((code for code in order if code in seen), EXIT_OK)


def _own_zone() -> str:
    """This computer's time zone, by the name that its system gives it."""
    target = os.path.realpath("/etc/localtime")
    return target.partition("/zoneinfo/")[2] or "UTC"
