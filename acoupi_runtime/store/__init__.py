"""store: the truth about recordings, detections and messages. Touches one SQLite file; no audio, no celery."""

from acoupi_runtime.store.outbox import Attempt, Waiting
from acoupi_runtime.store.recordings import Order
from acoupi_runtime.store.rows import Claim, Correction, Known, Move, Outcome, State, Unsynced
from acoupi_runtime.store.store import Store

__all__ = [
    "Attempt",
    "Claim",
    "Correction",
    "Known",
    "Move",
    "Order",
    "Outcome",
    "State",
    "Store",
    "Unsynced",
    "Waiting",
]
