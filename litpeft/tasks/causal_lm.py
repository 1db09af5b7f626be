"""Responses by a model that goes on from the prompt: Llama, GPT-2, SmolLM2 and their like."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from litpeft.data.instruction_rows import IGNORED
from litpeft.errors import UserError
from litpeft.tasks.base import Batch
from litpeft.tasks.language_modelling import LanguageModelling


class CausalLM(LanguageModelling):
    """Fine-tune any causal language model of transformers to respond to instructions."""

    auto = AutoModelForCausalLM

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        model, head, new = super().load(data, dtype, **options)
        if not next(model.parameters()).is_meta and _sees_ahead(model):
            raise UserError(
                f"model.model_name {self.model_name}: its tokens attend to later ones, it cannot foretell them; "
                "give a causal model."
            )
        return model, head, new

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Without a mask: rows are padded at their end, where nothing that carries loss looks.

        Packed rows are told apart by their positions: transformers keeps attention within each run of them.
        """
        return {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        following = labels[:, 1:]  # each position foretells the next
        carrying = following != IGNORED
        return hidden[:, :-1][carrying], following[carrying]


@torch.no_grad()
def _sees_ahead(model: nn.Module) -> bool:
    """Whether what is said of the first tokens depends on the last."""
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0]], device=model.device) % model.config.vocab_size
    one, two = model(input_ids=ids).logits[:, :-1].float()
    return not torch.allclose(one, two, rtol=1e-2, atol=1e-2 * float(one.abs().max()))
