"""Text classification with any sequence-classification model of transformers."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModelForSequenceClassification

from litpeft.errors import UserError
from litpeft.tasks.base import Batch, FineTuner
from litpeft.tasks.head_labels import match_head_labels
from litpeft.tasks.pretrained import check_base, initialise_new_parameters, load_pretrained


class SequenceClassification(FineTuner):
    """Fine-tunes a model with a classification head; the number and names of the labels come from the data.

    A head in the model's file is kept if it has as many labels; its rows are matched with the data's labels by name.

    Metrics: cross-entropy, accuracy (share of correct rows) and macro F1 (mean of the F1 scores of the classes).

    Args:
        class_weights: weights of the classes in the training loss, in the order of the labels; `balanced`: a class with
            n of N training rows and C classes weighs N / (C n). Validation losses have no weights.
        label_smoothing: share of each label that is spread over all classes in the training loss.
        options: model, adapter, optimizer and the other options of `FineTuner`.
    """

    monitor = ("val_accuracy", "max")
    head_labels: dict[str, Any] | None = None  # how the labels of a pretrained head match those of the data

    def __init__(
        self,
        *common: Any,
        class_weights: Literal["balanced"] | list[float] | None = None,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*common, **options)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing must be at least 0 and below 1, got {label_smoothing}.")
        if isinstance(class_weights, list) and not all(weight >= 0 for weight in class_weights):
            raise UserError(f"model.class_weights must not be negative, got {class_weights}.")
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self.input_names = ("input_ids", "attention_mask")  # names of the model's arguments
        self._weights: Tensor | None = None  # (classes), fp32

    def setup(self, stage: str) -> None:
        classes = len(self.trainer.datamodule.label_names)
        scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "f1": MulticlassF1Score(classes, average="macro"),
            }
        )
        # not Lightning's own mean, which rounds the number of rows
        self.losses = nn.ModuleDict({kind: MeanMetric() for kind in ("val", "test")})
        self.scores = nn.ModuleDict({kind: scores.clone(prefix=f"{kind}_") for kind in ("val", "test")})

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        names = data.label_names
        model, new, mismatched = load_pretrained(
            AutoModelForSequenceClassification,
            self.model_name,
            data,
            dtype,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            resize_embeddings=self.resize_embeddings,
            ignore_mismatched_sizes=True,  # a head with another number of labels is replaced
            **options,
        )
        if model.config.pad_token_id is None:  # decoder models classify at the last token before the padding
            model.config.pad_token_id = data.tokenizer.pad_token_id
        base = model.base_model_prefix
        head = [name for name, child in model.named_children() if name != base and list(child.parameters())]
        check_base(self.model_name, model, head, new, mismatched)
        initialise_new_parameters(model, new)
        self.head_labels = match_head_labels(model, head, new, self.model_name, names)
        if _takes_token_types(model):
            self.input_names = ("input_ids", "attention_mask", "token_type_ids")
        self._weights = self._class_weights(data)
        return model, head, new

    def _class_weights(self, data: LightningDataModule) -> Tensor | None:
        """Return the weights of the classes, (classes); None without weights, or for data without training rows."""
        streamed = getattr(data, "streaming", False)
        if self.class_weights is None or ("train" not in getattr(data, "rows", ()) and not streamed):
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

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        rows, width = batch["input_ids"].shape
        return {"samples": rows, "tokens": batch["attention_mask"].sum(), "padded": rows * width, "trained": rows}

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, (B, classes) fp32."""
        with self.autocast():
            return self.backbone(**{name: batch[name] for name in self.input_names if name in batch}).logits.float()

    def loss(self, batch: Batch) -> Tensor:
        logits = self(batch)
        weights = None if self._weights is None else self._weights.to(logits.device)
        return F.cross_entropy(logits, batch["labels"], weights, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        logits = self._evaluate(batch, "val")
        if not self.return_row_results:
            return None
        labels = batch["labels"]
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "correct": (logits.argmax(-1) == labels).int(),
        }

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> Tensor:
        logits = self(batch)
        rows = len(batch["labels"])
        self.losses[stage].update(F.cross_entropy(logits, batch["labels"]), rows)
        self.log(f"{stage}_loss", self.losses[stage], batch_size=rows)
        self.scores[stage].update(logits, batch["labels"])
        self.log_dict(self.scores[stage], batch_size=rows, prog_bar=True)
        return logits

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Return one dict per row: its number in the file, the most likely label, and all probabilities."""
        names = self.trainer.datamodule.label_names
        probabilities = self(batch).softmax(dim=-1).tolist()
        return [
            {
                "row": row,
                "label": names[max(range(len(p)), key=p.__getitem__)],
                "probabilities": dict(zip(names, p, strict=True)),
            }
            for row, p in zip(batch["row"].tolist(), probabilities, strict=True)
        ]


def _takes_token_types(model: nn.Module) -> bool:
    """Return whether a model has embeddings for the first and the second text of a pair, as BERT has."""
    types = getattr(model.config, "type_vocab_size", 2)
    return "token_type_ids" in inspect.signature(model.forward).parameters and types > 1
