"""The base class of benchmarks, which evaluate a model during or after its training.

To add one: derive from `Benchmark` in a new file, set `name`, implement `run`, and import the class in `__init__.py`.
A minimal example:

    class Confidence(Benchmark):
        name = "confidence"

        def run(self, live):
            rows = [(live.data.tokenizer("the film was").input_ids, [7])]
            [(log, _)] = live.score(rows)
            return Result(scores={"log_likelihood": log}, items=1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning import LightningDataModule

from litpeft.benchmarks.scorer import PrefixScorer, Row, Score
from litpeft.tasks import FineTuner


@dataclass
class Options:
    """Options of an evaluation; `BenchmarkEvaluation` documents them."""

    tasks: Sequence[str] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    data_dir: str | None = None
    text_file: str | None = None
    max_seconds: float | None = None


@dataclass
class Result:
    """The result of one benchmark.

    Attributes:
        scores: score by metric.
        standard_errors: standard error over items by metric; unknown ones are absent.
        items: number of items.
        items_of: number of items by metric, of metrics that are a mean over only some.
        num_fewshot: few-shot examples per item; None if not applicable.
        fingerprint: hash of all prompts and answers; results are comparable only if it is equal.
        tasks: names of the tasks in a group.
        per_item: values of the items in order, by the metric that is their mean.
    """

    scores: dict[str, float]
    items: int
    items_of: dict[str, int] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)
    num_fewshot: int | None = None
    fingerprint: str | None = None
    tasks: list[str] = field(default_factory=list)
    per_item: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Live:
    """A model during one evaluation, with caches that are dropped afterwards.

    Attributes:
        task: the task; its weights do not change during the evaluation.
        data: the data module of the run.
        options: options of the evaluation.
        tick: called with (rows done, rows in total); an exception from it ends the benchmark.
        warnings: messages for the user.
    """

    task: FineTuner
    data: LightningDataModule
    options: Options
    tick: Callable[[int, int], None]
    warnings: list[str] = field(default_factory=list)
    memory: dict[Any, Any] = field(default_factory=dict)  # cache shared by benchmarks

    def scorer(self, rows: Sequence[Row]) -> PrefixScorer | None:
        """Return a scorer that computes shared prefixes once; None if the model does not support that."""
        if "scorer" not in self.memory:
            scorer = PrefixScorer(self.task.backbone)
            if not scorer.agrees(rows):
                kind = type(self.task.backbone).__name__
                self.warnings.append(f"{kind} does not support computing shared prefixes once; benchmarks are slower.")
                scorer = None
            self.memory["scorer"] = scorer
        return self.memory["scorer"]

    def score(self, rows: Sequence[Row]) -> list[Score]:
        """Return the log-likelihoods of continuations, see litpeft/benchmarks/scorer.py."""
        scorer, scores = self.scorer(rows), dict[int, Score]()  # row number -> score
        fitting = [place for place, row in enumerate(rows) if scorer is not None and scorer.takes(row)]
        if fitting:
            scorer.tick = lambda done: self.tick(done, len(rows))
            scores.update(zip(fitting, scorer.score([rows[place] for place in fitting]), strict=True))
        for place, row in enumerate(rows):
            if place not in scores:
                scores[place] = PrefixScorer(self.task.backbone).score_single(*row)
                self.tick(len(scores), len(rows))
        return [scores[place] for place in range(len(rows))]


class Benchmark:
    """A benchmark.

    Attributes:
        name: name on the command line and in the record.
    """

    name: str = ""

    def check(self, task: FineTuner, data: LightningDataModule, options: Options) -> None:
        """Check, before training, that the benchmark can run.

        Raises:
            UserError: the benchmark does not fit the task, or a file or package is missing.
        """

    def run(self, live: Live) -> Result:
        """Evaluate the model: in evaluation mode, without gradients; random states are restored afterwards."""
        raise NotImplementedError
