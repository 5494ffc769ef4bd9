"""store: the truth about recordings, detections and messages. Touches one SQLite file; no audio, no celery."""

from acoupi_runtime.store.outbox import Attempt, Waiting
from acoupi_runtime.store.rows import Claim, Known, Move, Outcome, State
from acoupi_runtime.store.store import Store

__all__ = ["Attempt", "Claim", "Known", "Move", "Outcome", "State", "Store", "Waiting"]
