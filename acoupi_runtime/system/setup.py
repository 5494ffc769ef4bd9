"""setup: the one renderer of ACOUPI_HOME and of the units, and the writer of a home that no fleet manages.

Rendering is pure: no clock, no chance, no network; the same values make the same bytes. The workstation imports this
module too, so it imports nothing of the device, and jinja2 only where something is rendered.
"""

from __future__ import annotations

import functools
import json
import os
import posixpath
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

import acoupi_runtime
from acoupi_runtime.configuration import CeleryConfig, DeploymentConfig, PathsConfig
from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import SOCKET_PATH_LIMIT, Home
from acoupi_runtime.programs import AcoupiProgram, AcoupiWorker, load_program_class

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

Scope = Literal["system", "user"]

SYSTEM_STATE = "/var/lib/acoupi"
"""The service user's own folder in system scope, and what `~` means there."""

SYSTEM_HOME = f"{SYSTEM_STATE}/.acoupi"
USER_HOME = "%h/.acoupi"
"""ACOUPI_HOME as a unit names it; `%h` is the home of the user whose manager reads it."""

RECORDING_UNIT = "acoupi-worker@recording.service"
"""The template of the unit of a worker that owns the microphone."""

SCRIPT, CONFIGURATION, PLAIN = 0o755, 0o640, 0o644


@dataclass(frozen=True, slots=True)
class HomeFile:
    """A rendered file.

    Attributes:
        path: Where it stands below ACOUPI_HOME (or the folder of units), with slashes.
        content: Its bytes.
        mode: Its permission bits.
    """

    path: str
    content: bytes
    mode: int = PLAIN


def render_home(
    program_class: str,
    program: BaseModel,
    celery: CeleryConfig,
    deployment: DeploymentConfig | None,
    *,
    templates: Sequence[Path] = (),
    managed: bool,
) -> tuple[HomeFile, ...]:
    """Render ACOUPI_HOME: app.py, bin/ and config/, sorted by path.

    Args:
        program_class: The program, as `module:Class` or a short name.
        program: Its configuration.
        celery: The configuration of Celery.
        deployment: Where the sensor stands; None where nobody said it.
        templates: Folders of the user's own templates; they win over ours, the first over the next.
        managed: Whether a fleet manages this home.

    Raises:
        ConfigurationError: If a value cannot be written so that it is read back as it is, or a template is wrong.
    """
    files = [
        HomeFile("config/name", f"{program_class}\n".encode(), CONFIGURATION),
        HomeFile("config/program.json", _program_json(program_class, program), CONFIGURATION),
        HomeFile("config/celery.json", _json(celery.model_dump(mode="json")), CONFIGURATION),
    ]
    if deployment is not None:
        files.append(HomeFile("config/deployment.json", _json(deployment.model_dump(mode="json")), CONFIGURATION))
    if managed:
        text = f"acoupi-fleet {acoupi_runtime.__version__}: change the inventory, and provision again\n"
        files.append(HomeFile("config/managed", text.encode(), CONFIGURATION))
    workers = _workers(program_class, program)
    context = {
        **_context(program_class, program, celery, workers),
        "deployment": None if deployment is None else deployment.model_dump(mode="json"),
        "processes": (*(worker.name for worker in workers), *(("beat",) if celery.beat == "unit" else ())),
    }
    rendered = _Templates(templates)
    for name in rendered.names("home"):
        path = name.removeprefix("home/")
        if path in {file.path for file in files}:
            raise ConfigurationError(f"template {name}: {path} is written from the models; remove this template")
        mode = SCRIPT if path.startswith("bin/") else CONFIGURATION if path.startswith("config/") else PLAIN
        if content := rendered.render(name, context):
            files.append(HomeFile(path, content, mode))
    return tuple(sorted(files, key=lambda file: file.path))


def render_units(
    program_class: str,
    program: BaseModel,
    celery: CeleryConfig,
    *,
    scope: Scope,
    home: Path | None = None,
    templates: Sequence[Path] = (),
) -> tuple[HomeFile, ...]:
    """Render the units that systemd reads, sorted by name.

    Args:
        program_class: The program, as `module:Class` or a short name.
        program: Its configuration.
        celery: The configuration of Celery.
        scope: Whose manager runs them: the system's, or the login user's own.
        home: ACOUPI_HOME, where it is not in its usual place.
        templates: Folders of the user's own templates; they win over ours.

    Raises:
        ConfigurationError: If a value cannot be written into a unit, or a template is wrong.
    """
    workers = _workers(program_class, program)
    folders = _folders_outside(program)
    usual = SYSTEM_HOME if scope == "system" else USER_HOME
    context = {
        **_context(program_class, program, celery, workers),
        "scope": scope,
        "state": SYSTEM_STATE,
        "home": usual if home is None else unit_text(str(home)),
        "folders": folders,
        "homes": tuple(folder for folder in folders if _below(folder, "/home", "/root", "/run/user")),
        "private_tmp": not any(_below(folder, "/tmp", "/var/tmp") for folder in folders),  # noqa: S108 - names, not files
        "network": _needs_network(program_class, program),
        "own": not _is_ours(program_class),
        "sound_server": _may_be_behind_a_sound_server(program),
    }
    rendered = _Templates(templates)
    files = []
    for template in rendered.names("systemd"):
        unit = template.removeprefix("systemd/")
        if unit == RECORDING_UNIT:
            outputs = [
                (f"acoupi-worker@{worker.name}.service", {**context, "worker": worker})
                for worker in workers
                if not worker.queues or "recording" in worker.queues
            ]
        else:
            outputs = [(unit, context)]
        for path, values in outputs:
            if content := rendered.render(template, values):
                files.append(HomeFile(path, content))
    return tuple(sorted(files, key=lambda file: file.path))


