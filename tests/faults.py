"""Callbacks that cause faults, given on a command line: `--trainer.callbacks tests.faults.Signal`."""

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
        number: the signal number.
        batch: index of the training batch in the run, from 0.
        where: send after this batch, or at the start of the validation that follows it.
        times: how many times to send the signal.
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
    """Create a marker file at an optimizer step, then sleep.

    Args:
        step: the optimizer step.
        marker: path of the marker file.
    """

    def __init__(self, step: int, marker: str) -> None:
        self.step, self.marker = step, marker

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            Path(self.marker).touch()
            time.sleep(600)


class KillWorker(Callback):
    """Kill a dataloader worker, as the system does when memory runs out, then another one."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self._kill()

    def on_exception(self, *_: Any) -> None:
        self._kill()

    def _kill(self) -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(0.2)  # until the system has reported the death


class Poison(Callback):
    """Make the loss of one training batch NaN or infinite.

    Args:
        batch: index of the batch in the run, from 0.
        value: the value of the loss.
    """

    def __init__(self, batch: int, value: Literal["nan", "inf"] = "nan") -> None:
        self.batch, self.value = batch, float(value)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        original = pl_module.loss

        def loss(batch: Any) -> Any:
            bad = trainer.training and trainer.fit_loop.total_batch_idx == self.batch
            return original(batch) * self.value if bad else original(batch)

        pl_module.loss = loss


class ClockBack(Callback):
    """Make `time.time` of this process go back by a day at each batch."""

    def on_train_batch_end(self, *_: Any) -> None:
        before = time.time
        time.time = lambda: before() - 86400


class ClockAhead(Signal):
    """Like `Signal`, with `time.time` a day ahead from the start."""

    def __init__(self, number: int, batch: int) -> None:
        super().__init__(number, batch)
        now = time.time
        time.time = lambda: now() + 86400
