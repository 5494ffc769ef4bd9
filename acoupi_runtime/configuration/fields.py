"""fields: the kinds of values that configuration models are made of. Touches nothing but the time zone database."""

from __future__ import annotations

import re
import zoneinfo
from datetime import time
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, SecretStr

_TIME = re.compile(r"([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d)?")


class Config(BaseModel):
    """What all configuration models share: values, and a key that nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _time_of_day(value: Any) -> Any:
    if isinstance(value, time):
        return value
    if not isinstance(value, str):
        # YAML reads 19:00 as the number 1140, and pydantic would take that as 00:19.
        raise ValueError("a time of day is quoted text; quote it: '19:00'")  # noqa: TRY004 - pydantic wants ValueError
    if not _TIME.fullmatch(value):
        raise ValueError("a time of day is HH:MM or HH:MM:SS, such as '19:00'")
    return time.fromisoformat(value.rjust(len(value) + value.index(":") % 2, "0"))


TimeOfDay = Annotated[
    time, BeforeValidator(_time_of_day), PlainSerializer(lambda value: value.isoformat(), return_type=str)
]


def _time_zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{value!r} is not a time zone; name one as in 'Europe/London' or 'UTC'") from None
    return value


TimeZone = Annotated[str, AfterValidator(_time_zone)]


def _single_line(value: str) -> str:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):  # noqa: PLR2004
        raise ValueError("control characters (a line break, a tab, ...) do not belong here")
    return value


Line = Annotated[str, AfterValidator(_single_line)]
"""Text without control characters, so that it cannot become a line of its own in a unit or a script."""


def _reveal(secret: SecretStr, info: Any) -> str:
    # Masked everywhere; only the one writer of a file that needs it asks with this context.
    return secret.get_secret_value() if (info.context or {}).get("reveal_secrets") else "**********"


Secret = Annotated[SecretStr, PlainSerializer(_reveal, return_type=str)]
