"""wire: how values travel between tasks: as JSON, and only what is known here. Imports kombu; reads and writes nothing.

The nouns of `acoupi_runtime.data` come out as what they went in. Anything else than them and plain JSON is refused with
its name, where it is sent: a receiver never builds a type that it was not told of here.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kombu.utils.json import register_type

from acoupi_runtime import data

NOUNS: dict[str, type[data.Noun]] = {
    name: value
    for name, value in vars(data).items()
    if isinstance(value, type) and issubclass(value, data.Noun) and value is not data.Noun
}
"""What may travel, by the name under which it travels."""


def register() -> None:
    """Teach Celery's JSON the nouns. Called once by whoever makes an app; again changes nothing."""
    for name, noun in NOUNS.items():
        register_type(noun, f"acoupi.{name}", lambda value: value.model_dump(mode="json"), noun.model_validate)


def checked(value: Any, where: str) -> Any:
    """Return a value that can travel, unchanged.

    Raises:
        TypeError: If it, or something in it, cannot; `where` says whose it is.
    """
    match value:
        case None | bool() | int() | str() | UUID() if not isinstance(value, enum.Enum):
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple():
            for item in value:
                checked(item, where)
            return value
        case Mapping():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{where}: a key of type {type(key).__name__} does not travel as JSON; use text")
                checked(item, where)
            return value
        case _ if type(value) in NOUNS.values():
            return value
        case _:
            raise TypeError(
                f"{where}: a {type(value).__module__}.{type(value).__qualname__} does not travel between tasks; "
                "return plain JSON or a noun of acoupi_runtime.data"
            )
