"""configuration: the models of program.json, celery.json and deployment.json. Touches nothing.

The workstation validates with these classes what the device will read with them. A field is added by one line here.
"""

from acoupi_runtime.configuration.celery import CeleryConfig
from acoupi_runtime.configuration.deployment import DeploymentConfig
from acoupi_runtime.configuration.fields import Config, TimeOfDay, TimeZone
from acoupi_runtime.configuration.program import (
    BasicConfig,
    HTTPConfig,
    MessagingConfig,
    MicrophoneConfig,
    PathsConfig,
    ProcessingConfig,
    RecordingConfig,
    RetentionConfig,
    SavingConfig,
    TriggerConfig,
)

__all__ = [
    "BasicConfig",
    "CeleryConfig",
    "Config",
    "DeploymentConfig",
    "HTTPConfig",
    "MessagingConfig",
    "MicrophoneConfig",
    "PathsConfig",
    "ProcessingConfig",
    "RecordingConfig",
    "RetentionConfig",
    "SavingConfig",
    "TimeOfDay",
    "TimeZone",
    "TriggerConfig",
]
