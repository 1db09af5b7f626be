"""The trained rows of new tokens give what an embedding with these rows gives, scaled as the embedding scales."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from litpeft.adapters import Adapter, DoRA, Frozen, Full, LoRA, Peft
from litpeft.adapters.base import trainable
from litpeft.adapters.new_tokens import (
    add_new_tokens,
    count_new_tokens,
    embedding_rows,
    merge_new_tokens,
    new_token_indices,
    same_tokens,
    train_new_tokens,
)
from litpeft.errors import UserError
from tests.adapters.small_models import disturb

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


def llama(tied: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=OLD, tie_word_embeddings=tied, **sizes)).to(dtype).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_start_at_the_mean_of_the_old_ones_and_those_stay(tied: bool) -> None:
    model, before = llama(tied), llama(tied)
    add_new_tokens(model, ROWS)
    assert embedding_rows(model) == model.config.vocab_size == ROWS
    assert model.first_new_token == OLD
    for layer, old in zip(ends(model), ends(before), strict=True):
        assert torch.equal(layer.weight[:OLD], old.weight)
        mean = old.weight.bfloat16().double().mean(0).bfloat16().float()
        assert torch.equal(layer.weight[OLD:], mean.expand(ROWS - OLD, -1))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def ends(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model.get_input_embeddings(), model.get_output_embeddings()


@pytest.mark.parametrize("tokens", [OLD, OLD - 1])
def test_a_model_with_enough_rows_stays_as_it_is(tokens: int) -> None:
    model = llama()
    add_new_tokens(model, tokens)
    assert (embedding_rows(model), hasattr(model, "first_new_token")) == (OLD, False)
    LoRA(rank=2, targets=["q_proj"]).apply(model)
    assert new_token_indices(model) == {}


class Hashed(Tokens):
    """A model that hashes characters, as CANINE: transformers finds no embedding in it."""

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


def test_a_model_without_a_row_for_each_token_is_refused() -> None:
    assert embedding_rows(Hashed(nn.Embedding(ROWS, DIM))) is None
    for model in (Hashed(nn.Embedding(ROWS, DIM)), Tokens(nn.Linear(2, 2))):
        with pytest.raises(UserError) as error:
            add_new_tokens(model, 99)
        assert str(error.value) == (
            f"model.resize_embeddings: {type(model).__name__} has no embedding with a row per token; leave it out."
        )
    with pytest.raises(
        UserError, match=r"^model\.resize_embeddings: transformers cannot add rows to Tokens; leave it out"
    ):
        add_new_tokens(Tokens(nn.Embedding(ROWS, DIM)), 99)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_new_rows_are_trained_and_a_merge_puts_them_into_the_matrices(tied: bool, dtype: torch.dtype) -> None:
    model = llama(tied, dtype)
    add_new_tokens(model, ROWS)
    LoRA(rank=2, targets=["q_proj"]).apply(model)
    rows = {name: p for name, p in trainable(model).items() if name.endswith("new_tokens")}
    assert list(rows) == ["model.embed_tokens.new_tokens"] + ([] if tied else ["lm_head.new_tokens"])
    assert {(tuple(p.shape), p.dtype) for p in rows.values()} == {((ROWS - OLD, 16), torch.float32)}
    assert (ends(model)[0].new_tokens is ends(model)[1].new_tokens) == tied
    with torch.no_grad():
        for row in rows.values():
            row.copy_(torch.randn_like(row).bfloat16())
    ids = torch.tensor([[1, OLD, ROWS - 1, 2]])
    before = model(ids).logits
    indices = {name.removesuffix(".new_tokens"): list(range(OLD, ROWS)) for name in rows}
    assert new_token_indices(model) == indices
    for theirs, same in (
        (indices, True), ({"embed_tokens": range(OLD, ROWS), "lm_head": range(OLD, ROWS)}, True),
        ({"embed_tokens": [OLD], "lm_head": range(OLD, ROWS)}, False), (list(range(OLD, ROWS)), tied), ([OLD], False), ({}, False),
    ):  # fmt: skip
        assert same_tokens(theirs, model) is same, theirs
    merge_new_tokens(model)
    assert new_token_indices(model) == {}
    for layer in ends(model):
        assert torch.equal(
            layer.weight[OLD:].float(),
            rows[next(iter(rows))] if layer is ends(model)[0] or tied else rows["lm_head.new_tokens"],
        )
    torch.testing.assert_close(
        model(ids).logits,
        before,
        rtol=0.01 if dtype != torch.float32 else 1e-5,
        atol=1e-2 if dtype != torch.float32 else 1e-6,
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapter", [LoRA(), DoRA(), Frozen(), Full(), Peft("IA3")], ids=lambda each: each.name)
def test_a_merged_model_is_saved_with_the_rows(adapter: Adapter, tied: bool, tmp_path: Path) -> None:
    model = llama(tied)
    add_new_tokens(model, ROWS)
    adapter.apply(model)
    disturb(model)
    ids = torch.tensor([[1, OLD, 5, ROWS - 1]])
    trained = model.eval()(ids).logits
    adapter.merge(model)
    model.save_pretrained(tmp_path)
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    torch.testing.assert_close(loaded(ids).logits, trained, rtol=1e-4, atol=1e-5)


def test_the_logits_of_new_tokens_are_those_of_their_rows_with_the_bias() -> None:
    class Both(Tokens):
        def __init__(self) -> None:
            super().__init__(nn.Embedding(ROWS, DIM))
            self.head = nn.Linear(DIM, ROWS)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    torch.manual_seed(0)
    model = Both().requires_grad_(False)
    model.first_new_token = OLD
    train_new_tokens(model)
    with torch.no_grad():
        model.head.new_tokens.normal_()
    hidden = torch.randn(2, 3, DIM)
    whole = torch.cat([model.head.weight[:OLD], model.head.new_tokens])
    expected = nn.functional.linear(hidden, whole, model.head.bias)
    torch.testing.assert_close(model.head(hidden), expected)
    torch.testing.assert_close(model.head(input=hidden), expected)
    torch.testing.assert_close(model.layer(input=torch.tensor([OLD])), model.layer.new_tokens[:1])


def test_what_cannot_train_new_rows_is_refused() -> None:
    model = llama()
    add_new_tokens(model, ROWS)
    with pytest.raises(
        UserError, match=r"^model\.resize_embeddings trains the new rows of model\.embed_tokens, which canno"
    ):
        LoRA(rank=2, targets=["embed_tokens"]).apply(model)
    model = llama().requires_grad_(False)
    add_new_tokens(model, ROWS)
    model.requires_grad_(False)
    model.lm_head.__class__ = type("Other", (nn.Linear,), {})
    with pytest.raises(
        UserError, match=r"^model\.resize_embeddings: the rows of lm_head, a Other, cannot be trained; leave"
    ):
        train_new_tokens(model)
    whole = llama()
    add_new_tokens(whole, ROWS)
    Full().apply(whole)  # trains the whole embedding
    assert new_token_indices(whole) == {}
