"""The trained rows of new tokens give what an embedding with these rows gives, scaled as the embedding scales."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from litpeft.adapters import Full, LoRA
from litpeft.adapters.new_tokens import count_new_tokens, train_new_tokens

ROWS, OLD, DIM, PAD = 12, 9, 4, 0


class Tokens(nn.Module):
    """A model that looks tokens up."""

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(DIM, DIM)

    def get_input_embeddings(self) -> nn.Module:
        return self.layer

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Embedding(ROWS, DIM, PAD),
        lambda: BartScaledWordEmbedding(ROWS, DIM, PAD, embed_scale=3.3),
        lambda: Gemma3TextScaledWordEmbedding(ROWS, DIM, PAD, embed_scale=3.3),
    ],
    ids=["plain", "scaled by a number", "scaled by a tensor"],
)
def test_new_rows_are_looked_up_and_scaled_as_old_ones(layer: object, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Tokens(layer()).to(dtype).requires_grad_(False)
    whole = copy.deepcopy(model.layer).requires_grad_(True)
    model.first_new_token = OLD
    train_new_tokens(model)
    ids = torch.tensor([[1, OLD, PAD, ROWS - 1], [OLD + 1, OLD, 5, OLD]])
    with torch.no_grad():
        rows = torch.randn(ROWS - OLD, DIM).to(dtype)
        model.layer.new_tokens.copy_(rows)
        whole.weight[OLD:] = rows
    found, expected = model.layer(ids), whole(ids)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    found.backward(upstream), expected.backward(upstream)
    torch.testing.assert_close(model.layer.new_tokens.grad.to(dtype), whole.weight.grad[OLD:])
    assert model.layer.weight.grad is None


def test_new_tokens_are_counted_and_described_only_where_there_are_some() -> None:
    model = Tokens(nn.Embedding(ROWS, DIM))
    assert count_new_tokens(model) == 0
    assert "new_tokens" not in Full().describe(model)
    model.first_new_token = OLD
    adapter = LoRA(rank=2, targets=["out"])
    adapter.apply(model)
    assert adapter.describe(model)["new_tokens"] == count_new_tokens(model) == ROWS - OLD
