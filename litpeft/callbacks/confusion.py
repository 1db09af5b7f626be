"""The confusion matrix of a classifier's validation rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from litpeft.runs.atomic_write import write_atomically

FILE = "confusion_matrix.json"


class ConfusionRecorder(Callback):
    """Write the confusion matrix of the last validation to `confusion_matrix.json`, if the task has one."""

    def __init__(self) -> None:
        self._written = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        matrix = getattr(pl_module, "confusion", None)
        if matrix is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        rows = matrix.compute().tolist()  # collective: every process computes it
        if trainer.is_global_zero:
            found = {"step": trainer.global_step, "label_names": trainer.datamodule.label_names, "rows": rows}
            write_atomically(Path(trainer.default_root_dir) / FILE, json.dumps(found, ensure_ascii=False) + "\n")
        self._written = True

    def measured(self) -> dict[str, Any]:
        return {"confusion_matrix": FILE} if self._written else {}
