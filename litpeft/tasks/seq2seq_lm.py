"""Instruction tuning of encoder-decoder models, such as T5."""

from __future__ import annotations

import inspect
import sys

from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from litpeft.data.token_rows import IGNORED
from litpeft.errors import UserError
from litpeft.tasks.base import Batch
from litpeft.tasks.language_modelling import LanguageModelling


class Seq2SeqLM(LanguageModelling):
    """Fine-tunes any encoder-decoder model of transformers to respond to instructions."""

    auto = AutoModelForSeq2SeqLM
    encoder_decoder = True

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        shifted = _decoder_inputs(self.backbone, batch["labels"])
        return {name: batch[name] for name in ("input_ids", "attention_mask")} | {"decoder_input_ids": shifted}

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        has_loss = labels != IGNORED
        return hidden[has_loss], labels[has_loss]


def _decoder_inputs(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """Return the labels shifted right, (B, T), as the model's own forward shifts labels."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)  # M2M100, NLLB, Blenderbot
    if shift is None:
        raise UserError(
            f"model.model_name: litpeft cannot shift the labels of {type(model).__name__}; choose another model."
        )
    start = {"decoder_start_token_id": model.config.decoder_start_token_id}
    start = start if "decoder_start_token_id" in inspect.signature(shift).parameters else {}
    return shift(labels, pad_token_id=model.config.pad_token_id, **start)
