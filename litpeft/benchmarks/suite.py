"""The benchmarks that a run was asked for: found before it trains, measured as often as it likes."""

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

Progress = Callable[[str, int, int], None]  # name, how many are done, of how many


class OutOfTime(Exception):
    """The time that one evaluation may take is over."""


@dataclass
class Evaluation:
    """What one evaluation gave.

    Attributes:
        seconds: that it took.
        results: by benchmark, those of groups included.
        skipped: by benchmark, why there is no result: its time was over, or it failed.
    """

    seconds: float
    results: dict[str, Result] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """For the record: all but what each item gave."""
        return {
            "seconds": self.seconds,
            "results": {
                name: {key: value for key, value in vars(result).items() if key != "per_item"}
                for name, result in self.results.items()
            },
            "skipped": self.skipped,
        }


class Suite:
    """Benchmarks by name.

    Args:
        options: which, and how.
        task: that they will be run on; it may not be built yet.
        data: its data.

    Raises:
        UserError: there is no such benchmark, it does not suit the task, or its items cannot be had.
    """

    def __init__(self, options: Options, task: FineTuner, data: LightningDataModule) -> None:
        self.options = options
        own = {kind.name: kind for kind in Benchmark.__subclasses__() if kind.name}
        named = list(dict.fromkeys(options.tasks))
        others = [name for name in named if name not in own]
        self.benchmarks: list[Benchmark] = [own[name]() for name in named if name in own]
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
        """Measure the task as it stands, and leave it and the random numbers as they were.

        Args:
            task: built, with its weights.
            data: set up.
            progress: told how far it is.
            warn: told what the user should see.
        """
        begun = time.monotonic()
        found = Evaluation(seconds=0.0)
        current, screen = "", sys.stdout

        def tick(done: int, total: int) -> None:
            with redirect_stdout(screen):  # a benchmark may hide what the libraries below it print
                progress(current, done, total)
            limit = self.options.max_seconds
            if limit is not None and done < total and time.monotonic() - begun > limit:
                raise OutOfTime

        live = Live(task, data, self.options, tick)
        with as_it_stands(task):
            for benchmark in self.benchmarks:
                current = benchmark.name
                try:
                    if self.options.max_seconds is not None and time.monotonic() - begun > self.options.max_seconds:
                        raise OutOfTime
                    progress(current, 0, 1)
                    found.results[current] = benchmark.run(live)
                except OutOfTime:
                    found.skipped[current] = f"the {self.options.max_seconds:g} s of benchmarks.max_seconds were over"
                except Exception as error:  # of a task of others: no reason to lose the training
                    reason = " ".join(str(error).split())
                    found.skipped[current] = f"{type(error).__name__}: {reason}".rstrip(": ")
        found.results |= {
            group.name: result for group in self.groups if (result := group.result(found.results)) is not None
        }
        for sentence in live.warnings:
            warn(sentence)
        for name, reason in found.skipped.items():
            warn(f"benchmark {name} has no result: {reason}.")
        found.seconds = time.monotonic() - begun
        return found


@contextmanager
def as_it_stands(task: FineTuner) -> Iterator[None]:
    """Within, the task is in evaluation mode and computes as in training; modes and random numbers are put back."""
    modes: dict[nn.Module, bool] = {module: module.training for module in task.modules()}
    task.eval()
    try:
        with isolate_rng(), torch.no_grad(), task.computing():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_options(options: Options, every_n_steps: int | None = None) -> None:
    """Whether the numbers among the options can be meant.

    Raises:
        UserError: names the one that cannot.
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
