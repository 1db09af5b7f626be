"""Callbacks that measure, record and save a run.

A callback that measures has a method `measured() -> dict` with keys of `runs.record.FIELDS`; `RunRecorder` collects the
results. A method `on_saved(trainer)` is called after each checkpoint is written.
"""

from litpeft.callbacks.benchmark import BenchmarkEvaluation
from litpeft.callbacks.checkpoint import Checkpoint
from litpeft.callbacks.checkpoint_io import FolderCheckpointIO
from litpeft.callbacks.confusion import ConfusionRecorder
from litpeft.callbacks.energy import EnergyRecorder
from litpeft.callbacks.evaluation_weights import ScheduleFreeWeights
from litpeft.callbacks.image_grid import ImageGrid
from litpeft.callbacks.memory import MemoryRecorder
from litpeft.callbacks.predictions import PredictionWriter
from litpeft.callbacks.progress import ProgressBar, ProgressLines
from litpeft.callbacks.row_results import ExampleRecorder
from litpeft.callbacks.run_record import RunRecorder
from litpeft.callbacks.throughput import ThroughputRecorder
from litpeft.callbacks.weight_averaging import on_trainable_tensors

__all__ = [
    "BenchmarkEvaluation",
    "Checkpoint",
    "ConfusionRecorder",
    "EnergyRecorder",
    "ExampleRecorder",
    "FolderCheckpointIO",
    "ImageGrid",
    "MemoryRecorder",
    "PredictionWriter",
    "ProgressBar",
    "ProgressLines",
    "RunRecorder",
    "ScheduleFreeWeights",
    "ThroughputRecorder",
    "on_trainable_tensors",
]
