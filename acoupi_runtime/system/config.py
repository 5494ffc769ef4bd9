"""config: reading and setting single values of program.json. Writes a whole new home through `setup`, or nothing.

Where a fleet manages the home, its configuration comes from the inventory and is read-only here.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from acoupi_runtime.configuration import DeploymentConfig
from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import Home
from acoupi_runtime.system import files

M = TypeVar("M", bound=BaseModel)


def get(home: Home, field: str | None = None) -> Any:
    """The configuration, or the value of one field of it, named with dots; secrets are masked.

    Raises:
        ConfigurationError: If there is no such field.
    """
    value: Any = files.configured_program(home).config.model_dump(mode="json")
    for step in _steps(field):
        value = _child(value, step, field or "")
    return value


def set_(home: Home, field: str, text: str) -> bool:
    """Set one field, named with dots, to a value: JSON, or else text as it is. Whether anything changed.

    Raises:
        ConfigurationError: If a fleet manages this home, there is no such field, or its model refuses the value.
    """
    refuse_managed(home)
    config = files.configured_program(home).config
    values = config.model_dump(mode="json", context={"reveal_secrets": True})
    steps = _steps(field)
    if not steps:
        raise ConfigurationError("config set: which field? name it, such as recording.duration")
    place: Any = values
    for step in steps[:-1]:
        place = _child(place, step, field)
        if place is None:
            raise ConfigurationError(f"{field}: its section {step!r} is not set; set that one, as JSON, first")
    _child(place, steps[-1], field)  # refuses a name that is not there
    key = int(steps[-1]) if isinstance(place, list) else steps[-1]
    place[key] = value_of(text)
    schema = type(config)
    try:
        config = validated(schema, values, field)
    except ConfigurationError:
        if place[key] == text:
            raise
        place[key] = text  # the name of a device may be all digits
        config = validated(schema, values, field)
    return rewrite(home, config)


def refuse_managed(home: Home) -> None:
    """Refuse to change what the fleet says.

    Raises:
        ConfigurationError: If a fleet manages this home.
    """
    if home.managed_file.exists():
        manager = home.managed_file.read_text(encoding="utf-8").strip()
        raise ConfigurationError(f"{home.root}: it is read-only here, a fleet manages it ({manager})")


def rewrite(home: Home, config: BaseModel, deployment: DeploymentConfig | None = None) -> bool:
    """Write the home anew with this configuration, and this deployment if one is given; whether anything changed."""
    from acoupi_runtime.system.setup import setup_program

    if deployment is None and home.deployment_file.exists():
        deployment = files.wanted_deployment(home)
    name = home.program_name_file.read_text(encoding="utf-8").strip()
    return setup_program(home, name, config, files.celery_config(home), deployment)


def validated(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """The values as a model.

    Raises:
        ConfigurationError: If it refuses them; the text names the first wrong key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or where
        raise ConfigurationError(f"{key}: {first['msg']}; nothing was changed") from error


def _steps(field: str | None) -> list[str]:
    return [] if not field else field.replace("__", ".").split(".")


def _child(value: Any, step: str, field: str) -> Any:
    if isinstance(value, dict):
        if step in value:
            return value[step]
        near = difflib.get_close_matches(step, value, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(value)}"
        raise ConfigurationError(f"{field}: there is no {step!r}; {hint}")
    if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    raise ConfigurationError(f"{field}: there is nothing below {step!r}; name a field, such as recording.duration")


def value_of(text: str) -> Any:
    """What a text on a command line means: JSON, or else itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
