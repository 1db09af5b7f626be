"""What a benchmark is: something measured of a model as it stands, in the middle of its training or after it.

To add one: derive from `Benchmark` in a file of its own, give it a name, implement `run`, import it in `__init__.py`.
A minimal one:

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
    """How to measure; see `BenchmarkEvaluation`, whose arguments these are."""

    tasks: Sequence[str] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    data_dir: str | None = None
    text_file: str | None = None
    max_seconds: float | None = None


@dataclass
class Result:
    """What came out.

    Attributes:
        scores: by the name of the metric.
        standard_errors: of these, over items; one that is not known is absent.
        items: how many were asked.
        num_fewshot: examples before each; None where there is no such thing.
        fingerprint: of the items as they were asked, prompts and answers; only results with the same one are
            comparable.
        tasks: of a group, those that it is made of.
        per_item: what each item gave, in their order, by the name of the metric whose mean it is.
    """

    scores: dict[str, float]
    items: int
    standard_errors: dict[str, float] = field(default_factory=dict)
    num_fewshot: int | None = None
    fingerprint: str | None = None
    tasks: list[str] = field(default_factory=list)
    per_item: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Live:
    """A model as it stands, for one evaluation: whatever is worked out of it is forgotten with it.

    Attributes:
        task: its weights do not change meanwhile.
        data: what it is trained on.
        options: how to measure.
        tick: called with how many of how many rows are done; what it raises ends the benchmark.
        warnings: sentences that the user should see.
    """

    task: FineTuner
    data: LightningDataModule
    options: Options
    tick: Callable[[int, int], None]
    warnings: list[str] = field(default_factory=list)
    memory: dict[Any, Any] = field(default_factory=dict)  # what benchmarks share

    def scorer(self, rows: Sequence[Row]) -> PrefixScorer | None:
        """What scores rows of this model by their common beginnings; None where it is no model for that."""
        if "scorer" not in self.memory:
            found = PrefixScorer(self.task.backbone)
            if not found.agrees(rows):
                kind = type(self.task.backbone).__name__
                self.warnings.append(f"{kind} cannot have common beginnings computed once: benchmarks take their time.")
                found = None
            self.memory["scorer"] = found
        return self.memory["scorer"]

    def score(self, rows: Sequence[Row]) -> list[Score]:
        """Log-likelihoods of continuations (litpeft/benchmarks/scorer.py)."""
        scorer, scores = self.scorer(rows), dict[int, Score]()  # by place
        fitting = [place for place, row in enumerate(rows) if scorer is not None and scorer.takes(row)]
        if fitting:
            scorer.tick = lambda done: self.tick(done, len(rows))
            scores.update(zip(fitting, scorer.score([rows[place] for place in fitting]), strict=True))
        for place, row in enumerate(rows):
            if place not in scores:
                scores[place] = PrefixScorer(self.task.backbone).alone(*row)
                self.tick(len(scores), len(rows))
        return [scores[place] for place in range(len(rows))]


class Benchmark:
    """One line of results.

    Attributes:
        name: by which it is asked for, and told of in the record.
    """

    name: str = ""

    def check(self, task: FineTuner, data: LightningDataModule, options: Options) -> None:
        """Whether it can be run at all, asked before anything is trained.

        Raises:
            UserError: the task is of another kind, or something that is needed is not there.
        """

    def run(self, live: Live) -> Result:
        """Measure; the model is in evaluation mode, no gradients are kept, and random numbers are put back after."""
        raise NotImplementedError
