"""`litpeft find_lr`: the learning-rate range test, for one adapter or several beside each other."""

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
from litpeft.cli.error_context import making_trainer
from litpeft.cli.planned_run import UnstartedCLI
from litpeft.errors import UserError, writing
from litpeft.runs.atomic_write import write_atomically

SMOOTHED = 0.9  # share of the running mean of losses that a step leaves
LOST = 2.0  # times the least loss: nothing is learned any more


class FindCLI(UnstartedCLI):
    """What `find_lr` takes beside the options of `fit`."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--steps", type=int, default=100, help="optimizer steps, fewer where the loss is lost before"
        )
        parser.add_argument("--lowest", type=float, default=1e-6, help="learning rate of the first step")
        parser.add_argument("--highest", type=float, default=1.0, help="learning rate of the last step")
        parser.add_argument("--output", type=str | None, help="CSV file for the losses by learning rate")


class RateRange(Callback):
    """Raise the learning rate by the same factor each step, and note what the loss does.

    Args:
        rates: of each step; of groups with a rate of their own (LoRA+), that of the first one.

    Attributes:
        losses: of each step, the running mean (without the pull to its start, as Adam's).
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
                raise UserError("find_lr: model.optimizer has no learning rate that could be raised.")
        for group, own in zip(optimizer.param_groups, self._first, strict=True):
            group["lr"] = self.rates[len(self.losses)] * own / self._first[0]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._batches.append(float(trainer.callback_metrics["train_loss"]))
        if trainer.global_step == len(self.losses):  # batches are accumulated
            return
        step_loss, self._batches = sum(self._batches) / len(self._batches), []
        self._mean = SMOOTHED * self._mean + (1 - SMOOTHED) * step_loss
        self.losses.append(self._mean / (1 - SMOOTHED ** (len(self.losses) + 1)))
        lost = not math.isfinite(self.losses[-1]) or self.losses[-1] > LOST * min(self.losses)
        trainer.should_stop = lost or len(self.losses) == len(self.rates)


def main(words: list[str]) -> int:
    quieten()
    cli = FindCLI("find_lr", words)
    options = cli.config["find_lr"]
    if options.steps < 10 or not 0 < options.lowest < options.highest:
        raise UserError("find_lr: --steps must be at least 10, and --lowest above 0 and below --highest.")
    growth = (options.highest / options.lowest) ** (1 / (options.steps - 1))
    rates = [options.lowest * growth**step for step in range(options.steps)]
    table = Table(title="learning rates that were tried, from low to high", title_justify="left")
    for column in ("adapter", "suggested", "least loss at", "lost at"):
        table.add_column(column, justify="left" if column == "adapter" else "right")
    rows = []
    for adapter in cli.adapters():
        losses = _losses(cli, options, adapter, rates)
        table.add_row(adapter.name, *_told(rates, losses))
        rows += [(adapter.name, rate, loss) for rate, loss in zip(rates, losses, strict=False)]
    Console().print(table)
    print("suggested: where the smoothed loss falls fastest; a run with warm-up may take up to the tenth of `lost at`")
    if options.output:
        _write(Path(options.output), rows)
    return 0


def _losses(cli: FindCLI, options: Any, adapter: Adapter, rates: list[float]) -> list[float]:
    """The smoothed losses of one adapter, from the same start and on the same batches as any other's."""
    L.seed_everything(options.seed_everything, verbose=False)
    task, found = copy.deepcopy(cli.model), RateRange(rates)
    task.adapter, task.scheduler = copy.deepcopy(adapter), None
    with tempfile.TemporaryDirectory() as scratch:
        with making_trainer():
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
            if not str(error).startswith("the training loss is"):  # no number any more: the end of the range
                raise
    return [loss for loss in found.losses if math.isfinite(loss)]


def _told(rates: list[float], losses: list[float]) -> list[str]:
    """The rate of steepest fall, that of the least loss, and that at which nothing is learned any more."""
    skipped = min(5, len(losses) // 4)  # the first losses are of a few batches alone
    falls = [after - before for before, after in zip(losses[skipped:-1], losses[skipped + 1 :], strict=True)]
    least = min(range(len(losses)), key=losses.__getitem__)
    falls = falls[: max(1, least - skipped)]
    steepest = min(range(len(falls)), key=falls.__getitem__, default=None)
    if steepest is None or falls[steepest] >= 0:
        suggested = "none: the loss never fell"
    else:
        suggested = f"{rates[skipped + steepest]:.1e}"
    lost = f"{rates[len(losses) - 1]:.1e}" if len(losses) < len(rates) else "not reached"
    return [suggested, f"{rates[least]:.1e}", lost]


def _write(path: Path, rows: list[tuple[str, float, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("adapter", "lr", "smoothed_train_loss"))
    writer.writerows(rows)
    with writing("--output", path):
        write_atomically(path, text.getvalue())
    print(path)
