"""The logger that writes what Lightning logs to the file of curves in the run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from litpeft.runs.curve_file import append


class CurveLogger(Logger):
    """Write each logged step to `curves.jsonl`, so that `report` and `compare` need no other logger.

    Scores of benchmarks are left out; the record has them.

    Args:
        run_dir: the run folder.
        progress: function that returns the training tokens and the training seconds so far.
    """

    def __init__(self, run_dir: Path, progress: Callable[[], tuple[int, float]]) -> None:
        super().__init__()
        self._run_dir, self._progress = run_dir, progress

    name = "curves"
    version = ""

    @property
    def save_dir(self) -> str:
        return str(self._run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a line; Lightning counts steps from 0, the file from 1."""
        kept = {name: float(value) for name, value in metrics.items() if not name.startswith("benchmark")}
        if kept and step is not None:
            append(self._run_dir, step + 1, *self._progress(), kept)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the record has the settings."""