def masked_program(program_class: str, content: bytes) -> bytes:
    """A program.json with its secrets masked, for eyes and logs."""
    schema = load_program_class(program_class).config_schema
    return _json(schema.model_validate_json(content).model_dump(mode="json"))


def setup_program(
    home: Home,
    program_class: str,
    program: BaseModel,
    celery: CeleryConfig | None = None,
    deployment: DeploymentConfig | None = None,
    *,
    templates: Sequence[Path] = (),
    units: bool = False,
) -> bool:
    """Set up a home by hand, on the device itself, without a fleet.

    A complete new tree is written beside the old one and switched to by a rename, so that no crash leaves a mixture.

    Args:
        home: ACOUPI_HOME.
        program_class: The program, as `module:Class` or a short name.
        program: Its configuration.
        celery: The configuration of Celery; the usual one when left out.
        deployment: Where the sensor stands.
        templates: Folders of the user's own templates; they win over ours.
        units: Whether the user's own systemd shall run the workers, from now on and after each boot.

    Returns:
        Whether anything changed.

    Raises:
        ConfigurationError: If a fleet or another program manages this home, or systemd refuses.
    """
    from acoupi_runtime.system import tree

    celery = celery or CeleryConfig()
    if home.managed_file.exists():
        raise ConfigurationError(f"{home.root}: a fleet manages this home; change its inventory, and provision again")
    for path in (home.app_file, home.bin_dir, home.config_dir):
        if path.exists() and not path.is_symlink():
            raise ConfigurationError(
                f"{path}: it is there, and not made by this program; move it away, or set ACOUPI_HOME"
            )
    if len(os.fsencode(home.redis_socket)) > SOCKET_PATH_LIMIT:
        raise ConfigurationError(f"{home.redis_socket}: too long for a socket; use a shorter ACOUPI_HOME")
    files = [
        HomeFile(f"home/{file.path}", file.content, file.mode)
        for file in render_home(program_class, program, celery, deployment, templates=templates, managed=False)
    ]
    files += [
        HomeFile(f"units/{file.path}", file.content, file.mode)
        for file in render_units(program_class, program, celery, scope="user", home=home.root, templates=templates)
    ]
    links = {"env": sys.prefix, "lib": str(Path(acoupi_runtime.__file__).parents[1])}
    changed = tree.switch(home, files, links)
    if units:
        changed |= tree.install_user_units(
            home, [Path(file.path).name for file in files if file.path.startswith("units/")]
        )
    return changed


def unit_text(value: str) -> str:
    """Escape text for the inside of double quotes in a unit (systemd.syntax(7)).

    Raises:
        ConfigurationError: If it holds a control character: a line break would begin a line of its own.
    """
    return _single_line(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _unit_argument(value: str) -> str:
    # In a command, $ stands for a variable of the environment too.
    return unit_text(value).replace("$", "$$")


def _shell_word(value: str) -> str:
    return shlex.quote(_single_line(value))


def _single_line(value: str) -> str:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):  # noqa: PLR2004
        raise ConfigurationError(
            f"{value!r}: control characters (a line break, a tab, ...) do not belong here; remove them"
        )
    return value


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _program_json(program_class: str, program: BaseModel) -> bytes:
    content = _json(program.model_dump(mode="json", context={"reveal_secrets": True}))
    try:
        read_back = type(program).model_validate_json(content)
    except ValidationError as error:
        raise ConfigurationError(f"program {program_class!r}: its configuration cannot be read back: {error}") from None
    if read_back != program:
        # pydantic's own SecretStr is written as asterisks, and the device would take them for the password.
        raise ConfigurationError(
            f"program {program_class!r}: its configuration reads back as another; "
            "declare secrets as acoupi_runtime.configuration.fields.Secret"
        )
    return content


def _workers(program_class: str, program: BaseModel) -> tuple[AcoupiWorker, ...]:
    return _load(program_class).get_worker_config(program).workers


