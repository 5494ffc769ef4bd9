"""programs: what a sensor does, as classes. Imports no celery, numpy or sounddevice: the workstation reads them too."""

from acoupi_runtime.programs.base import AcoupiProgram, AcoupiWorker, ProgramTask, WorkerConfig
from acoupi_runtime.programs.loading import load_program_class, program_names

__all__ = ["AcoupiProgram", "AcoupiWorker", "ProgramTask", "WorkerConfig", "load_program_class", "program_names"]
