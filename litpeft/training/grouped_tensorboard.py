"""TensorBoard with its curves in groups: `train`, `val`, `test`, `speed`, `memory`, `benchmark`, `final`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

GROUPS = {"train_": "train/", "val_": "val/", "test_": "test/"}  # start of a name -> of its tag
NAMED = {"lr": "train/lr", "epoch": "train/epoch", "model_flops_per_second": "speed/model_flops_per_second"}


class GroupedTensorBoard(TensorBoardLogger):
    """Write the curve `val_accuracy` as `val/accuracy`, so that TensorBoard folds curves by what they show."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({tag(name): value for name, value in metrics.items()}, step)

    def log_hyperparams(
        self, params: Mapping[str, Any], metrics: Mapping[str, float] | None = None, step: int | None = None
    ) -> None:
        """Write the HParams tab; its figures are in the group `final`, and add no point to a curve."""
        final = None if metrics is None else {f"final/{name}": value for name, value in metrics.items()}
        super().log_hyperparams(params, final, step)


def tag(name: str) -> str:
    """Return the tag of a curve: `train/loss`, `val/accuracy`, `speed/tokens_per_second`; others keep their name."""
    if name in NAMED:
        return NAMED[name]
    if name.startswith("train_") and name.endswith("_per_second"):
        return f"speed/{name.removeprefix('train_')}"
    return next((group + name.removeprefix(start) for start, group in GROUPS.items() if name.startswith(start)), name)
