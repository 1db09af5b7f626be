"""Instruction tuning of decoder-only models, such as Llama, GPT-2 and SmolLM2."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from litpeft.data.token_rows import IGNORED
from litpeft.errors import UserError
from litpeft.ops.packed_attention import document_mask
from litpeft.tasks.base import Batch
from litpeft.tasks.language_modelling import LanguageModelling
from litpeft.tasks.packed_rows import attends_within_documents


class CausalLM(LanguageModelling):
    """Fine-tunes any causal language model of transformers to respond to instructions."""

    auto = AutoModelForCausalLM
    label_shift = 1
    _document_masks = False  # packed rows: whether attention takes the offsets of documents instead of a mask

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        model, head, new = super().load(data, dtype, **options)
        if not next(model.parameters()).is_meta and _attends_to_later_tokens(model):
            raise UserError(
                f"model.model_name {self.model_name}: its tokens attend to later tokens, so it cannot predict them; "
                "give a causal model."
            )
        if getattr(data, "packing", False):
            self._document_masks = attends_within_documents(model)
            if not self._document_masks:
                print(
                    f"litpeft: data.packing: {type(model).__name__} needs a mask of T x T for packed rows of T tokens, "
                    "whose memory grows with the square of data.max_length.",
                    file=sys.stderr,
                )
        return model, head, new

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the model's inputs, without a mask: padding is on the right, where no causal token looks.

        In packed rows the positions restart at each example, and attention stays within an example: by the offsets of
        the examples where the model's attention takes them, else by a mask that transformers makes from the positions.
        """
        inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
        if self._document_masks and "cu_seqlens" in batch:
            longest = batch["max_seqlen"].shape[0]
            inputs["attention_mask"] = document_mask(batch["cu_seqlens"], longest, self.compute_dtype)
        return inputs

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        following = labels[:, 1:]  # each position predicts the next token
        has_loss = following != IGNORED
        return hidden[:, :-1][has_loss], following[has_loss]


@torch.no_grad()
def _attends_to_later_tokens(model: nn.Module) -> bool:
    """Return whether the logits of the first tokens change with the last token."""
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0]], device=model.device) % model.config.get_text_config().vocab_size
    one, two = model(input_ids=ids).logits[:, :-1].float()
    return not torch.allclose(one, two, rtol=1e-2, atol=1e-2 * float(one.abs().max()))
