"""Metrics of torchmetrics, chosen by name or by the path of their class."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, classification, regression
from torchmetrics.utilities.data import dim_zero_cat

from litpeft.errors import UserError, did_you_mean, first_sentence

Better = Literal["higher", "lower"]
MetricInputs = Mapping[str, tuple[Tensor, Tensor]]  # `Chosen.uses` -> predictions and targets of a batch
PREFIX = re.compile(r"^(Multiclass|Multilabel|Binary)(?=[A-Z])")
SIZES = ("num_classes", "num_labels", "num_outputs")  # arguments of metrics that are the number of outputs
RESERVED = ("loss", "step", "examples")  # val_NAME has another meaning in the record
KEYS = ("class_path", "init_args", "name", "better")


@dataclass(frozen=True)
class Known:
    """A metric that has a name of its own.

    Attributes:
        build: returns the metric for a number of outputs.
        uses: which predictions it is computed from; see `metric_inputs` of the task.
        better: better direction.
    """

    build: Callable[[int], Metric]
    uses: str
    better: Better = "higher"


@dataclass(frozen=True)
class Chosen:
    """A metric of a task: its name, what it is computed from, and its better direction; None if it has none."""

    name: str
    metric: Metric
    uses: str
    better: Better | None


class Matthews(classification.MulticlassConfusionMatrix):
    """Matthews' correlation (Gorodkin 2004, equation 8); 0 where it is undefined, as scikit-learn and GLUE have it.

    torchmetrics returns other numbers if all predictions are one class.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes)

    def compute(self) -> Tensor:
        counts = self.confmat.double()  # (classes, classes): true by predicted
        true, predicted, rows = counts.sum(dim=1), counts.sum(dim=0), counts.sum()
        covariance = counts.trace() * rows - true @ predicted
        variances = (rows**2 - true @ true) * (rows**2 - predicted @ predicted)
        return torch.where(variances > 0, covariance / variances.clamp_min(1).sqrt(), 0.0).float()


def _mean_of(compute: Callable[[], Tensor], defined: Tensor) -> Tensor:
    """Return the mean of the computed values (n) that are defined (n bool); NaN if none is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the values that are left out
        return compute()[defined].mean()


class MeanAveragePrecision(classification.MultilabelAveragePrecision):
    """The mean of the labels' average precision; labels that no row has are left out, because theirs is undefined.

    Args:
        labels: number of labels.
    """

    def __init__(self, labels: int) -> None:
        super().__init__(labels, average="none")

    def compute(self) -> Tensor:
        present = (dim_zero_cat(self.target) == 1).any(dim=0)
        return _mean_of(super().compute, present)


class BalancedAccuracy(classification.MulticlassAccuracy):
    """The mean of the classes' recall; classes that no row has are left out, because theirs is undefined.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:
        found, _, _, missed = self._final_state()
        rows = found + missed
        return (found / rows)[rows > 0].mean()


class ClassAUROC(classification.MulticlassAUROC):
    """The mean of the classes' areas under the ROC curve, each against the others.

    Classes that no row or every row has are left out, because theirs is undefined; NaN if no class is left.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:
        counts = dim_zero_cat(self.target).bincount(minlength=self.num_classes)
        return _mean_of(super().compute, (counts > 0) & (counts < counts.sum()))


class LabelAUROC(classification.MultilabelAUROC):
    """The mean of the labels' areas under the ROC curve.

    Labels that no row or every row has are left out, because theirs is undefined; NaN if no label is left.

    Args:
        labels: number of labels.
    """

    def __init__(self, labels: int) -> None:
        super().__init__(labels, average="none")

    def compute(self) -> Tensor:
        has = dim_zero_cat(self.target) == 1
        return _mean_of(super().compute, has.any(dim=0) & ~has.all(dim=0))


class R2(regression.R2Score):
    """The coefficient of determination; NaN for one row, where it is undefined."""

    def compute(self) -> Tensor:
        return super().compute() if self.total > 1 else torch.tensor(math.nan, device=self.device)


CLASSES = {
    "accuracy": Known(lambda n: classification.MulticlassAccuracy(n, average="micro"), "logits"),
    "f1": Known(lambda n: classification.MulticlassF1Score(n, average="macro"), "logits"),
    "binary_f1": Known(lambda n: classification.BinaryF1Score(), "second_class"),
    "balanced_accuracy": Known(lambda n: BalancedAccuracy(n), "logits"),
    "precision": Known(lambda n: classification.MulticlassPrecision(n, average="macro"), "logits"),
    "recall": Known(lambda n: classification.MulticlassRecall(n, average="macro"), "logits"),
    "matthews": Known(lambda n: Matthews(n), "logits"),
    "kappa": Known(lambda n: classification.MulticlassCohenKappa(n), "logits"),
    "auroc": Known(lambda n: ClassAUROC(n), "probabilities"),
    "ece": Known(lambda n: classification.MulticlassCalibrationError(n, n_bins=15), "probabilities", "lower"),
}
LABEL_SETS = {
    "micro_f1": Known(lambda n: classification.MultilabelF1Score(n, average="micro"), "predicted"),
    "macro_f1": Known(lambda n: classification.MultilabelF1Score(n, average="macro"), "predicted"),
    "map": Known(lambda n: MeanAveragePrecision(n), "probabilities"),
    "exact_match": Known(lambda n: classification.MultilabelExactMatch(n), "predicted"),
    "auroc": Known(lambda n: LabelAUROC(n), "probabilities"),
}
NUMBERS = {  # of one target
    "pearson": Known(lambda n: regression.PearsonCorrCoef(), "centred"),
    "spearman": Known(lambda n: regression.SpearmanCorrCoef(), "centred"),
    "rmse": Known(lambda n: regression.MeanSquaredError(squared=False), "centred", "lower"),
    "mae": Known(lambda n: regression.MeanAbsoluteError(), "centred", "lower"),
    "r2": Known(lambda n: R2(), "centred"),
}


class OverTargets(Metric):
    """The mean of a metric over the targets of a regression.

    Args:
        metric: the metric of one target.
        targets: number of targets.
    """

    full_state_update = False

    def __init__(self, metric: Metric, targets: int) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(copy.deepcopy(metric) for _ in range(targets))

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch; both are (B, targets)."""
        for number, part in enumerate(self.parts):
            part.update(predictions[:, number], targets[:, number])

    def compute(self) -> Tensor:
        return torch.stack([part.compute().float() for part in self.parts]).mean()

    def reset(self) -> None:
        super().reset()
        for part in self.parts:
            part.reset()


