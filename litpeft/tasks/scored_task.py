"""Base class of the tasks whose rows have labels: the mean loss and metrics of the validation and test rows."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor, nn

from litpeft.errors import UserError, first_sentence
from litpeft.tasks.base import Batch, FineTuner
from litpeft.tasks.losses import new_mean_loss
from litpeft.tasks.metrics import Chosen, Known, MetricInputs, check_metrics, choose_metrics

MADE_UP_ROWS = 8  # rows of the batch on which the metrics are tried before training


class ScoredTask(FineTuner):
    """A task with a mean loss and metrics; derive from it with `mean_loss`, `row_losses` and `metric_inputs`.

    Args:
        metrics: metrics of the validation and test rows: names, paths of torchmetrics classes, or mappings with
            `class_path`, `init_args`, `name` and `better` (higher or lower). The first one is the main metric, which
            selects the best checkpoint. By default those of the data set (GLUE), else those of the task.
        options: model, adapter, optimizer and the other options of `FineTuner`.

    Attributes:
        main_metrics: names in the record of the metrics whose mean is the score of the run.
        metric_directions: whether higher or lower values are better, by name of the metric without `val_`.
    """

    label_kind: Literal["class", "number", "set"]  # of the data sets that this task can learn
    default_metrics: Sequence[str] = ()
    known_metrics: Mapping[str, Known] = {}
    metrics_from_path_use = "probabilities"  # the predictions that a metric given by its class path gets

    def __init__(self, *common: Any, metrics: list[str | dict[str, Any]] | None = None, **options: Any) -> None:
        super().__init__(*common, **options)
        if metrics is not None and not metrics:
            raise UserError("model.metrics must name at least one metric; leave it out for those of the task.")
        self.metrics = metrics
        self.main_metrics, self.metric_directions = list[str](), dict[str, str]()

    def mean_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch in evaluation, a scalar, without weights."""
        raise NotImplementedError

    def row_losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the results of each row in evaluation: `loss`, (B,), and for a classifier `correct`, (B,) int.

        A classifier also returns `label`, `prediction` and its `probability`, each (B,).
        """
        raise NotImplementedError

    def metric_inputs(self, outputs: Tensor, labels: Tensor) -> MetricInputs:
        """Return the predictions and targets that metrics are computed from, by `Chosen.uses`."""
        raise NotImplementedError

    def choose(self, given: Sequence[Any], names: Sequence[str]) -> list[Chosen]:
        """Return the metrics for outputs with these names; `given` as in `model.metrics`."""
        return choose_metrics(given, self.known_metrics, len(names), self.metrics_from_path_use)

    def made_up_labels(self, rows: int, outputs: int) -> Tensor:
        """Return labels of made-up rows."""
        return torch.arange(rows) % outputs

    def check_labels(self, data: LightningDataModule) -> None:
        """Raise a UserError if the data set has labels of another kind, which another task learns."""
        kind = getattr(getattr(data, "labels", None), "kind", None)
        if kind not in (None, self.label_kind):
            tasks = {"class": "SequenceClassification", "number": "SequenceRegression", "set": "SequenceMultiLabel"}
            named = {
                "class": "one class per row",
                "number": "numbers as targets",
                "set": "any number of labels per row",
            }
            raise UserError(
                f"model {type(self).__name__} cannot learn from data {type(data).__name__}, which has {named[kind]}; "
                f"give --model {tasks[kind]}."
            )

    def setup(self, stage: str) -> None:
        data = self.data
        self.check_labels(data)
        given = self.metrics or getattr(data, "metrics", None) or self.default_metrics
        official = 1 if self.metrics else getattr(data, "official_metrics", 1)
        names = data.label_names
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Metric `.*` will save all targets")  # a number or two per row
            chosen = self.choose(given, names)
        labels = self.made_up_labels(MADE_UP_ROWS, len(names))
        outputs = torch.rand(MADE_UP_ROWS, len(names), generator=torch.Generator().manual_seed(0))
        check_metrics(chosen, self.metric_inputs(outputs, labels))
        self._uses = {each.name: each.uses for each in chosen}
        self.main_metrics = [f"val_{each.name}" for each in chosen[:official]]
        self.metric_directions = {each.name: each.better for each in chosen if each.better}
        self.monitor = (self.main_metrics[0], "min" if chosen[0].better == "lower" else "max")
        # not Lightning's own mean, which rounds the number of rows
        self.losses = nn.ModuleDict({kind: new_mean_loss() for kind in ("val", "test")})
        self.scores = nn.ModuleDict(
            {kind: nn.ModuleDict({each.name: each.metric.clone() for each in chosen}) for kind in ("val", "test")}
        )
        for kind, metrics in self.scores.items():
            for name, metric in metrics.items():
                metric.compute = _naming(metric.compute, f"model.metrics {name}: {kind}_{name}")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        outputs = self.evaluate(batch, "val")
        return self.row_losses(outputs, batch) if self.return_row_results else None

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, "test")

    def evaluate(self, batch: Batch, stage: Literal["val", "test"]) -> Tensor:
        """Add a batch to the loss and the metrics of a stage; return the outputs of the model."""
        outputs = self(batch)
        rows = len(batch["labels"])
        self.losses[stage].update(self.mean_loss(outputs, batch), rows)
        # with their places: Lightning keeps those of a run that failed, and `setup` makes other metrics
        self.log(f"{stage}_loss", self.losses[stage], batch_size=rows, metric_attribute=f"losses.{stage}")
        inputs = self.metric_inputs(outputs, batch["labels"])
        for name, metric in self.scores[stage].items():
            metric.update(*inputs[self._uses[name]])
            place = f"scores.{stage}.{name}"
            self.log(f"{stage}_{name}", metric, batch_size=rows, prog_bar=True, metric_attribute=place)
        return outputs


def _naming(compute: Callable[[], Tensor], name: str) -> Callable[[], Tensor]:
    """Return a metric's `compute` whose error is a UserError that starts with `name`; few rows are the usual reason."""

    @functools.wraps(compute)
    def computed() -> Tensor:
        try:
            return compute()
        except (ValueError, TypeError, ArithmeticError) as error:  # a RuntimeError may be that of another process
            raise UserError(f"{name} cannot be computed on these rows: {first_sentence(error)}") from error

    return computed
