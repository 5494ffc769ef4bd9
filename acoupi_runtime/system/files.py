"""files: from the files of a home to values. Reads ACOUPI_HOME/config only; imports no celery, numpy or sounddevice."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from acoupi_runtime.configuration import BasicConfig, CeleryConfig, DeploymentConfig
from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import Home
from acoupi_runtime.programs import AcoupiProgram, load_program_class

M = TypeVar("M", bound=BaseModel)


def read_model(path: Path, model: type[M]) -> M:
    """Read one of the home's configuration files.

    Raises:
        ConfigurationError: If it is missing, torn, or refused by its model; the text names the first wrong key.
    """
    try:
        return model.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; run `acoupi-runtime setup`, or provision again") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "it"
        raise ConfigurationError(f"{path}: {key}: {first['msg']}; correct it") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON ({error}); write it again") from error


def program_class(home: Home) -> type[AcoupiProgram[Any]]:
    """The class of the home's program.

    Raises:
        ConfigurationError: If there is no home here.
    """
    try:
        name = home.program_name_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"{home.root}: there is no sensor here ({home.program_name_file.name}: {error.strerror}); "
            "run `acoupi-runtime setup`, or set ACOUPI_HOME"
        ) from error
    return load_program_class(name)


def configured_program(home: Home) -> AcoupiProgram[Any]:
    """The home's program with its configuration, not yet set up: cheap, and nothing heavy is imported."""
    found = program_class(home)
    return found(read_model(home.program_file, found.config_schema), home)


def load_program(home: Home) -> AcoupiProgram[Any]:
    """The home's program, set up: its tasks are there."""
    program = configured_program(home)
    program.setup(program.config)
    return program


def node(worker: str) -> str:
    """The name under which Celery knows a worker."""
    return f"{worker}@{socket.gethostname()}"


def wanted_deployment(home: Home) -> DeploymentConfig:
    """Where the sensor is said to stand; where nobody said it, a deployment is named after the host."""
    if home.deployment_file.exists():
        return read_model(home.deployment_file, DeploymentConfig)
    return DeploymentConfig(name=socket.gethostname() or "sensor")


def store_path(config: BasicConfig) -> Path:
    """The one store of a program that records."""
    return Path(config.paths.db_metadata).expanduser().absolute()


def celery_config(home: Home) -> CeleryConfig:
    """The home's configuration of Celery; what nobody wrote has its default."""
    return read_model(home.celery_file, CeleryConfig) if home.celery_file.exists() else CeleryConfig()
