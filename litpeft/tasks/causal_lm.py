"""Responses by a model that goes on from the prompt: Llama, GPT-2, SmolLM2 and their like."""

from __future__ import annotations

from torch import Tensor
from transformers import AutoModelForCausalLM

from litpeft.data.instruction_rows import IGNORED
from litpeft.tasks.base import Batch
from litpeft.tasks.language_modelling import LanguageModelling


class CausalLM(LanguageModelling):
    """Fine-tune any causal language model of transformers to respond to instructions."""

    auto = AutoModelForCausalLM

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        # packed, no mask is given: transformers keeps attention within each run of positions then
        return {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        following = labels[:, 1:]  # each position foretells the next
        carrying = following != IGNORED
        return hidden[:, :-1][carrying], following[carrying]
