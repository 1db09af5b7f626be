"""The result of each validation row, so that two runs can be compared row by row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from litpeft.data.cache import rows_fingerprint
from litpeft.runs.atomic_write import write_atomically
from litpeft.training import processes

FILE = "val_examples.json"
MOST_ROWS = 10_000  # validation rows up to which their results are kept by default
MOST_WRONG = 10  # wrong predictions that are kept with their text
LONGEST = 500  # characters of such a text


class ExampleRecorder(Callback):
    """Save the loss of each validation row and, for a classifier, whether the prediction was correct.

    A classifier of texts also saves the ten wrong predictions with the highest probability, with the text of the row.

    Args:
        predictions: save the rows of the last validation as `val_examples.json` in the run folder; default: up to
            10,000 rows. `litpeft compare` then tests differences over rows as well as over seeds.
    """

    def __init__(self, predictions: bool | None = None) -> None:
        self.predictions = predictions
        self._parts: list[dict[str, Tensor]] = []
        self._seconds = 0.0
        self._bytes: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.return_row_results = stage == "fit" and self._is_kept(trainer)

    def _is_kept(self, trainer: Trainer) -> bool:
        if self.predictions is not None:
            return self.predictions
        rows = getattr(getattr(trainer, "datamodule", None), "rows", {}).get("val")
        return rows is not None and len(rows) <= MOST_ROWS

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if pl_module.return_row_results and not trainer.sanity_checking and _is_by_row(outputs, batch):
            # left on the device: a copy would wait for it after each batch
            self._parts.append({"row": batch["row"]} | outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._parts:
            return
        start = time.perf_counter()
        own = {name: torch.cat([part[name] for part in self._parts]).cpu() for name in self._parts[0]}
        parts = processes.gather_from_ranks(own)
        self._parts = []
        if not trainer.is_global_zero:
            return
        columns = {name: torch.cat([part[name] for part in parts]) for name in own}
        order = columns["row"].argsort()
        columns = {name: column[order] for name, column in columns.items()}
        rows = columns.pop("row")
        table = f"{trainer.datamodule.table('val')[1]['fingerprint']}:{rows_fingerprint(rows.numpy())}"
        result = {"step": trainer.global_step, "table": table}
        result |= {name: columns[name].tolist() for name in ("loss", "correct") if name in columns}
        if "probability" in columns:
            result["wrong"] = _wrong(trainer.datamodule, rows, columns)
        text = json.dumps(result) + "\n"
        write_atomically(Path(trainer.default_root_dir) / FILE, text)
        self._bytes = len(text.encode())
        self._seconds += time.perf_counter() - start

    def measured(self) -> dict[str, Any]:
        if self._bytes is None:
            return {}
        return {"val_examples": FILE, "val_examples_bytes": self._bytes, "val_examples_seconds": self._seconds}


def _is_by_row(outputs: Any, batch: Any) -> bool:
    """Return whether a task's validation step returned one value per row; a user's own task may return others."""
    count = len(batch["row"])
    return isinstance(outputs, dict) and all(
        torch.is_tensor(part) and part.shape == (count,) for part in outputs.values()
    )


def _wrong(data: Any, rows: Tensor, columns: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest probability: row, text, label, prediction and probability."""
    table, names = data.table("val")[0], data.label_names
    if "input_ids" not in table.column_names:
        return []
    wrong = (columns["correct"] == 0).nonzero().flatten()
    most = wrong[columns["probability"][wrong].argsort(descending=True, stable=True)][:MOST_WRONG].tolist()
    return [
        {
            "row": int(rows[i]),
            "text": data.tokenizer.decode(table[int(rows[i])]["input_ids"], skip_special_tokens=True)[:LONGEST],
            "label": names[int(columns["label"][i])],
            "prediction": names[int(columns["prediction"][i])],
            "probability": float(columns["probability"][i]),
        }
        for i in most
    ]
