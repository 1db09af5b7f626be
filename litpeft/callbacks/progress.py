"""Live progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import TaskID

EVERY = 5.0  # seconds between lines


class ProgressBar(RichProgressBar):
    """Rich's bar, with epochs counted from one, and no number of epochs where steps end the run."""

    def __init__(self) -> None:
        super().__init__()
        self._benchmarks: dict[str, TaskID] = {}  # the one that runs

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs or -1
        return f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")

    def on_benchmark_progress(self, trainer: Trainer, name: str, done: int, total: int) -> None:
        if self.progress is None:
            return
        if name not in self._benchmarks:
            self.on_benchmark_end()
            self._benchmarks = {name: self._add_task(total, name)}
        self.progress.update(self._benchmarks[name], completed=done, total=total)
        self.refresh()

    def on_benchmark_end(self, *_: Any) -> None:
        while self._benchmarks:
            self.progress.remove_task(self._benchmarks.popitem()[1])


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

    def on_benchmark_progress(self, trainer: Trainer, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done and now - self._told >= EVERY:
            self._told = now
            print(f"step {trainer.global_step}: {name} {done}/{total}", flush=True)

    def on_benchmark_end(
        self, trainer: Trainer, pl_module: LightningModule, step: int, results: dict[str, Any]
    ) -> None:
        for name, result in results.items():
            told = ", ".join(f"{metric} {score:.4f}" for metric, score in result.scores.items())
            print(f"step {step}: {name} {told}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        told = ", ".join(f"{name} {value:.4f}" for name, value in sorted(found.items()))
        print(f"step {trainer.global_step}: {told}", flush=True)