def _load(program_class: str) -> type[AcoupiProgram[Any]]:
    return load_program_class(program_class)


def _is_ours(program_class: str) -> bool:
    return _load(program_class).__module__.startswith(f"{acoupi_runtime.__name__}.")


def _context(
    program_class: str, program: BaseModel, celery: CeleryConfig, workers: tuple[AcoupiWorker, ...]
) -> dict[str, Any]:
    # Secrets stay masked here: no template needs one, and a unit is readable by all.
    return {
        "program_class": program_class,
        "program": program.model_dump(mode="json"),
        "celery": celery.model_dump(mode="json"),
        "workers": workers,
    }


def _may_be_behind_a_sound_server(program: BaseModel) -> bool:
    """Whether the microphone may be one that ALSA's plugin packages add: its name says so, or it has none."""
    microphone = getattr(program, "microphone", None)
    name = (microphone and microphone.device_name) or "default"
    return any(word in name.casefold() for word in ("default", "pulse", "pipewire", "jack"))


def _needs_network(program_class: str, program: BaseModel) -> bool:
    messaging = getattr(program, "messaging", None)
    # A messenger is a section of its own, below `messaging`; what a program of one's own does is not known here.
    return not _is_ours(program_class) or (
        isinstance(messaging, BaseModel) and any(isinstance(value, BaseModel) for _, value in messaging)
    )


def _folders_outside(program: BaseModel) -> tuple[str, ...]:
    """Folders of the configuration that a sandboxed unit has to be given, sorted."""
    paths = getattr(program, "paths", None)
    if not isinstance(paths, PathsConfig):
        return ()
    wanted = {paths.recordings, posixpath.dirname(paths.db_metadata), paths.tmp_audio or ""}
    return tuple(
        sorted(
            posixpath.normpath(folder)
            for folder in wanted
            # /dev/shm is writable for all, /run/shm is its older name, and `~` is the service user's own folder.
            if folder.startswith("/") and not _below(posixpath.normpath(folder), SYSTEM_STATE, "/dev", "/run/shm")
        )
    )


def _below(folder: str, *roots: str) -> bool:
    return any(PurePosixPath(folder).is_relative_to(root) for root in roots)


class _Templates:
    """The templates of a home and of the units, the user's own laid over ours."""

    def __init__(self, overlays: Sequence[Path]) -> None:
        for overlay in overlays:
            if not overlay.is_dir():
                raise ConfigurationError(f"{overlay}: there is no such folder of templates; correct the path")
        package = Path(acoupi_runtime.__file__).parent
        ours = next((path for path in (package / "templates", package.parent / "templates") if path.is_dir()), None)
        if ours is None:
            raise ConfigurationError(
                f"{package}: the templates are not here; this is a sensor's copy, set up by a fleet"
            )
        self._environment = _environment((*overlays, ours))

    def names(self, folder: str) -> Iterator[str]:
        """What is rendered, without its suffix: all but the parts that others include (`_name`)."""
        for name in self._environment.list_templates():
            if not name.startswith(f"{folder}/") or PurePosixPath(name).name.startswith("_"):
                continue
            if not name.endswith(".j2"):
                raise ConfigurationError(f"template {name}: its name does not end in .j2; rename it, or move it away")
            yield name.removesuffix(".j2")

    def render(self, name: str, context: dict[str, Any]) -> bytes:
        """The bytes of a file; none where the template says nothing but white space."""
        path = f"{name}.j2"
        try:
            text = self._environment.get_template(path).render(context)
            return text.encode() if text.strip() else b""
        except Exception as error:  # the template is the user's, and what it calls may raise anything
            raise ConfigurationError(f"template {_place(path, error)}: {_reason(error)}; correct it") from error


def _place(path: str, error: Exception) -> str:
    """Where a template failed: its name, and the line where it is known, which may be one of a template it includes."""
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return f"{error.name or path}, line {error.lineno}"
    # jinja2 shows a template's own lines in the traceback, by the file that they were read from.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    if not frames:
        return path
    own = frames[-1].filename.endswith(f"/{path}")
    return f"{path}, line {frames[-1].lineno}{'' if own else f' of {frames[-1].filename}'}"


def _reason(error: Exception) -> str:
    from jinja2 import TemplateError

    match error:
        case UnicodeDecodeError():
            line = error.object.count(b"\n", 0, error.start) + 1
            return f"line {line} of the file is not UTF-8"
        case TemplateError() | ConfigurationError():
            return str(error)
        case _:
            return f"{type(error).__name__}: {error}"


@functools.cache
def _environment(folders: tuple[Path, ...]) -> SandboxedEnvironment:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(folders),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # scripts and units, not HTML: each value goes through the filter of its format
    )
    environment.filters |= {
        "shell": _shell_word,
        "unit": unit_text,
        "unit_argument": _unit_argument,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    # What differs from one rendering to the next does not belong into a template.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment
