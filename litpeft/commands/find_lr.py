"""`litpeft find_lr`: the learning-rate range test, for one or several adapters (Smith 2017, https://arxiv.org/abs/1506.01186)."""

from __future__ import annotations

import copy
import csv
import io
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from litpeft.adapters import Adapter
from litpeft.callbacks import ProgressBar
from litpeft.cli.console import quieten
from litpeft.cli.error_context import naming_trainer_option
from litpeft.cli.planned_run import PlannedRunCLI
from litpeft.errors import UserError, writing
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.strategy_names import shown_name

SMOOTHING = 0.9  # decay of the running mean of the loss
DIVERGED = 2.0  # the run stops when the smoothed loss exceeds this multiple of its minimum


class FindCLI(PlannedRunCLI):
    """The options of `fit` plus those of `find_lr`."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--steps",
            type=int,
            default=100,
            help="maximum number of optimizer steps; the test stops when the loss diverges",
        )
        parser.add_argument("--lowest", type=float, default=1e-6, help="learning rate of the first step")
        parser.add_argument("--highest", type=float, default=1.0, help="learning rate of the last step")
        parser.add_argument("--output", type=str | None, help="CSV file for the loss at each learning rate")


class RateRange(Callback):
    """Set the learning rate of each step and record the smoothed loss.

    Args:
        rates: learning rate of the first parameter group at each step; other groups (LoRA+) keep their ratio to it.

    Attributes:
        losses: running mean of the loss after each step, bias-corrected as in Adam.
    """

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self.losses: list[float] = []
        self._mean = 0.0
        self._batches: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not self.losses:
            self._first = [group["lr"] for group in optimizer.param_groups]
            if None in self._first or not all(self._first):
                raise UserError("find_lr: model.optimizer has no learning rate to vary; give another optimizer.")
        for group, first in zip(optimizer.param_groups, self._first, strict=True):
            group["lr"] = self.rates[len(self.losses)] * first / self._first[0]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._batches.append(float(trainer.callback_metrics["train_loss"]))
        if trainer.global_step == len(self.losses):  # within gradient accumulation
            return
        step_loss, self._batches = sum(self._batches) / len(self._batches), []
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * step_loss
        self.losses.append(self._mean / (1 - SMOOTHING ** (len(self.losses) + 1)))
        diverged = not math.isfinite(self.losses[-1]) or self.losses[-1] > DIVERGED * min(self.losses)
        trainer.should_stop = diverged or len(self.losses) == len(self.rates)


def main(arguments: list[str]) -> int:
    quieten()
    cli = FindCLI("find_lr", arguments)
    options = cli.config["find_lr"]
    if options.steps < 10 or not 0 < options.lowest < options.highest:
        raise UserError("find_lr: --steps must be at least 10, and --lowest above 0 and below --highest.")
    growth = (options.highest / options.lowest) ** (1 / (options.steps - 1))
    rates = [options.lowest * growth**step for step in range(options.steps)]
    table = Table(title="learning-rate range test", title_justify="left")
    for column in ("adapter", "suggested", "minimum loss at", "diverges at"):
        table.add_column(column, justify="left" if column == "adapter" else "right")
    rows = []
    for adapter in cli.adapters():
        losses = _losses(cli, options, adapter, rates)
        table.add_row(shown_name(adapter.name), *_summary(rates, losses))
        rows += [(shown_name(adapter.name), rate, loss) for rate, loss in zip(rates, losses, strict=False)]
    Console().print(table)
    print("suggested: where the smoothed loss falls fastest; with warm-up, up to a tenth of `diverges at` may work")
    if options.output:
        _write(Path(options.output), rows)
    return 0


def _losses(cli: FindCLI, options: Any, adapter: Adapter, rates: list[float]) -> list[float]:
    """Return the smoothed losses of one adapter; all adapters start from the same seed and see the same batches."""
    L.seed_everything(options.seed_everything, verbose=False)
    task, found = copy.deepcopy(cli.model), RateRange(rates)
    task.adapter, task.scheduler = copy.deepcopy(adapter), None
    with tempfile.TemporaryDirectory() as scratch:
        with naming_trainer_option():
            trainer = Trainer(
                accelerator=options.trainer.accelerator,
                devices=1,
                accumulate_grad_batches=options.trainer.accumulate_grad_batches,
                gradient_clip_val=options.trainer.gradient_clip_val,
                max_epochs=-1,
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=os.isatty(1),
                use_distributed_sampler=False,
                callbacks=[found, *([ProgressBar()] if os.isatty(1) else [])],
                default_root_dir=scratch,
            )
        try:
            trainer.fit(task, datamodule=copy.copy(cli.datamodule))
        except UserError as error:
            if not str(error).startswith("the training loss is"):  # NaN or infinite loss: the end of the range
                raise
    if not (losses := [loss for loss in found.losses if math.isfinite(loss)]):
        raise UserError(
            f"find_lr: the training loss of {shown_name(adapter.name)} is NaN or infinite in the first step, at the "
            "lowest learning rate: try another model.dtype, and check the weights and the data."
        )
    return losses


def _summary(rates: list[float], losses: list[float]) -> list[str]:
    """Return the rates of the steepest fall, of the minimum loss and of divergence, as table cells."""
    skipped = min(5, len(losses) // 4)  # the first smoothed losses average few batches
    falls = [after - before for before, after in zip(losses[skipped:-1], losses[skipped + 1 :], strict=True)]
    least = min(range(len(losses)), key=losses.__getitem__)
    falls = falls[: max(1, least - skipped)]
    steepest = min(range(len(falls)), key=falls.__getitem__, default=None)
    if steepest is None or falls[steepest] >= 0:
        suggested = "none: the loss never fell"
    else:
        suggested = f"{rates[skipped + steepest]:.1e}"
    diverges = f"{rates[len(losses) - 1]:.1e}" if len(losses) < len(rates) else "not reached"
    return [suggested, f"{rates[least]:.1e}", diverges]


def _write(path: Path, rows: list[tuple[str, float, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("adapter", "lr", "smoothed_train_loss"))
    writer.writerows(rows)
    with writing("--output", path):
        write_atomically(path, text.getvalue())
    print(path)
