"""Callbacks that bring about what can go wrong, named on a command line: `--trainer.callbacks tests.faults.Signal`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer


class Signal(Callback):
    """Send this process a signal.

    Args:
        number: of the signal.
        batch: of the run, counted from 0, after which; validations come after that of their batch.
        where: after a training batch, or when the validation that follows begins.
        times: how often.
    """

    def __init__(
        self, number: int, batch: int, where: Literal["train", "validation"] = "train", times: int = 1
    ) -> None:
        self.number, self.batch, self.where, self.times = number, batch, where, times

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.where == "train" and trainer.fit_loop.total_batch_idx == self.batch:
            self._send()

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if self.where == "validation" and trainer.fit_loop.total_batch_idx == self.batch:
            self._send()

    def _send(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


class Sleep(Callback):
    """Tell that the run has come to a step, and stay there.

    Args:
        step: it.
        told: a file that is made then.
    """

    def __init__(self, step: int, told: str) -> None:
        self.step, self.told = step, told

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            Path(self.told).touch()
            time.sleep(600)


class KillWorker(Callback):
    """Kill one of the processes that make batches, as the system does where memory runs out; then the next."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self._kill()

    def on_exception(self, *_: Any) -> None:
        self._kill()

    def _kill(self) -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(0.2)  # until the system has told of it


class Poison(Callback):
    """Make the loss of one batch no number.

    Args:
        batch: which, counted from 0 in the run.
        value: what it becomes.
    """

    def __init__(self, batch: int, value: Literal["nan", "inf"] = "nan") -> None:
        self.batch, self.value = batch, float(value)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        honest = pl_module.loss

        def loss(batch: Any) -> Any:
            bad = trainer.training and trainer.fit_loop.total_batch_idx == self.batch
            return honest(batch) * self.value if bad else honest(batch)

        pl_module.loss = loss


class ClockBack(Callback):
    """Set the clock of this process back by a day at each step, as far as programs can tell."""

    def on_train_batch_end(self, *_: Any) -> None:
        before = time.time
        time.time = lambda: before() - 86400


class ClockAhead(Signal):
    """As `Signal`, by a clock that is a day ahead from the start, as far as programs can tell."""

    def __init__(self, number: int, batch: int) -> None:
        super().__init__(number, batch)
        now = time.time
        time.time = lambda: now() + 86400
