"""Live progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.callbacks import RichProgressBar

EVERY = 5.0  # seconds between lines


class ProgressBar(RichProgressBar):
    """Rich's bar, with epochs counted from one, and no number of epochs where steps end the run."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs or -1
        return f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")


class ProgressLines(AnyProgressBar):
    """One line every few seconds, where there is no terminal to draw a bar on: step, loss and seconds left."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = self._told = time.monotonic()
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now, done = time.monotonic(), trainer.global_step
        if now - self._told < EVERY or done == self._first:
            return
        self._told = now
        total = pl_module.total_steps()
        left = "" if total is None else f", {(now - self._begun) / (done - self._first) * (total - done):.0f} s left"
        loss = trainer.callback_metrics["train_loss"]
        print(f"step {done}{f'/{total}' if total else ''}, train_loss {loss:.4f}{left}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        told = ", ".join(f"{name} {value:.4f}" for name, value in sorted(found.items()))
        print(f"step {trainer.global_step}: {told}", flush=True)
