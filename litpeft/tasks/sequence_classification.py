"""One label for a text, by any sequence-classification model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModelForSequenceClassification

from litpeft.errors import UserError
from litpeft.hub import asking_hub, local_or_hub
from litpeft.tasks.base import Batch, FineTuner

MOST_NEW = 0.1  # of a base's numbers may be drawn at random; BERT's pooler is a fiftieth


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

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
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
                **options,
            )
        if model.config.pad_token_id is None:  # decoders read the last token before the padding
            model.config.pad_token_id = data.tokenizer.pad_token_id
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and data.max_length > positions:
            raise UserError(
                f"data.max_length {data.max_length} is more than the {positions} positions of {self.model_name}."
            )
        base = model.base_model_prefix
        head = [name for name, child in model.named_children() if name != base and list(child.parameters())]
        misfits = [key for key, *_ in report["mismatched_keys"]]
        new = sorted({*report["missing_keys"], *misfits})
        _check_base(self.model_name, model, head, new, misfits)
        _draw_again(model, new)
        return model, head, new

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        rows, width = batch["input_ids"].shape
        return {"samples": rows, "tokens": batch["attention_mask"].sum(), "padded": rows * width, "trained": rows}

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (B, classes), fp32."""
        with self.computing():
            return self.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self(batch), batch["labels"])

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


def _check_base(name: str, model: nn.Module, head: list[str], new: list[str], misfits: list[str]) -> None:
    """Whether the file held this model: a head may be new, and a pooler; a base may not."""
    in_base = {key for key in new if key.partition(".")[0] not in head}
    if wrong := sorted(in_base & set(misfits)):
        raise UserError(f"model.model_name {name}: {wrong[0]} has another shape in the file than its config.json says.")
    missing = sum(model.get_parameter(key).numel() for key in in_base)
    total = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])  # 4-bit weights are buffers
    if missing > MOST_NEW * total:
        raise UserError(
            f"model.model_name {name}: the file lacks {len(in_base)} tensors of {type(model).__name__}, "
            f"{missing / total:.0%} of its numbers ({min(in_base)}, ...); it holds another architecture."
        )


def _draw_again(model: nn.Module, new: list[str]) -> None:
    """Draw what no file held in fp32 from the run's seed: the same head for every adapter and dtype."""
    torch.manual_seed(torch.initial_seed())
    for name in new:
        tensor = model.get_parameter(name)
        tensor.data = tensor.data.float()
        tensor._is_hf_initialized = False  # or transformers would leave it as it is, like its neighbours
    for name in sorted({parameter.rpartition(".")[0] for parameter in new}):
        model._init_weights(model.get_submodule(name))