def choose_metrics(
    given: Sequence[str | Mapping[str, Any]], known: Mapping[str, Known], outputs: int, uses: str
) -> list[Chosen]:
    """Return the metrics that are named, in their order.

    Args:
        given: names, class paths, or mappings with `class_path` and optionally `init_args`, `name` and `better`.
        known: the metrics of the task by name.
        outputs: number of classes, labels or targets.
        uses: the predictions that a metric given by its class path gets; a `Binary` metric gets those of class 1.

    Raises:
        UserError: a name is unknown, a class cannot be created, or two metrics have the same name.
    """
    chosen = []
    for each in given:
        if isinstance(each, str) and "." not in each:
            if each not in known:
                raise UserError(
                    f"model.metrics {each}: unknown name{did_you_mean(each, known)}; give {', '.join(known)}, or the "
                    "path of a class, such as torchmetrics.classification.MulticlassAUROC."
                )
            found = known[each]
            chosen.append(Chosen(each, found.build(outputs), found.uses, found.better))
        else:
            chosen.append(_from_path(each, outputs, uses))
            if (name := chosen[-1].name) in known:  # the record defines val_accuracy and val_f1
                raise UserError(
                    f"model.metrics {each}: {name} is the name of another metric; give a mapping with class_path and "
                    "another name."
                )
    names = [each.name for each in chosen]
    if twice := next((name for name in names if names.count(name) > 1 or name in RESERVED), None):
        raise UserError(f"model.metrics: {twice} is taken; give a mapping with class_path and another name.")
    return chosen


def _from_path(given: str | Mapping[str, Any], outputs: int, uses: str) -> Chosen:
    """Return a metric given by the path of its class; numbers of classes, labels and outputs are filled in."""
    settings = {"class_path": given} if isinstance(given, str) else dict(given)
    path = settings.get("class_path")
    if not isinstance(path, str) or settings.keys() - set(KEYS):
        raise UserError(f"model.metrics {given}: give a name, a class path, or a mapping with {', '.join(KEYS)}.")
    module, _, class_name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model.metrics {path}: there is no such class.") from error
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise UserError(f"model.metrics {path}: it is no torchmetrics.Metric.")
    own = kind.__new__ if "task" in inspect.signature(kind.__new__).parameters else kind.__init__
    takes = inspect.signature(own).parameters
    arguments = {name: outputs for name in SIZES[:2] if name in takes}
    arguments |= {"task": "multilabel" if uses == "label_probabilities" else "multiclass"} if "task" in takes else {}
    try:
        metric = kind(**arguments | dict(settings.get("init_args") or {}))
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"model.metrics {path}: {first_sentence(error)}") from error
    better = settings.get("better") or {True: "higher", False: "lower", None: None}[metric.higher_is_better]
    if better not in ("higher", "lower", None):
        raise UserError(f"model.metrics {path}: better must be higher or lower, got {better!r}.")
    if class_name.startswith("Binary") and uses == "probabilities":
        uses = "second_class"
    name = str(settings.get("name") or _snake(PREFIX.sub("", class_name)))
    return Chosen(re.sub(r"\W+", "_", name), metric, uses, better)


def _snake(name: str) -> str:
    """Return a class name in snake case: `CohenKappa` -> `cohen_kappa`, `AUROC` -> `auroc`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def check_metrics(chosen: Sequence[Chosen], example: MetricInputs) -> None:
    """Compute each metric on a made-up batch, so that a mistake is reported before training.

    Raises:
        UserError: a metric cannot be computed, or its result is not a single number.
    """
    for each in chosen:
        metric = copy.deepcopy(each.metric)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a made-up batch may lack a class
                metric.update(*example[each.uses])
                result = metric.compute()
        except Exception as error:  # metrics raise errors of many kinds
            raise UserError(f"model.metrics {each.name}: it cannot be computed: {first_sentence(error)}") from error
        if not isinstance(result, Tensor) or result.numel() != 1:
            size = f"{result.numel()} numbers" if isinstance(result, Tensor) else type(result).__name__
            raise UserError(f"model.metrics {each.name}: its result is {size}; it must be a single number.")
