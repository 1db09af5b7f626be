"""Image classification with any image-classification model of transformers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification

from litpeft.errors import UserError
from litpeft.hub.hub import explaining_hub_errors, local_or_hub
from litpeft.tasks.base import Batch
from litpeft.tasks.sequence_classification import SequenceClassification

SHOWN = 16  # images of a validation
USUAL_SIZE = 224  # pixels; of models without a size of their own, such as ResNet


class ImageClassification(SequenceClassification):
    """Fine-tunes a vision model with a classification head: ViT, DeiT, Swin, ConvNeXt, DINOv2, ResNet and others.

    The head is new, or kept if it has as many labels, as in `SequenceClassification`, whose metrics, class weights,
    label smoothing and confusion matrix it has too. The running statistics of batch norms (ResNet) are frozen, by the
    adapter: a batch would change them without a gradient, so that an adapter would not be all that was trained.
    """

    auto_class = AutoModelForImageClassification

    def __init__(self, *common: Any, **options: Any) -> None:
        super().__init__(*common, **options)
        if self.resize_embeddings:
            raise UserError("model.resize_embeddings applies to texts; leave it out for images.")
        self.input_names = ("pixel_values",)
        self.shown_images: list[tuple[int, int, int, float]] = []  # see `evaluate`

    def finish_loading(self, model: nn.Module, data: LightningDataModule) -> None:
        """Do nothing: images have no padding and no token types."""

    def example(self, rows: int, tokens: int) -> Batch:
        """Return a made-up batch of images in the size of the model; `tokens` has no meaning."""
        with explaining_hub_errors(self.model_name, "model.model_name", "a local folder, or package:NAME"):
            config = AutoConfig.from_pretrained(local_or_hub(self.model_name, "model.model_name"))
        size = getattr(config, "image_size", None) or USUAL_SIZE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        pixels = torch.zeros(rows, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": pixels, "labels": torch.zeros(rows, dtype=torch.int64)}

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Count images; there are no tokens."""
        return {"samples": len(batch["labels"])}

    def forward(self, batch: Batch) -> Tensor:
        """Return the outputs of the head, (B, outputs) fp32."""
        dtype = torch.float32 if self.adapter.trains_base else self.compute_dtype
        with self.autocast():
            return self.backbone(pixel_values=batch["pixel_values"].to(dtype)).logits.float()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.shown_images = []

    def evaluate(self, batch: Batch, stage: Literal["val", "test"]) -> Tensor:
        """Add a batch to the metrics; of a validation, keep the images to be shown in `shown_images`.

        These are row, label, prediction and its probability of up to sixteen images of this process: wrong ones first,
        then those with the highest probability.
        """
        outputs = super().evaluate(batch, stage)
        if stage == "val" and "row" in batch:
            probability, found = outputs.softmax(-1).max(-1)
            columns = (batch["row"], batch["labels"], found, probability)
            seen = [*self.shown_images, *zip(*(column.tolist() for column in columns), strict=True)]
            self.shown_images = sorted(seen, key=lambda row: (row[1] == row[2], -row[3]))[:SHOWN]
        return outputs
