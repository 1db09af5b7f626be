"""Regression on texts with any sequence-classification model of transformers."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.errors import check_choices
from litpeft.tasks.base import Batch
from litpeft.tasks.data_of_task import with_rows
from litpeft.tasks.head_labels import output_layer
from litpeft.tasks.metrics import NUMBERS, Chosen, MetricInputs, OverTargets, choose_metrics
from litpeft.tasks.sequence_task import SequenceTask
from litpeft.training import processes

WITHOUT_UNIT = ("pearson", "spearman", "r2")  # metrics that can be averaged over targets of different units
MOST_LOST = 0.02  # rounding of the mean in an exported bias, as a share of the standard deviation
LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}


class SequenceRegression(SequenceTask):
    """Fine-tunes a model with a head of one or several numbers per text.

    The model learns (target - mean) / deviation, with the mean and the standard deviation of the training rows; the
    losses are of these standardised targets. Metrics and predictions are in the targets' own unit.

    Metrics by default: Pearson's and Spearman's correlation and the root mean squared error. Others are `mae` and `r2`.
    With several targets, each has its metrics (`val_rmse_NAME`), and metrics without a unit also have their mean.

    Args:
        loss: `mse`, the mean squared error, or `l1`, the mean absolute error.
        options: metrics, model, adapter, optimizer and the other options of `ScoredTask` and `FineTuner`.
    """

    monitor = ("val_pearson", "max")
    label_kind, problem_type = "number", "regression"
    default_metrics, known_metrics = ("pearson", "spearman", "rmse"), NUMBERS
    metrics_from_path_use = "values"

    def __init__(self, *common: Any, loss: Literal["mse", "l1"] = "mse", **options: Any) -> None:
        check_choices("model", SequenceRegression.__init__, locals())
        super().__init__(*common, **options)
        self.loss_name = loss
        self.mean, self.deviation = [0.0], [1.0]  # of each target, in its unit

    def setup(self, stage: str) -> None:
        self.check_labels(self.data)
        self._standardise_as(self.data)
        super().setup(stage)

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        self.check_labels(data)
        self._standardise_as(data)
        model, head, new = super().load(data, dtype, **options)
        kept = all(name not in new for name, _ in model.named_parameters() if name.partition(".")[0] in head)
        if kept and model.device.type != "meta" and not processes.rank():
            print(
                f"litpeft: warning: model.model_name {self.model_name} has a head with {self.outputs} outputs already; "
                "it is kept, and learns standardised targets.",
                file=sys.stderr,
            )
        return model, head, new

    def _standardise_as(self, data: LightningDataModule) -> None:
        """Take mean and deviation from the data; targets of a data set without them are learned as they are."""
        labels, targets = getattr(data, "labels", None), len(data.label_names)
        self.mean = getattr(labels, "mean", None) or [0.0] * targets
        self.deviation = getattr(labels, "deviation", None) or [1.0] * targets

    def take_data(self, data: LightningDataModule) -> None:
        """Standardise as a run on these data did; it may have had other training rows than the run before."""
        self._standardise_as(data)

    def exported_settings(self, data: LightningDataModule) -> dict[str, Any]:
        """Return mean and deviation: value in the target's own unit = output x `target_deviation` + `target_mean`."""
        return {"target_mean": self.mean, "target_deviation": self.deviation}

    @torch.no_grad()
    def outputs_in_own_unit(self, model: nn.Module, dtype: torch.dtype, outputs: Tensor) -> tuple[Tensor, str]:
        """Fold mean and deviation into the output layer, if it has a bias that can hold the mean in `dtype`."""
        found = output_layer(model, self.head, len(self.mean))
        lost = [abs(mean) * torch.finfo(dtype).eps for mean in self.mean]  # rounding of the mean
        exact = all(loss <= MOST_LOST * sd for loss, sd in zip(lost, self.deviation, strict=True))
        if found is None or found[1].bias is None or not exact:
            return outputs, "value = output x target_deviation + target_mean, both in config.json"
        layer, values = found[1].float(), self.values(outputs).float()
        mean, deviation = (each.float() for each in self._scale(layer.weight))
        layer.weight.mul_(deviation[:, None])
        layer.bias.mul_(deviation).add_(mean)
        self.mean, self.deviation = [0.0] * len(self.mean), [1.0] * len(self.mean)
        return values, "its outputs are in the targets' own unit"

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation, (targets,) float64."""
        options = {"dtype": torch.float64, "device": like.device}
        return torch.tensor(self.mean, **options), torch.tensor(self.deviation, **options)

    def standardised(self, labels: Tensor) -> Tensor:
        """Return targets in their own unit, (B, targets), as the model learns them, fp32."""
        mean, deviation = self._scale(labels)
        # in float64, because a large mean would leave few digits of the difference in fp32
        return ((labels.double().reshape(len(labels), -1) - mean) / deviation).float()

    def values(self, outputs: Tensor) -> Tensor:
        """Return the outputs of the model, (B, targets), in the targets' own unit, float64."""
        mean, deviation = self._scale(outputs)
        return outputs.double() * deviation + mean

    def choose(self, given: Sequence[Any], names: Sequence[str]) -> list[Chosen]:
        """Return the metrics; with several targets, those of each target after their mean."""
        chosen = choose_metrics(given, self.known_metrics, len(names), self.metrics_from_path_use)
        if len(names) == 1:
            return chosen
        whole = [
            Chosen(each.name, OverTargets(each.metric, len(names)), f"all_{each.uses}", each.better)
            for each in chosen
            if each.name in WITHOUT_UNIT or each.uses == "values"
        ]
        suffixes = [re.sub(r"\W+", "_", name) for name in names]
        suffixes = suffixes if len(set(suffixes)) == len(names) else [str(number) for number in range(len(names))]
        single = [
            Chosen(f"{each.name}_{suffix}", each.metric.clone(), f"{each.uses}_{number}", each.better)
            for each in chosen
            for number, suffix in enumerate(suffixes)
            if each.uses == "centred"
        ]
        return [*whole, *single]

    def made_up_labels(self, rows: int, outputs: int) -> Tensor:
        return torch.rand(rows, outputs, generator=torch.Generator().manual_seed(1)) + torch.tensor(self.mean)

    def metric_inputs(self, outputs: Tensor, labels: Tensor) -> MetricInputs:
        """Return predictions and targets in their own unit: as they are, and `centred`, without the mean.

        Correlations and errors do not depend on the mean, and have more digits without it. With several targets, names
        that begin with `all_` are (B, targets), and those with a number at the end are (B,).
        """
        mean, deviation = self._scale(outputs)
        labels = labels.double().reshape(len(labels), -1)
        found = {
            "values": (self.values(outputs).float(), labels.float()),
            "centred": ((outputs.double() * deviation).float(), (labels - mean).float()),
        }
        if outputs.shape[1] == 1:
            return {name: (first[:, 0], second[:, 0]) for name, (first, second) in found.items()}
        single = {
            f"{name}_{number}": (first[:, number], second[:, number])
            for name, (first, second) in found.items()
            for number in range(outputs.shape[1])
        }
        return {f"all_{name}": pair for name, pair in found.items()} | single

    def example(self, rows: int, tokens: int) -> Batch:
        return super().example(rows, tokens) | {"labels": torch.zeros(rows, self.outputs, dtype=torch.float64)}

    def loss(self, batch: Batch) -> Tensor:
        return self.mean_loss(self(batch), batch)

    def mean_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return LOSSES[self.loss_name](outputs, self.standardised(batch["labels"]))

    def row_losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = LOSSES[self.loss_name](outputs, self.standardised(batch["labels"]), reduction="none")
        return {"loss": losses.mean(dim=-1)}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Return one dict per row: its number in the file, and the value of each target in its own unit."""
        names, values = self.data.label_names, self.values(self(batch)).tolist()
        return with_rows(batch, [{"values": dict(zip(names, found, strict=True))} for found in values])
