"""The result of each validation row, so that two runs can be compared row by row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from litpeft.runs.atomic_write import write_atomically
from litpeft.training import processes

FILE = "val_examples.json"


class ExampleRecorder(Callback):
    """Save the loss of each validation row and, for a classifier, whether the prediction was correct.

    Args:
        predictions: save the rows of the last validation as `val_examples.json` in the run folder. `litpeft compare`
            then tests differences over rows as well as over seeds.
    """

    def __init__(self, predictions: bool = False) -> None:
        self.predictions = predictions
        self._parts: list[dict[str, Any]] = []
        self._written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.return_row_results = self.predictions and stage == "fit"

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if pl_module.return_row_results and not trainer.sanity_checking:
            self._parts.append({"row": batch["row"].cpu()} | {name: part.cpu() for name, part in outputs.items()})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._parts:
            return
        parts = [part for parts in processes.gather_from_ranks(self._parts) for part in parts]
        if not trainer.is_global_zero:
            return
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        rows, order = columns.pop("row").sort()
        chosen = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
        result = {"step": trainer.global_step, "table": f"{trainer.datamodule.table('val')[1]['fingerprint']}:{chosen}"}
        result |= {name: column[order].tolist() for name, column in columns.items()}
        write_atomically(Path(trainer.default_root_dir) / FILE, json.dumps(result) + "\n")
        self._written = True

    def measured(self) -> dict[str, Any]:
        return {"val_examples": FILE} if self._written else {}
