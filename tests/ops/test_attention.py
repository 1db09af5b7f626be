"""Attention on a CPU against the float64 formula, against torch's kernel, and in models."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from litpeft.ops import attention as ours
from litpeft.ops.attention import LONGEST, NAME, attention, use_lean_attention
from litpeft.ops.dropout import keep_mask
from tests.adapters.small_models import WIDE


class Layer(nn.Module):
    """The attributes of the attention layer that `attention` reads."""

    def __init__(self, groups: int = 1, is_causal: bool = False) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, is_causal


def drawn(batch: int, heads: int, groups: int, tokens: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Return query, key and value as views of (B, T, H, D), as models pass them, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int, length: int, width: int) -> Tensor:
        return torch.randn(batch, length, count, width, generator=generator).to(dtype)

    views = [draw(heads, tokens, 8), draw(groups, keys, 8), draw(groups, keys, 6)]
    return [view.transpose(1, 2).requires_grad_() for view in views] + [draw(heads, tokens, 6)]


def formula(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scaling: float, factors: Tensor | float) -> Tensor:
    """Return softmax(q kᵀ s) v in float64, (B, T, H, D)."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * scaling
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.einsum("bhts,bhsd->bthd", scores.softmax(-1) * factors, v)


CASES = {
    "plain": (3, 4, 4, 7, 7, None, False),
    "causal": (3, 4, 4, 7, 7, None, True),
    "grouped": (3, 6, 2, 7, 7, None, True),
    "padded": (3, 4, 4, 7, 7, "keys", False),
    "masked by head": (3, 4, 2, 7, 7, "heads", False),
    "one mask for all": (3, 4, 2, 7, 7, "one", False),
    "to an encoder": (3, 4, 4, 5, 9, "keys", False),
    "one token": (2, 2, 2, 1, 1, None, True),
    "in parts by row": (40, 4, 2, 60, 60, None, True),
    "in parts by head": (2, 6, 3, 300, 300, None, True),
}


