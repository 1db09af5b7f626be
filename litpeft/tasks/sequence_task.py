"""Base class of the tasks with a head on whole texts: any sequence-classification model of transformers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from litpeft.errors import UserError
from litpeft.tasks.base import Batch
from litpeft.tasks.head_labels import match_head_labels
from litpeft.tasks.pretrained import check_base, initialise_new_parameters, load_pretrained
from litpeft.tasks.scored_task import ScoredTask


class SequenceTask(ScoredTask):
    """Fine-tunes a model with a head on whole texts; the number and names of its outputs come from the data.

    A head in the model's file is kept if it has as many outputs; its rows are matched with the data's labels by name.

    Args:
        num_labels: number of outputs, for dataloaders of your own; a data set of litpeft knows it.
        options: metrics, model, adapter, optimizer and the other options of `ScoredTask` and `FineTuner`.
    """

    auto_class: Any = AutoModelForSequenceClassification  # auto class of transformers
    problem_type: str  # as in the configurations of transformers
    head_labels: dict[str, Any] | None = None  # how the labels of a pretrained head match those of the data
    outputs = 2  # of the head, for made-up batches

    def __init__(self, *common: Any, num_labels: int | None = None, **options: Any) -> None:
        super().__init__(*common, **options)
        if num_labels is not None and num_labels < 1:
            raise UserError(f"model.num_labels must be at least 1, got {num_labels}.")
        self.num_labels = num_labels
        self.input_names = ("input_ids", "attention_mask")  # names of the model's arguments

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        self.check_labels(data)
        names = self.known_label_names = list(data.label_names)
        if self.num_labels not in (None, len(names)):
            raise UserError(
                f"model.num_labels is {self.num_labels}, and the data has {len(names)}: {', '.join(names)}."
            )
        self.outputs = len(names)
        model, new, mismatched = load_pretrained(
            self.auto_class,
            self.model_name,
            data,
            dtype,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            problem_type=self.problem_type,
            resize_embeddings=self.resize_embeddings,
            ignore_mismatched_sizes=True,  # a head with another number of labels is replaced
            **options,
        )
        base = model.base_model_prefix
        head = [name for name, child in model.named_children() if name != base and list(child.parameters())]
        check_base(self.model_name, model, head, new, mismatched)
        initialise_new_parameters(model, new)
        self.head_labels = match_head_labels(model, head, new, self.model_name, names)
        self.finish_loading(model, data)
        return model, head, new

    def finish_loading(self, model: nn.Module, data: LightningDataModule) -> None:
        """Set what the model needs to know about the data, and which inputs it takes."""
        if model.config.pad_token_id is None:  # decoder models classify at the last token before the padding
            model.config.pad_token_id = data.tokenizer.pad_token_id
        if _takes_token_types(model):
            self.input_names = ("input_ids", "attention_mask", "token_type_ids")

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        rows, width = batch["input_ids"].shape
        return {"samples": rows, "tokens": batch["attention_mask"].sum(), "padded": rows * width, "trained": rows}

    def forward(self, batch: Batch) -> Tensor:
        """Return the outputs of the head, (B, outputs) fp32."""
        with self.autocast():
            return self.backbone(**{name: batch[name] for name in self.input_names if name in batch}).logits.float()

    def exported_settings(self, data: LightningDataModule) -> dict[str, Any]:
        """Return what a user of an exported model needs beside its weights, for its config.json and model card."""
        return {}

    def outputs_in_own_unit(self, model: nn.Module, dtype: torch.dtype, outputs: Tensor) -> tuple[Tensor, str]:
        """Change a merged model so that its outputs have the unit of the data, where that is possible.

        Args:
            model: the merged model, in fp32 or in `dtype`.
            dtype: dtype in which it will be saved.
            outputs: outputs of the model before, (B, outputs).

        Returns:
            The outputs of the changed model, and a phrase about them for the user, which may be empty.
        """
        return outputs, ""


def _takes_token_types(model: nn.Module) -> bool:
    """Return whether a model has embeddings for the first and the second text of a pair, as BERT has."""
    types = getattr(model.config, "type_vocab_size", 2)
    return "token_type_ids" in inspect.signature(model.forward).parameters and types > 1
