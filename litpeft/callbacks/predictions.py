"""The output of `litpeft predict`: one JSON line per row, in the order of the input file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from litpeft.runs.atomic_write import write_atomically


class PredictionWriter(Callback):
    """Write predictions to a file.

    Args:
        file: JSON Lines file (default: `predictions.jsonl` in the run folder), with the text and the prediction of
            each row, in the order of the input.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = file
        self._rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._rows += outputs

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(self.file) if self.file else Path(trainer.default_root_dir) / "predictions.jsonl"
        texts = trainer.datamodule.table("predict")[0]["text"]
        lines = []
        for row in sorted(self._rows, key=lambda row: row["row"]):
            place = row.pop("row")
            lines.append(json.dumps(row | {"text": texts[place]}, ensure_ascii=False))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "\n".join(lines) + "\n")
        print(f"{len(lines)} predictions: {path}")
