"""Progress: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import TaskID

LINE_SECONDS = 5.0  # seconds between lines


class ProgressBar(RichProgressBar):
    """Rich's progress bar with epochs counted from 1, and without the number of epochs if max_steps ends the run."""

    def __init__(self) -> None:
        super().__init__()
        self._benchmarks: dict[str, TaskID] = {}  # the running benchmark, by name

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
    """Print a line after the first step and every few seconds, where there is no terminal: step, loss, seconds left."""

    def __init__(self) -> None:
        super().__init__()
        self._started = self._last_line = time.monotonic()
        self._first = 0
        self._told = False  # whether a line of training has been printed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._first, self._told = time.monotonic(), trainer.global_step, False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now, done = time.monotonic(), trainer.global_step
        if done == self._first or (self._told and now - self._last_line < LINE_SECONDS):
            return
        total, left = pl_module.total_steps(), ""
        if total is not None and self._told:  # the first step is slower than others
            left = f", {(now - self._started) / (done - self._first) * (total - done):.0f} s left"
        self._last_line, self._told = now, True
        loss = trainer.callback_metrics["train_loss"]
        print(f"step {done}{f'/{total}' if total else ''}, train_loss {loss:.4f}{left}", flush=True)

    def on_benchmark_progress(self, trainer: Trainer, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            print(f"step {trainer.global_step}: {name} {done}/{total}", flush=True)

    def on_benchmark_end(
        self, trainer: Trainer, pl_module: LightningModule, step: int, results: dict[str, Any]
    ) -> None:
        for name, result in results.items():
            scores = ", ".join(f"{metric} {score:.4f}" for metric, score in result.scores.items())
            print(f"step {step}: {name} {scores}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        values = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        print(f"step {trainer.global_step}: {values}", flush=True)
