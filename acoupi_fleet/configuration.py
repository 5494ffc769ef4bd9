"""configuration: from a host's variables to a validated configuration. Contacts nothing; imports the host's program.

The values are validated by the models that will read them on the device, so that a wrong one never leaves the
workstation. Each problem is one line, `sensors.ini:12: key: what is wrong; what to do`, and all of them come at once.
"""

from __future__ import annotations

import difflib
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from acoupi_fleet.desired import AptVia, Scope
from acoupi_fleet.errors import ConfigurationError
from acoupi_fleet.inventory import Host, Origin, Variable
from acoupi_fleet.inventory.keys import CONNECTION, NAMESPACES, WORDS, parts
from acoupi_fleet.schema import Keys, kinds_at, nearest
from acoupi_runtime.configuration import BasicConfig, CeleryConfig, DeploymentConfig
from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.programs import AcoupiProgram, load_program_class

Problem = tuple[Origin, str]
M = TypeVar("M", bound=BaseModel)

_LIKE_A_NAMESPACE = 0.75
_LIKE_A_WORD = 0.85
_LIKE_ONE_OF_ANSIBLES = 0.92  # they resemble each other: ansible_become_user is no slip for ansible_become_pass
_SHORT_WORD = 5  # `users` or `hosts` are somebody else's words, no slips for `user` or `host`


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a host is to do.

    Attributes:
        program_class: The program as the inventory names it: `default`, or `module:Class`.
        program: Its configuration, program.json.
        celery: celery.json.
        deployment: Where the sensor stands; None leaves that to the device.
        workers: The names of its processes, the recording one first.
        scope: `system` (root's units) or `user` (the login user's own).
        runtime: An environment that is already on the device, used instead of one of ours. `~` is the home of the user
            that runs the services, which only the device knows.
        apt_via: Whose connection the device's apt uses.
        program_package: The folder or wheel, on the workstation, that holds the program.
        ignored: Keys that are not ours, such as Ansible's own; they have no meaning here.
    """

    program_class: str
    program: BaseModel
    celery: CeleryConfig
    deployment: DeploymentConfig | None
    workers: tuple[str, ...]
    scope: Scope
    runtime: str | None
    apt_via: AptVia
    program_package: Path | None
    ignored: tuple[str, ...]


def configure(host: Host) -> Configuration:
    """The configuration of one host.

    Raises:
        ConfigurationError: With a line for each thing that is wrong.
    """
    return configure_all([host])[host.name]


def configure_all(hosts: Iterable[Host]) -> dict[str, Configuration]:
    """The configurations of all hosts, by name.

    Raises:
        ConfigurationError: With a line for each thing that is wrong, over all hosts.
    """
    found: dict[str, Configuration] = {}
    problems: list[Problem] = []
    for host in hosts:
        reading = _Reading(host)
        configuration = reading.configuration()
        if configuration is not None:
            found[host.name] = configuration
        problems += reading.problems
    if problems:
        raise ConfigurationError(_lines(problems))
    return found


def scopes(hosts: Iterable[Host]) -> dict[str, Scope]:
    """Whose units each host runs, by its name: all that a verb needs which only asks sensors.

    Raises:
        ConfigurationError: With a line for each wrong one, over all hosts.
    """
    found: dict[str, Scope] = {}
    problems: set[Problem] = set()
    for host in hosts:
        reading = _Reading(host)
        found[host.name] = reading.scope()
        problems |= set(reading.problems)
    if problems:
        raise ConfigurationError(_lines(problems))
    return found


def _lines(problems: Iterable[Problem]) -> str:
    """The text of an error; a group's mistake is told once, not once a host."""
    return "\n".join(f"{origin}: {what}" for origin, what in sorted(set(problems)))


