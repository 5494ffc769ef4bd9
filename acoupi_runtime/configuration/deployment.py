"""deployment: the model of the wanted deployment, deployment.json. Touches nothing."""

from __future__ import annotations

from pydantic import Field

from acoupi_runtime.configuration.fields import Config, Line


class DeploymentConfig(Config):
    """Where the sensor stands. When it changes, the device ends its deployment and starts another."""

    name: Line = Field(min_length=1)
    latitude: float | None = Field(default=None, ge=-90, le=90)
    """Degrees north."""
    longitude: float | None = Field(default=None, ge=-180, le=180)
    """Degrees east."""
