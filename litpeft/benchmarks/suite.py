"""The benchmarks of a run: looked up and checked before training, evaluated any number of times."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from litpeft.benchmarks.base import Benchmark, Live, Options, Result
from litpeft.benchmarks.harness import HarnessGroup, find
from litpeft.errors import UserError
from litpeft.tasks import FineTuner

Progress = Callable[[str, int, int], None]  # benchmark name, rows done, rows in total


class OutOfTime(Exception):
    """The time limit of an evaluation is reached."""


@dataclass
class Evaluation:
    """The results of one evaluation.

    Attributes:
        seconds: duration.
        results: result by benchmark, including groups.
        skipped: by benchmark, the reason why there is no result.
    """

    seconds: float
    results: dict[str, Result] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def as_entry(self) -> dict[str, Any]:
        """Return the entry for the record: everything except the results of single items."""
        return {
            "seconds": self.seconds,
            "results": {
                name: {key: value for key, value in vars(result).items() if key != "per_item"}
                for name, result in self.results.items()
            },
            "skipped": self.skipped,
        }


class Suite:
    """The benchmarks that `options.tasks` names.

    Args:
        options: options of the evaluation.
        task: the task to evaluate; it may not be built yet.
        data: the data module of the run.

    Raises:
        UserError: a benchmark does not exist, does not fit the task, or its items cannot be loaded.
    """

    def __init__(self, options: Options, task: FineTuner, data: LightningDataModule) -> None:
        self.options = options
        kinds = {kind.name: kind for kind in Benchmark.__subclasses__() if kind.name}
        names = list(dict.fromkeys(options.tasks))
        others = [name for name in names if name not in kinds]
        self.benchmarks: list[Benchmark] = [kinds[name]() for name in names if name in kinds]
        self.groups: list[HarnessGroup] = []
        if others:
            with isolate_rng():
                found, self.groups = find(others, options)
            self.benchmarks += found
        for benchmark in self.benchmarks:
            benchmark.check(task, data, options)

    def evaluate(
        self, task: FineTuner, data: LightningDataModule, progress: Progress, warn: Callable[[str], None]
    ) -> Evaluation:
        """Evaluate the task; its modes and the random states are restored.

        Args:
            task: the task, built and with its weights.
            data: the data module, set up.
            progress: called with the progress.
            warn: called with messages for the user.
        """
        start = time.monotonic()
        evaluation = Evaluation(seconds=0.0)
        current, screen = "", sys.stdout

        def tick(done: int, total: int) -> None:
            with redirect_stdout(screen):  # a benchmark may redirect the output of libraries
                progress(current, done, total)
            limit = self.options.max_seconds
            if limit is not None and done < total and time.monotonic() - start > limit:
                raise OutOfTime

        live = Live(task, data, self.options, tick)
        with evaluation_mode(task):
            for benchmark in self.benchmarks:
                current = benchmark.name
                try:
                    if self.options.max_seconds is not None and time.monotonic() - start > self.options.max_seconds:
                        raise OutOfTime
                    progress(current, 0, 1)
                    evaluation.results[current] = benchmark.run(live)
                except OutOfTime:
                    evaluation.skipped[current] = (
                        f"the time limit of {self.options.max_seconds:g} s (benchmarks.max_seconds) was reached"
                    )
                except Exception as error:  # an error in third-party code must not end the training
                    reason = " ".join(str(error).split())
                    evaluation.skipped[current] = f"{type(error).__name__}: {reason}".rstrip(": ")
        evaluation.results |= {
            group.name: result for group in self.groups if (result := group.result(evaluation.results)) is not None
        }
        for message in live.warnings:
            warn(message)
        for name, reason in evaluation.skipped.items():
            warn(f"benchmark {name} has no result: {reason}.")
        evaluation.seconds = time.monotonic() - start
        return evaluation


@contextmanager
def evaluation_mode(task: FineTuner) -> Iterator[None]:
    """Set evaluation mode with the compute dtype of training inside the with block; restore modes and random states."""
    modes: dict[nn.Module, bool] = {module: module.training for module in task.modules()}
    task.eval()
    try:
        with isolate_rng(), torch.no_grad(), task.autocast():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_options(options: Options, every_n_steps: int | None = None) -> None:
    """Check the numbers among the options.

    Raises:
        UserError: a number is too small; names the option.
    """
    numbers = {
        "limit": (options.limit, 1),
        "batch_size": (options.batch_size, 1),
        "every_n_steps": (every_n_steps, 1),
        "num_fewshot": (options.num_fewshot, 0),
    }
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise UserError(f"benchmarks.{name} must be at least {least}, got {value}.")
    if options.max_seconds is not None and options.max_seconds <= 0:
        raise UserError(f"benchmarks.max_seconds must be above 0, got {options.max_seconds:g}.")