class _Reading:
    """One pass over one host's variables, which gathers problems instead of stopping at the first."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.problems: list[Problem] = []
        self.ours: dict[Keys, Variable] = {}
        self.ignored: list[str] = []
        self.refused: set[Keys] = set()

    def configuration(self) -> Configuration | None:
        for key, variable in self.host.variables.items():
            self._sort(key, variable)
        package = self._package()
        scope = self._scope()
        apt_via = self._choice("apt_via", ("device", "workstation"))
        runtime = self._runtime()
        celery = self._validate(CeleryConfig, "celery")
        deployment = self._validate(DeploymentConfig, "deployment") if self._speaks_of("deployment") else None
        name, program_class = self._program_class()
        if program_class is None:
            return None
        program = self._validate(program_class.config_schema, "program")
        if program is None or celery is None or self.problems:
            return None
        try:
            workers = program_class.get_worker_config(program).names
        except AcoupiError as error:
            self._complain(self.ours["program", "class"], str(error))
            return None
        return Configuration(
            program_class=name,
            program=program,
            celery=celery,
            deployment=deployment,
            workers=tuple(sorted(workers, key=lambda worker: worker != "recording")),
            scope=scope,
            runtime=runtime,
            apt_via="workstation" if apt_via == "workstation" else "device",
            program_package=package,
            ignored=tuple(self.ignored),
        )

    def scope(self) -> Scope:
        """Whose units the host runs, and nothing else of it."""
        variable = self.host.variables.get("systemd_scope")
        if variable is not None:
            self._sort("systemd_scope", variable)
        return self._scope()

    def _scope(self) -> Scope:
        return "user" if self._choice("systemd_scope", ("system", "user")) == "user" else "system"

    def _complain(self, variable: Variable, what: str, keys: Keys | None = None) -> None:
        path = keys or variable.path
        # As it was written, so that it is found by searching; a part of a dictionary has only a path.
        shown = variable.key if variable.raw is not None and path == variable.path else ".".join(path)
        self.problems.append((variable.origin, f"{shown}: {what}"))

    def _complain_of_host(self, what: str) -> None:
        self.problems.append((self.host.origin, f"{self.host.name}: {what}"))

    def _sort(self, key: str, variable: Variable) -> None:
        path = variable.path
        if path[0] in NAMESPACES or key in WORDS:
            problem = _unusable(variable.value)
            if problem:
                self._complain(variable, problem)
                self.refused.add(path)
            else:
                self.ours[path] = variable
        elif key not in CONNECTION:
            meant = _meant(key)
            if meant:
                self._complain(variable, f"unknown key; did you mean {meant}?")
            else:
                self.ignored.append(key)

    def _speaks_of(self, namespace: str) -> bool:
        return any(path[0] == namespace for path in (*self.ours, *self.refused))

    def _text(self, word: str) -> str | None:
        variable = self.ours.get((word,))
        return None if variable is None else _as_text(variable)

    def _choice(self, word: str, choices: tuple[str, ...]) -> str | None:
        text = self._text(word)
        if text is not None and text not in choices:
            self._complain(self.ours[word,], f"{text[:80]!r} is no choice; write {' or '.join(choices)}")
        return text

    def _runtime(self) -> str | None:
        text = self._text("runtime")
        if text is not None and not text.startswith(("/", "~/")):
            self._complain(self.ours["runtime",], "it is no absolute path; name the environment's folder on the device")
        return text

    def _package(self) -> Path | None:
        text = self._text("program_package")
        if text is None:
            return None
        variable = self.ours["program_package",]
        path = variable.origin.path.parent / Path(text)
        if path.is_dir():
            inside = path / "src"
            importable = path.parent if (path / "__init__.py").exists() else inside if inside.is_dir() else path
        elif path.suffix == ".whl" and path.is_file():
            importable = path
        else:
            self._complain(variable, f"there is no folder and no wheel {path}; correct the path")
            return None
        if str(importable) not in sys.path:
            sys.path.append(str(importable))  # last, so that it hides nothing of ours
        return path

    def _program_class(self) -> tuple[str, type[AcoupiProgram[Any]] | None]:
        variable = self.ours.get(("program", "class"))
        if variable is None:
            if ("program", "class") not in self.refused:
                self._complain_of_host("no program is named; write program=default on its line or in [group:vars]")
            return "", None
        name = _as_text(variable)
        try:
            return name, load_program_class(name)
        except AcoupiError as error:
            self._complain(variable, str(error))
        except Exception as error:  # noqa: BLE001 - the module is the user's, and may raise anything when it is imported
            self._complain(variable, f"{name!r} cannot be imported ({type(error).__name__}: {error}); correct it")
        return name, None

    def _validate(self, model: type[M], namespace: str) -> M | None:
        leaves = {path: variable for path, variable in self.ours.items() if path[0] == namespace}
        leaves.pop(("program", "class"), None)
        alone = leaves.get((namespace,))
        if alone is not None:
            if alone.value != {}:
                example = next(iter(model.model_fields), "...")
                self._complain(alone, f"it holds values, and is none; write {namespace}.{example}=...")
                return None
            leaves = {}
        for path, variable in list(leaves.items()):
            kinds = kinds_at(model, path[1:])
            if kinds is None:
                self._complain(variable, f"unknown key; {nearest(path, model)}")
            elif time in kinds and isinstance(variable.value, int | float):  # pydantic takes 1900 as 00:31:40
                self._complain(variable, "a time of day is quoted text; quote it: '19:00'")
            else:
                continue
            self.refused.add(path)
            del leaves[path]
        values = {path: variable.value for path, variable in leaves.items()}
        try:
            return model.model_validate(_nested(values))
        except ValidationError as error:
            texts = _unquoted(error, namespace, leaves)
        try:
            return model.model_validate(_nested(values | texts))
        except ValidationError as error:
            self._report(error, namespace, leaves)
            return None

    def _report(self, error: ValidationError, namespace: str, leaves: Mapping[Keys, Variable]) -> None:
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            keys = (namespace, *map(str, problem["loc"]))
            if any(path[: len(keys)] == keys[: len(path)] for path in self.refused):
                continue  # what is wrong with this one has been told
            concerned = _concerned(keys, leaves)
            message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
            holder = next((variable for variable in concerned if keys[: len(variable.path)] == variable.path), None)
            if problem["type"] == "missing" and holder:
                self._complain(holder, "it is missing; add it", keys)
            elif problem["type"] == "missing":
                self._complain_of_host(f"{'.'.join(keys)} is missing; write {'.'.join(keys)}=...")
            elif not concerned:  # a default that does not fit
                self._complain_of_host(f"{'.'.join(keys)}: {message}")
            else:
                # A rule over several values names them: the last line of these is the one to look at.
                named = [variable for variable in concerned if variable.path[-1] in f"{keys} {message}"] or concerned
                self._complain(max(named, key=lambda variable: variable.origin.line), message, keys)


def _as_text(variable: Variable) -> str:
    return variable.value if isinstance(variable.value, str) else variable.raw or str(variable.value)


def _unusable(value: Any) -> str | None:
    """Why a value must not reach a unit, a script or a file of configuration."""
    match value:
        case str():
            if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
                return "a control character (a line break, a tab, ...) is in it; remove it"
            if "{{" in value:
                return "'{{' is in it, and values are never templates here; write the value itself"
            return None
        case dict():
            return next(filter(None, map(_unusable, (*value.keys(), *value.values()))), None)
        case list():
            return next(filter(None, map(_unusable, value)), None)
        case _:
            return None


def _meant(key: str) -> str | None:
    """What a key that is not ours was probably meant to be, if it looks like a slip."""
    head, *rest = parts(key)
    if rest:
        near = _similar(head.lower(), NAMESPACES, _LIKE_A_NAMESPACE)
        if near is None and head in BasicConfig.model_fields:
            return ".".join(("program", head, *rest))
        return near and ".".join((near, *rest))
    spellings = {spelling for names in CONNECTION.values() for spelling in names}
    ansibles = {spelling for spelling in spellings if spelling.startswith("ansible_")}
    if key.startswith("ansible_"):
        return _similar(key, sorted(ansibles), _LIKE_ONE_OF_ANSIBLES)
    words = sorted({*NAMESPACES, *WORDS, *(spellings - ansibles)})
    return _similar(key.lower(), words, _LIKE_A_WORD if len(key) > _SHORT_WORD else 1.0)


def _similar(word: str, candidates: Sequence[str], cutoff: float) -> str | None:
    swapped = [candidate for candidate in candidates if sorted(candidate) == sorted(word)]
    return next(iter(swapped or difflib.get_close_matches(word, candidates, 1, cutoff)), None)


def _concerned(keys: Keys, leaves: Mapping[Keys, Variable]) -> list[Variable]:
    """The values that an error at `keys` is about: those below it, else the one that holds it.

    Pydantic adds steps that nobody wrote, such as the index in a list or the name of one of several models.
    """
    for length in range(len(keys), 0, -1):
        below = [variable for path, variable in leaves.items() if path[:length] == keys[:length]]
        if below and (length > 1 or len(keys) == 1):
            return below
    return []


def _nested(leaves: Mapping[Keys, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in leaves.items():
        inner = nested
        for key in path[1:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return nested


def _unquoted(error: ValidationError, namespace: str, leaves: Mapping[Keys, Variable]) -> dict[Keys, str]:
    """Texts that look like numbers, where a text is wanted: a person writes device_name=1234 without quotes."""
    wanted = [(namespace, *map(str, each["loc"])) for each in error.errors() if each["type"] == "string_type"]
    return {
        path: variable.raw
        for path, variable in leaves.items()
        if path in wanted and variable.raw is not None and variable.value is not None
    }
