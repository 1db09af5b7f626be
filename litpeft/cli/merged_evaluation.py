"""Validate a finished run with its adapter beside the base, and merged into it: quality and speed of both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.runs.record import read_record, write_record


class ValidatedBothWays(LitPeftCLI):
    """`litpeft validate` of a run, before and after the adapter is merged; adds `merged_evaluation` to its record.

    The merged weights have the compute dtype, and those of a quantised base are dequantised, as `litpeft export
    --format merged` does.

    Args:
        run_dir: folder of the run.
        accelerator: as `--trainer.accelerator`.

    Attributes:
        found: {"adapter" and "merged": {figure: value}}.
    """

    def __init__(self, run_dir: Path, accelerator: str) -> None:
        words = ["--run_dir", str(run_dir), "--trainer.accelerator", accelerator]
        super().__init__("validate", [*words, "--trainer.enable_progress_bar", "false"])

    def _run_subcommand(self, subcommand: str) -> None:
        found = {"adapter": self._validate(str(self.checkpoint))}
        self.model.adapter.merge(self.model.backbone)
        self.found = found | {"merged": self._validate(None)}
        record = read_record(self.run_dir, to_write=True)
        write_record(self.run_dir, record | {"merged_evaluation": self.found})

    def _validate(self, checkpoint: str | None) -> dict[str, float]:
        timer = _Timer()
        self.trainer.callbacks.append(timer)
        self.trainer.validate(self.model, self.datamodule, ckpt_path=checkpoint, verbose=False)
        self.trainer.callbacks.remove(timer)
        return {name: value.item() for name, value in self.trainer.callback_metrics.items()} | timer.rates()


class _Timer(Callback):
    """Times the validation batches after the first one, which warms up."""

    def __init__(self) -> None:
        self._start, self._seconds, self._rows = 0.0, 0.0, 0

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, number: int, *_: Any
    ) -> None:
        if number == 1:
            _wait(module)
            self._start = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int, *_: Any
    ) -> None:
        self._rows += len(batch["row"]) if number else 0

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        _wait(module)
        self._seconds = time.perf_counter() - self._start

    def rates(self) -> dict[str, float]:
        """Return the rows per second; nothing if there was one batch only."""
        return {"rows_per_second": self._rows / self._seconds} if self._rows else {}


def _wait(module: LightningModule) -> None:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
