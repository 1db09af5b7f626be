"""Packed rows, and what transformers does with them: without a mask of T x T for rows of T tokens, if a model can."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, masking_utils

from litpeft.ops.attention import NAME, attention, use_lean_attention
from litpeft.ops.packed_attention import document_mask, is_document_mask

LENGTHS = (5, 3)  # tokens of two made-up documents


def not_packed() -> AbstractContextManager:
    """Tell transformers, inside the with block, that rows hold one example each; to find out, it waits for the GPU."""
    return patch.object(masking_utils, "find_packed_sequence_indices", _none)


def _none(*_: Tensor) -> None:
    return None


@torch.no_grad()
def attends_within_documents(model: nn.Module) -> bool:
    """Return whether the model hands a document mask to the attention of each layer, with the layer's sliding window.

    Sets the model's attention to `attention` if it is torch's. Runs two made-up documents, and compares the logits with
    those of the mask that transformers makes. Meta tensors have no logits to compare.
    """
    use_lean_attention(model)
    if not isinstance(model, PreTrainedModel) or model.config._attn_implementation != NAME:
        return False
    calls: list[tuple[bool, int | None]] = []

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **others: Any) -> Any:
        calls.append((is_document_mask(mask), others.get("sliding_window")))
        return attention(module, query, key, value, mask, **others)

    device, dtype = model.device, next(model.parameters()).dtype
    ids = torch.arange(sum(LENGTHS), device=device)[None] % model.config.get_text_config().vocab_size
    positions = torch.cat([torch.arange(n, device=device) for n in LENGTHS])[None]
    offsets = torch.tensor([0, LENGTHS[0], sum(LENGTHS)], dtype=torch.int32, device=device)
    documents = document_mask(offsets, max(LENGTHS), dtype)
    try:
        with patch.dict(AttentionInterface._global_mapping, {NAME: spy}):
            found = model(input_ids=ids, position_ids=positions, attention_mask=documents).logits
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
        return False  # the model uses its mask in another way
    if not calls or not all(masked for masked, _ in calls):
        return False
    if sum(window is not None for _, window in calls) != _sliding_layers(model, len(calls)):
        return False
    if found.is_meta:
        return True
    expected = model(input_ids=ids, position_ids=positions).logits.float()
    return torch.allclose(found.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def _sliding_layers(model: nn.Module, layers: int) -> int:
    """Return how many layers attend to a window of tokens only; -1 for layers that attend to chunks."""
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return layers if getattr(config, "sliding_window", None) is not None else 0
    return -1 if "chunked_attention" in kinds else kinds.count("sliding_attention")
