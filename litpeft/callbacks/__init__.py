"""Callbacks: what is measured, written and saved while a task runs.

One that measures has a method `measured() -> dict` with names of `runs.record.FIELDS`; `RunRecorder` collects them.
One with a method `on_saved(trainer)` is told when a checkpoint is there.
"""

from litpeft.callbacks.benchmark import BenchmarkEvaluation
from litpeft.callbacks.checkpoint import Checkpoint
from litpeft.callbacks.checkpoint_io import FolderCheckpointIO
from litpeft.callbacks.energy import EnergyRecorder
from litpeft.callbacks.memory import MemoryRecorder
from litpeft.callbacks.predictions import PredictionWriter
from litpeft.callbacks.progress import ProgressBar, ProgressLines
from litpeft.callbacks.row_results import ExampleRecorder
from litpeft.callbacks.run_record import RunRecorder
from litpeft.callbacks.throughput import ThroughputRecorder

__all__ = [
    "BenchmarkEvaluation",
    "Checkpoint",
    "EnergyRecorder",
    "ExampleRecorder",
    "FolderCheckpointIO",
    "MemoryRecorder",
    "PredictionWriter",
    "ProgressBar",
    "ProgressLines",
    "RunRecorder",
    "ThroughputRecorder",
]
