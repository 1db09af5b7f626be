"""Responses by a model that reads the prompt with an encoder: T5 and its like."""

from __future__ import annotations

from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from litpeft.data.instruction_rows import IGNORED
from litpeft.tasks.base import Batch
from litpeft.tasks.language_modelling import LanguageModelling


class Seq2SeqLM(LanguageModelling):
    """Fine-tune any encoder-decoder of transformers to respond to instructions."""

    auto = AutoModelForSeq2SeqLM
    encoder_decoder = True

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        shifted = self.backbone.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return {name: batch[name] for name in ("input_ids", "attention_mask")} | {"decoder_input_ids": shifted}

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        carrying = labels != IGNORED
        return hidden[carrying], labels[carrying]
