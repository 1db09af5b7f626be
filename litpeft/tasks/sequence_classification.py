"""One label for a text, by any sequence-classification model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModelForSequenceClassification

from litpeft.hub import asking_hub, local_or_hub
from litpeft.tasks.base import Batch, FineTuner


class SequenceClassification(FineTuner):
    """Fine-tune a model with a classification head; number and names of the labels come from the data.

    Measures cross-entropy, accuracy (share of rows that are right) and macro F1 (mean of the classes' F1).
    """

    monitor = ("val_accuracy", "max")

    def setup(self, stage: str) -> None:
        classes = len(self.trainer.datamodule.label_names)
        scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "f1": MulticlassF1Score(classes, average="macro"),
            }
        )
        self.scores = nn.ModuleDict({kind: scores.clone(prefix=f"{kind}_") for kind in ("val", "test")})

    def load(self, dtype: torch.dtype) -> tuple[nn.Module, list[str], list[str]]:
        data = self.trainer.datamodule
        names = data.label_names
        with asking_hub(self.model_name, "model.model_name", "a local folder, or package:NAME"):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                local_or_hub(self.model_name, "model.model_name"),
                num_labels=len(names),
                id2label=dict(enumerate(names)),
                label2id={name: i for i, name in enumerate(names)},
                ignore_mismatched_sizes=True,  # a head for other labels is replaced
                dtype=dtype,
                output_loading_info=True,
            )
        if model.config.pad_token_id is None:  # decoders read the last token before the padding
            model.config.pad_token_id = data.tokenizer.pad_token_id
        head = [
            name
            for name, child in model.named_children()
            if name != model.base_model_prefix and list(child.parameters())
        ]
        new = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
        _draw_again(model, new)
        return model, head, new

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        rows, width = batch["input_ids"].shape
        return {"samples": rows, "tokens": batch["attention_mask"].sum(), "padded": rows * width, "trained": rows}

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (B, classes), fp32."""
        with self.computing():
            return self.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch), batch["labels"])
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_loss_epoch", loss, on_step=False, on_epoch=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        logits = self(batch)
        rows = len(batch["labels"])
        self.log(f"{stage}_loss", F.cross_entropy(logits, batch["labels"]), batch_size=rows)
        self.scores[stage].update(logits, batch["labels"])
        self.log_dict(self.scores[stage], batch_size=rows, prog_bar=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """One dict a row: its place in the file, the likeliest label, and the probability of each."""
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


def _draw_again(model: nn.Module, new: list[str]) -> None:
    """Draw what no file held in fp32 from the run's seed: the same head for every adapter and dtype."""
    torch.manual_seed(torch.initial_seed())
    for name in sorted({parameter.rpartition(".")[0] for parameter in new}):
        module = model.get_submodule(name).float()
        for tensor in module.parameters(recurse=False):
            tensor._is_hf_initialized = False  # or transformers would leave it as it is
        model._init_weights(module)
