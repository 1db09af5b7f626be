"""Text classification with any sequence-classification model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModelForSequenceClassification

from litpeft.tasks.base import Batch, FineTuner
from litpeft.tasks.head_labels import match_head_labels
from litpeft.tasks.pretrained import check_base, initialise_new_parameters, load_pretrained


class SequenceClassification(FineTuner):
    """Fine-tunes a model with a classification head; the number and names of the labels come from the data.

    A head in the model's file is kept if it has as many labels; its rows are matched with the data's labels by name.

    Metrics: cross-entropy, accuracy (share of correct rows) and macro F1 (mean of the F1 scores of the classes).
    """

    monitor = ("val_accuracy", "max")
    head_labels: dict[str, Any] | None = None  # how the labels of a pretrained head match those of the data

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
        return model, head, new

    def example(self, rows: int, tokens: int) -> Batch:
        return super().example(rows, tokens) | {"labels": torch.zeros(rows, dtype=torch.int64)}

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        rows, width = batch["input_ids"].shape
        return {"samples": rows, "tokens": batch["attention_mask"].sum(), "padded": rows * width, "trained": rows}

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, (B, classes) fp32."""
        with self.autocast():
            return self.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self(batch), batch["labels"])

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
