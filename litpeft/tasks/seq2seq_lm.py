"""Instruction tuning of encoder-decoder models, such as T5."""

from __future__ import annotations

from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from litpeft.data.instruction_rows import IGNORED
from litpeft.tasks.base import Batch
from litpeft.tasks.language_modelling import LanguageModelling


class Seq2SeqLM(LanguageModelling):
    """Fine-tunes any encoder-decoder model of transformers to respond to instructions."""

    auto = AutoModelForSeq2SeqLM
    encoder_decoder = True

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        shifted = self.backbone.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return {name: batch[name] for name in ("input_ids", "attention_mask")} | {"decoder_input_ids": shifted}

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        has_loss = labels != IGNORED
        return hidden[has_loss], labels[has_loss]
