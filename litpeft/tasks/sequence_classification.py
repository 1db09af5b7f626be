"""Text classification with any sequence-classification model of transformers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from litpeft.errors import UserError, check_choices
from litpeft.tasks.base import Batch
from litpeft.tasks.data_of_task import PlainData, with_rows
from litpeft.tasks.metrics import CLASSES, Chosen, MetricInputs
from litpeft.tasks.sequence_task import SequenceTask

MOST_CONFUSED = 50  # classes up to which the confusion matrix is kept


class SequenceClassification(SequenceTask):
    """Fine-tunes a model with a classification head; the number and names of the labels come from the data.

    A head in the model's file is kept if it has as many labels; its rows are matched with the data's labels by name.

    Metrics by default: cross-entropy, accuracy (share of correct rows) and macro F1 (mean of the F1 scores of the
    classes). Others are `matthews`, `binary_f1` (F1 of the second of two classes), `balanced_accuracy`, `precision`,
    `recall`, `kappa`, `auroc` and `ece`. The confusion matrix is kept for up to fifty classes.

    Args:
        class_weights: weights of the classes in the training loss, in the order of the labels; `balanced`: a class with
            n of N training rows and C classes weighs N / (C n). Validation losses have no weights.
        label_smoothing: share of each label that is spread over all classes in the training loss.
        options: metrics, model, adapter, optimizer and the other options of `ScoredTask` and `FineTuner`.
    """

    monitor = ("val_accuracy", "max")
    label_kind, problem_type = "class", "single_label_classification"
    default_metrics, known_metrics = ("accuracy", "f1"), CLASSES

    def __init__(
        self,
        *common: Any,
        class_weights: Literal["balanced"] | list[float] | None = None,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        check_choices("model", SequenceClassification.__init__, locals())
        super().__init__(*common, **options)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing must be at least 0 and below 1, got {label_smoothing}.")
        if isinstance(class_weights, list) and not all(weight >= 0 for weight in class_weights):
            raise UserError(f"model.class_weights must not be negative, got {class_weights}.")
        if isinstance(class_weights, list) and not any(class_weights):
            raise UserError("model.class_weights must have a weight above 0, or nothing is learned.")
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self._weights: Tensor | None = None  # (classes), fp32
        self.confusion: MulticlassConfusionMatrix | None = None  # of the validation rows

    def setup(self, stage: str) -> None:
        super().setup(stage)
        classes = len(self.data.label_names)
        self.confusion = MulticlassConfusionMatrix(classes) if classes <= MOST_CONFUSED else None

    def choose(self, given: Any, names: Any) -> list[Chosen]:
        chosen = super().choose(given, names)
        if len(names) != 2 and (binary := [each.name for each in chosen if each.uses == "second_class"]):
            raise UserError(f"model.metrics {binary[0]} is for two classes, and the data has {len(names)}.")
        return chosen

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        found = super().load(data, dtype, **options)
        self._weights = self._class_weights(data)
        return found

    def _class_weights(self, data: LightningDataModule) -> Tensor | None:
        """Return the weights of the classes, (classes); None without weights, or for data without training rows."""
        counts_rows = getattr(data, "streaming", False) or isinstance(data, PlainData)
        if self.class_weights is None or ("train" not in getattr(data, "rows", ()) and not counts_rows):
            return None
        if self.class_weights == "balanced":
            counts = torch.tensor(list(data.class_counts("train").values()), dtype=torch.float32)
            return counts.sum() / (len(counts) * counts.clamp_min(1))
        if len(self.class_weights) != len(data.label_names):
            raise UserError(
                f"model.class_weights has {len(self.class_weights)} weights for {len(data.label_names)} classes "
                f"({', '.join(data.label_names)})."
            )
        return torch.tensor(self.class_weights, dtype=torch.float32)

    def example(self, rows: int, tokens: int) -> Batch:
        return super().example(rows, tokens) | {"labels": torch.zeros(rows, dtype=torch.int64)}

    def loss(self, batch: Batch) -> Tensor:
        logits = self(batch)
        weights, labels = None if self._weights is None else self._weights.to(logits.device), batch["labels"]
        if self._weights is None or self._weights.all():
            return F.cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing)
        total = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=self.label_smoothing)
        row_weights = weights[labels].sum()
        return total / torch.where(row_weights > 0, row_weights, 1.0)  # 0 / 0 if all rows have weight 0

    def mean_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs, batch["labels"])

    def row_losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        labels = batch["labels"]
        prediction = outputs.argmax(dim=-1)
        probability = outputs.softmax(dim=-1).gather(1, prediction[:, None])[:, 0]
        return {
            "loss": F.cross_entropy(outputs, labels, reduction="none"),
            "correct": (prediction == labels).int(),
            **{"label": labels, "prediction": prediction, "probability": probability},
        }

    def metric_inputs(self, outputs: Tensor, labels: Tensor) -> MetricInputs:
        """Return logits (B, classes), probabilities (B, classes) and the probability of the second class (B,)."""
        probabilities = outputs.softmax(dim=-1)
        found = {"logits": (outputs, labels), "probabilities": (probabilities, labels)}
        return found | {"second_class": (probabilities[:, 1], labels)}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        outputs = self.evaluate(batch, "val")
        if self.confusion is not None:
            self.confusion.update(outputs, batch["labels"])
        return self.row_losses(outputs, batch) if self.return_row_results else None

    def on_validation_epoch_start(self) -> None:
        if self.confusion is not None:
            self.confusion.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Return one dict per row: its number in the file, the most likely label, and all probabilities."""
        names, probabilities = self.data.label_names, self(batch).softmax(dim=-1).tolist()
        found = [
            {
                "label": names[max(range(len(p)), key=p.__getitem__)],
                "probabilities": dict(zip(names, p, strict=True)),
            }
            for p in probabilities
        ]
        return with_rows(batch, found)
