"""components: the small parts that programs are made of. Import no celery; numpy and astral only where they work."""

from acoupi_runtime.components.types import (
    MessageBuilder,
    Messenger,
    Model,
    ModelOutputCleaner,
    ProcessingFilter,
    RecordingSavingFilter,
    RecordingSavingManager,
)

__all__ = [
    "MessageBuilder",
    "Messenger",
    "Model",
    "ModelOutputCleaner",
    "ProcessingFilter",
    "RecordingSavingFilter",
    "RecordingSavingManager",
]
