"""Classification of texts into any number of labels, with any sequence-classification model of transformers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.errors import UserError, check_choices
from litpeft.tasks.base import Batch
from litpeft.tasks.data_of_task import PlainData, with_rows
from litpeft.tasks.metrics import LABEL_SETS, MetricInputs
from litpeft.tasks.sequence_task import SequenceTask


class SequenceMultiLabel(SequenceTask):
    """Fine-tunes a model that says of each label whether a text has it (multi-label classification).

    The loss is the binary cross-entropy, the mean over labels and rows. Metrics by default: micro F1 (of all decisions
    together), macro F1 (mean of the F1 of the labels) and `map`, the mean of the labels' average precision; labels that
    no row has are left out of `map`. Others are `exact_match`, and `auroc`, which leaves them out too.

    Args:
        threshold: probability from which a text has a label: one for all, or one per label. It is used for the metrics
            and predictions, and kept in the record and in the config.json of an export.
        positive_weights: weight of the rows that have a label in the training loss, one per label; `balanced`: rows
            without it / rows with it. Validation losses have no weights.
        options: metrics, model, adapter, optimizer and the other options of `ScoredTask` and `FineTuner`.
    """

    monitor = ("val_micro_f1", "max")
    label_kind, problem_type = "set", "multi_label_classification"
    default_metrics, known_metrics = ("micro_f1", "macro_f1", "map"), LABEL_SETS
    metrics_from_path_use = "label_probabilities"

    def __init__(
        self,
        *common: Any,
        threshold: float | list[float] = 0.5,
        positive_weights: Literal["balanced"] | list[float] | None = None,
        **options: Any,
    ) -> None:
        check_choices("model", SequenceMultiLabel.__init__, locals())
        super().__init__(*common, **options)
        thresholds = threshold if isinstance(threshold, list) else [threshold]
        if not thresholds or not all(0 < each < 1 for each in thresholds):
            raise UserError(f"model.threshold must be between 0 and 1, got {threshold}.")
        if isinstance(positive_weights, list) and not all(weight > 0 for weight in positive_weights):
            raise UserError(f"model.positive_weights must be positive, got {positive_weights}.")
        self.threshold, self.positive_weights = threshold, positive_weights
        self._weights: Tensor | None = None  # (labels), fp32

    def setup(self, stage: str) -> None:
        self.thresholds(self.data.label_names)
        super().setup(stage)

    def thresholds(self, names: list[str]) -> list[float]:
        """Return the threshold of each label.

        Raises:
            UserError: there are as many thresholds as no number of labels.
        """
        if not isinstance(self.threshold, list):
            return [self.threshold] * len(names)
        if len(self.threshold) != len(names):
            raise UserError(f"model.threshold has {len(self.threshold)} numbers for {len(names)} labels.")
        return self.threshold

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        found = super().load(data, dtype, **options)
        self._weights = self._positive_weights(data)
        return found

    def _positive_weights(self, data: LightningDataModule) -> Tensor | None:
        """Return the weights of the labels, (labels); None without weights, or for data without training rows."""
        has_rows = (
            "train" in getattr(data, "rows", ()) or getattr(data, "streaming", False) or isinstance(data, PlainData)
        )
        if self.positive_weights is None or not has_rows:
            return None
        if self.positive_weights == "balanced":
            counts = torch.tensor(list(data.class_counts("train").values()), dtype=torch.float32)
            return (len(data.rows["train"]) - counts).clamp_min(1) / counts.clamp_min(1)
        if len(self.positive_weights) != len(data.label_names):
            raise UserError(
                f"model.positive_weights has {len(self.positive_weights)} weights for {len(data.label_names)} labels."
            )
        return torch.tensor(self.positive_weights, dtype=torch.float32)

    def exported_settings(self, data: LightningDataModule) -> dict[str, Any]:
        """Return the probability from which a text has a label, by label."""
        return {"thresholds": dict(zip(data.label_names, self.thresholds(data.label_names), strict=True))}

    def made_up_labels(self, rows: int, outputs: int) -> Tensor:
        return (torch.arange(rows * outputs).reshape(rows, outputs) % 3 > 0).long()

    def example(self, rows: int, tokens: int) -> Batch:
        return super().example(rows, tokens) | {"labels": torch.zeros(rows, self.outputs, dtype=torch.int64)}

    def loss(self, batch: Batch) -> Tensor:
        logits = self(batch)
        weights = None if self._weights is None else self._weights.to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, batch["labels"].float(), pos_weight=weights)

    def mean_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, batch["labels"].float())

    def row_losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = F.binary_cross_entropy_with_logits(outputs, batch["labels"].float(), reduction="none")
        return {"loss": losses.mean(dim=-1)}

    def metric_inputs(self, outputs: Tensor, labels: Tensor) -> MetricInputs:
        """Return the probabilities of the labels and what is predicted from them, (B, labels)."""
        probabilities = outputs.sigmoid()
        least = torch.tensor(self.thresholds(["?"] * outputs.shape[1]), device=outputs.device)
        pair = probabilities, labels
        return {
            "probabilities": pair,
            "label_probabilities": pair,
            "predicted": ((probabilities >= least).int(), labels),
        }

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Return one dict per row: its number in the file, the labels from the threshold on, and all probabilities."""
        names = self.data.label_names
        least, probabilities = self.thresholds(names), self(batch).sigmoid().tolist()
        rows = [
            {
                "labels": [name for name, p, limit in zip(names, found, least, strict=True) if p >= limit],
                "probabilities": dict(zip(names, found, strict=True)),
            }
            for found in probabilities
        ]
        return with_rows(batch, rows)