def allowed(case: tuple, kind: str | None) -> Tensor | None:
    batch, heads, _, tokens, keys = case[:5]
    if kind is None:
        return torch.ones(tokens, keys, dtype=torch.bool).tril() if case[6] else None
    mask = torch.ones(batch, 1, tokens, keys, dtype=torch.bool)
    if kind == "keys":
        for row in range(batch):
            mask[row, :, :, keys - row :] = False
    elif kind == "heads":
        mask = torch.rand(batch, heads, tokens, keys, generator=torch.Generator().manual_seed(1)) < 0.6
        mask[..., 0] = True
    else:
        mask = mask[:1].tril()
    return mask


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_equal_the_formula(
    name: str, dropout: float, additive: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    *sizes, kind, causal = case = CASES[name]
    given = mask = allowed(case, kind)
    if kind is None:
        if additive:
            pytest.skip("no mask to add")
        given = None
    elif additive:
        given = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(dtype).min)
    q, k, v, upstream = drawn(*sizes, dtype)
    called: list[int] = []
    monkeypatch.setattr(ours, "sdpa_attention_forward", lambda *_, **__: called.append(1))
    if dtype == torch.float32 and not dropout:  # torch's kernel is as fast and is used
        attention(Layer(sizes[1] // sizes[2], causal), q, k, v, given, 0.0, 0.3)
        assert called
        return
    torch.manual_seed(5)
    out, _ = attention(Layer(sizes[1] // sizes[2], causal), q, k, v, given, dropout, 0.3)
    assert not called
    out.backward(upstream)
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    factors: Tensor | float = 1.0
    if dropout:
        torch.manual_seed(5)
        factors = masks(q, k, dropout)
    expected = formula(*exact, mask, 0.3, factors)
    expected.backward(upstream.double())
    tolerance = 2e-6 if dtype == torch.float32 else 8e-3
    for found, wanted in ((out, expected), *((a.grad, b.grad) for a, b in zip((q, k, v), exact, strict=True))):
        assert found.dtype == dtype
        assert float((found.double() - wanted).norm()) <= tolerance * float(wanted.norm())


def masks(query: Tensor, key: Tensor, dropout: float) -> Tensor:
    """Return the dropout factors as `attention` draws them, (B, H, T, S)."""
    seed = ours.new_seed()
    batch, heads, tokens, _ = query.shape
    groups, keys = key.shape[1:3]
    whole = torch.empty(batch, groups, heads // groups * tokens, keys, dtype=torch.float64)
    for place, part in enumerate(ours._parts(whole[..., :1], key)):
        some = whole[part].flatten(0, 1)
        whole[part] = (keep_mask(some, dropout, seed + place).double() / (1 - dropout)).view_as(whole[part])
    return whole.view(batch, heads, tokens, keys)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(1, 2000))
def test_each_head_is_in_one_part_and_parts_are_as_large_as_allowed(
    batch: int, groups: int, tokens: int, keys: int, chunk: int
) -> None:
    query, key = torch.empty(batch, groups, tokens, 1), torch.empty(batch, groups, keys, 1)
    seen = torch.zeros(batch, groups)
    with patch.object(ours, "CHUNK", chunk):
        parts = list(ours._parts(query, key))
    for part in parts:
        seen[part] += 1
        heads = seen[part].numel()
        assert heads == 1 or heads * tokens * keys <= chunk
    assert torch.equal(seen, torch.ones(batch, groups))
    fewest = batch * -(-groups // max(1, chunk // (tokens * keys)))  # if no part has heads of two rows
    assert len(parts) <= fewest


def test_a_fully_masked_row_gives_no_nan() -> None:
    q, k, v, upstream = drawn(2, 2, 2, 4, 4, torch.bfloat16)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[0] = False
    out, _ = attention(Layer(), q, k, v, mask)
    out.backward(upstream)
    assert all(tensor.isfinite().all() for tensor in (out, q.grad, k.grad, v.grad))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("evaluation", {"training": False}),
        ("a long row", {"tokens": LONGEST + 1}),
        ("a bias that learns", {"bias": True}),
        ("a position bias", {"position_bias": torch.zeros(1, 2, 4, 4)}),
    ],
)
def test_unsupported_cases_use_torch(what: str, change: dict) -> None:
    tokens = change.pop("tokens", 4)
    q, k, v, _ = drawn(1, 2, 2, tokens, tokens, torch.bfloat16)
    layer = Layer().train(change.pop("training", True))
    mask = (
        torch.zeros(1, 1, tokens, tokens, dtype=torch.bfloat16, requires_grad=True) if change.pop("bias", 0) else None
    )
    found = attention(layer, q, k, v, mask, **change)[0]
    assert torch.equal(found, sdpa_attention_forward(layer, q, k, v, mask, **change)[0])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(vocab_size=50, **WIDE, max_position_embeddings=64)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=50, **WIDE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_the_same_gradients_on_padded_rows(name: str) -> None:
    ids = torch.randint(2, 50, (4, 20), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(20) < torch.tensor([[20], [13], [7], [1]])).long()
    found = []
    for lean in (False, True):
        torch.manual_seed(0)
        model = MODELS[name]().bfloat16().train()
        for module in model.modules():  # the masks differ from torch's
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for option in ("attention_dropout", "dropout", "dropout_prob"):
                if isinstance(getattr(module, option, None), float):
                    setattr(module, option, 0.0)
        if lean:
            use_lean_attention(model)
            assert model.config._attn_implementation == NAME
        labels = {"labels": ids.masked_fill(mask == 0, -100)} if name != "bert" else {}
        out = model(input_ids=ids, attention_mask=mask, **labels)
        loss = out.loss if labels else (out.last_hidden_state.float() * mask[..., None]).square().mean()
        loss.backward()
        found.append([float(loss), *(p.grad.double() for p in model.parameters() if p.grad is not None)])
    plain, lean = found
    assert plain[0] == pytest.approx(lean[0], rel=5e-3)
    whole = sum(float(a.norm()) ** 2 for a in plain[1:]) ** 0.5
    apart = sum(float((a - b).norm()) ** 2 for a, b in zip(plain[1:], lean[1:], strict=True)) ** 0.5
    assert apart < 0.02 * whole


def test_a_model_with_another_attention_implementation_keeps_it() -> None:
    model = MODELS["llama"]()
    model.set_attn_implementation("eager")
    use_lean_attention(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("given", [None, False, True])
@pytest.mark.parametrize("of_layer", [None, False, True])
def test_a_layer_is_causal_unless_it_or_the_call_says_otherwise(of_layer: bool | None, given: bool | None) -> None:
    """As in transformers' attention of torch."""
    layer = nn.Module()
    layer.num_key_value_groups = 1
    if of_layer is not None:
        layer.is_causal = of_layer
    q, k, v, _ = drawn(2, 2, 2, 5, 5, torch.bfloat16)
    found, _ = attention(layer, q, k, v, None, 0.0, is_causal=given)
    expected, _ = sdpa_attention_forward(layer, q, k, v, None, 0.0, is_causal=given)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_c_functions_compute_attention_only_in_models_that_were_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.kernels none` leaves a model's modules as they are."""
    called: list[tuple[int, ...]] = []
    monkeypatch.setattr(ours, "native_attention", lambda query, *_: called.append(query.shape) or query)
    query, module = torch.randn(1, 2, 4, 32, dtype=torch.bfloat16), nn.Module().train()
    attention(module, query, query, query, None)
    assert called == []
    module.native = True
    for here in (False, True):  # on a processor that the functions are not for, a model may compute in fp32
        monkeypatch.setattr(ours.library, "available", lambda here=here: here)
        attention(module, query, query, query, None)
        assert called == [(1, 2, 4, 32)] * here
