"""The C functions for CPUs: each against float64, their dropout masks against numpy, and which modules use them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.bert.modeling_bert import BertSelfOutput
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.functional import Native, adapted_linear
from litpeft.errors import UserError
from litpeft.ops import products
from litpeft.ops.attention import attention, use_lean_attention
from litpeft.ops.autocast import without_autocast
from litpeft.ops.dropout import use_lean_dropout
from litpeft.ops.kernels import use_kernels
from litpeft.ops.native import adapter_products, frozen_products, library
from litpeft.ops.native import gain as gains
from litpeft.ops.native.activations import gelu, swiglu
from litpeft.ops.native.attention import can_compute, native_attention
from litpeft.ops.native.dropout import DropoutMask, add_kept, native_dropout
from litpeft.ops.native.norms import norm
from litpeft.ops.native_modules import use_native_kernels

CPU, HALF = torch.device("cpu"), torch.bfloat16
needs_compiler = pytest.mark.skipif(not library.available(), reason="there is no C compiler")
needs_products = pytest.mark.skipif(
    not library.has_bf16_products(), reason="there is no C compiler, or the processor has no products of bf16"
)
BERT = BertConfig(vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
LLAMA: dict[str, Any] = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 1}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def rounding(expected: Tensor, factor: float = 1.0) -> dict[str, float]:
    """Return the tolerances of a result that is rounded to bf16 once."""
    return {"rtol": factor * 2**-8, "atol": factor * 2**-9 * float(expected.abs().max())}


def kept(count: int, probability: float, seed: int) -> np.ndarray:
    """Return which of `count` numbers stay: the hash of their positions, in numpy."""
    with np.errstate(over="ignore"):
        keys = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    keys = int(keys ^ (keys >> np.uint64(31)))
    x, second = np.arange(count, dtype=np.uint32) ^ np.uint32(keys % 2**32), np.uint32(keys >> 32)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x = (x ^ (x >> np.uint32(15))) + second
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    return (x ^ (x >> np.uint32(13))) >= np.uint32(round(probability * 2**32))


SHAPES = [(4, 4, 27, 27, 32), (6, 2, 5, 16, 64), (3, 1, 33, 70, 96), (2, 1, 100, 100, 32)]


TILES = Path(__file__).with_name("tiles_in_software.h")


@pytest.fixture(params=["this processor", "tiles in software", "no tiles", "no bf16 instructions"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile the functions for other processors; a processor with AMX tiles is one whose tiles are in software."""
    if request.param != "this processor":
        monkeypatch.setattr(library, "has_tiles", lambda: False)
        if request.param == "no bf16 instructions":
            monkeypatch.setattr(library, "_machine_flags", lambda: ["-march=skylake-avx512"])
        if request.param == "tiles in software":
            if not library.has_bf16_products():
                pytest.skip("the code for tiles also needs AVX512_BF16")
            text = f"-DTEXT={zlib.crc32(TILES.read_bytes())}"  # another header is another file in the cache
            flags = [*library._machine_flags(), "-D__AMX_BF16__", "-include", str(TILES), text]
            monkeypatch.setattr(library, "_machine_flags", lambda: flags)
        _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for known in (library.compiled, library._function, library.available, library.has_bf16_products):
        known.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("mask_kind", [None, "causal", "padding", "padding for each query", "each head", "bool"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("heads", "groups", "queries", "keys", "width"), SHAPES)
def test_attention_is_the_formula(
    heads: int, groups: int, queries: int, keys: int, width: int, dropout: float, mask_kind: str | None
) -> None:
    batch, seed, scaling = 3, 987654321987654321, 0.2
    q, k, v = (
        random(batch, t, h * width, seed=i).view(batch, t, h, width)
        for i, (t, h) in enumerate(((queries, heads), (keys, groups), (keys, groups)))
    )
    halves = [t.transpose(1, 2).detach().requires_grad_() for t in (q, k, v)]
    wide = [t.detach().double().requires_grad_() for t in halves]
    shapes = {"each head": (batch, heads, queries, keys), "bool": (1, 1, queries, keys)}
    allowed = torch.rand(shapes.get(mask_kind, (batch, 1, 1, keys)), generator=torch.Generator().manual_seed(5)) > 0.3
    allowed[..., 0] = True
    if mask_kind == "padding for each query":
        allowed = allowed.expand(batch, 1, queries, keys)
    added = torch.where(allowed, 0.5, -1e30)
    mask = {None: None, "causal": None, "bool": allowed}.get(mask_kind, added)
    if mask_kind == "bool":
        added = torch.where(allowed, 0.0, -1e30)
    elif mask_kind in (None, "causal"):
        added = torch.zeros(queries, keys)
        added = added.masked_fill_(~torch.ones_like(added, dtype=torch.bool).tril(), -1e30) if mask_kind else added
    assert can_compute(*halves)
    found = native_attention(*halves, mask, mask_kind == "causal", scaling, dropout, seed)
    keys_of, values_of = (t.repeat_interleave(heads // groups, 1) for t in wide[1:])
    p = torch.softmax(wide[0] @ keys_of.mT * scaling + added, -1)
    padded = -(-queries // 32) * 32
    drawn = kept(batch * heads * keys * padded, dropout, seed).reshape(batch, heads, keys, padded)[..., :queries]
    expected = ((p * torch.from_numpy(drawn).mT / (1 - dropout)) @ values_of).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, **rounding(expected, 2))
    grad = random(*found.shape, seed=9)
    found.backward(grad)
    expected.backward(grad.double())
    for half, exact in zip(halves, wide, strict=True):
        torch.testing.assert_close(half.grad.double(), exact.grad, **rounding(exact.grad, 4))


@needs_compiler
def test_a_fully_masked_row_is_uniform_and_nan_stays_nan() -> None:
    q, k, v = (random(1, 2, 5, 32, seed=i) for i in range(3))
    mask = torch.zeros(1, 1, 5, 5)
    mask[0, 0, 3] = torch.finfo(torch.float32).min / 2
    out = native_attention(q, k, v, mask, False, 1.0, 0.0, 0)
    torch.testing.assert_close(out[0, 3].float(), v[0].float().mean(1), rtol=0.01, atol=0.01)
    q[0, 1, 2, 0] = float("nan")
    out = native_attention(q, k, v, None, False, 1.0, 0.0, 0)
    assert out[0, 2, 1].isnan().all()
    assert not out[0, [0, 1, 3, 4]].isnan().any()
    broken = torch.full((16,), float("nan"), dtype=HALF)
    assert native_dropout(broken, 1e-9, 1).isnan().all()
    assert gelu(broken).isnan().all()
    assert swiglu(broken, torch.ones_like(broken)).isnan().all()
    assert norm(broken[None], broken, broken, 0.1).isnan().all()


@needs_compiler
def test_numbers_that_fill_no_whole_vectors_are_refused() -> None:
    for odd in (
        lambda: gelu(random(17)),
        lambda: swiglu(random(15), random(15)),
        lambda: native_dropout(random(8), 0.1, 0),
    ):
        with pytest.raises(ValueError, match="must be a multiple of 16"):
            odd()
    with pytest.raises(ValueError, match="must be a multiple of 16"):
        norm(random(2, 24), random(24), None, 1e-5)


@needs_compiler
def test_a_mask_that_is_changed_is_read_again() -> None:
    q = random(1, 1, 3, 32)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    before = native_attention(q, q, q, mask, False, 1.0, 0.0, 0)
    mask[..., 2] = False
    after = native_attention(q, q, q, mask, False, 1.0, 0.0, 0)
    torch.testing.assert_close(after, native_attention(q, q, q, mask.clone(), False, 1.0, 0.0, 0), rtol=0, atol=0)
    assert not torch.equal(before, after)


@needs_compiler
def test_other_shapes_and_dtypes_are_left_to_torch() -> None:
    fits = random(1, 2, 8, 32)
    assert can_compute(fits, fits, fits)
    for q, k, v in (
        (random(1, 2, 8, 48),) * 3,
        (random(1, 2, 8, 160),) * 3,
        (fits, fits, random(1, 2, 8, 64)),
        (fits.float(),) * 3,
        (random(1, 2, 32, 32).mT,) * 3,
    ):
        assert not can_compute(q, k, v)


@needs_compiler
def test_attention_uses_c_only_in_models_that_ask_for_it() -> None:
    module = nn.Module().train()
    q = random(2, 2, 8, 32).requires_grad_()
    for is_native in (False, True):
        module.native = is_native
        out, _ = attention(module, q, q, q, None, 0.0, 1.0, False)
        assert ("Native" in type(out.grad_fn).__name__) is is_native
    out, _ = attention(module.eval(), q, q, q, None, 0.0, 1.0, False)
    assert "Native" not in type(out.grad_fn).__name__


@needs_compiler
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.97])
def test_dropout_keeps_the_right_share_independently_of_position_and_seed(probability: float) -> None:
    x, count = torch.ones(1 << 20, dtype=HALF), 1 << 20
    masks = [native_dropout(x, probability, seed) == 0 for seed in (1, 2, 1 << 32, (1 << 32) + 1)]
    assert torch.equal(masks[0], ~torch.from_numpy(kept(count, probability, 1)))
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert all(abs(float(m.double().mean()) - probability) < 5 * deviation for m in masks)
    both = probability**2
    pairs = [(masks[0], other) for other in masks[1:]]  # seeds that differ in one bit
    pairs += [(masks[0][:-n], masks[0][n:]) for n in (1, 2, 16, 384, 1536)]  # neighbours, and the row below
    for one, other in pairs:
        share = float((one & other).double().mean())
        assert abs(share - both) < 6 * (both * (1 - both) / len(one)) ** 0.5 + 1e-6


@needs_compiler
@pytest.mark.usefixtures("build")
def test_dropout_scales_what_it_keeps_and_backward_has_the_same_mask() -> None:
    x = random(48, 17 * 16).requires_grad_()
    out = native_dropout(x, 0.25, 77)
    stays = torch.from_numpy(kept(x.numel(), 0.25, 77)).view(x.shape)
    torch.testing.assert_close(out, torch.where(stays, (x.float() / 0.75).to(HALF), 0))
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(x.grad, torch.where(stays, torch.tensor(1 / 0.75).to(HALF), 0))
    across = random(16, 32).T  # not contiguous: positions are those of the rows
    assert torch.equal(native_dropout(across, 0.25, 7) == 0, native_dropout(across.contiguous(), 0.25, 7) == 0)


@needs_compiler
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (5, 7, 64), (3, 400)])
def test_norms_are_the_formulas(shape: tuple[int, ...], with_bias: bool) -> None:
    x = (random(*shape) * 3 + 2).requires_grad_()
    weight, bias = random(shape[-1], seed=1), random(shape[-1], seed=2) if with_bias else None
    wide = x.detach().double().requires_grad_()
    if with_bias:
        expected = F.layer_norm(wide, shape[-1:], weight.double(), bias.double(), 1e-3)
    else:
        expected = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    found = norm(x, weight, bias, 1e-3)
    torch.testing.assert_close(found.double(), expected, **rounding(expected, 2))
    grad = random(*shape, seed=3)
    found.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, **rounding(wide.grad))


@needs_compiler
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_norm_of_a_dropped_sum_is_the_formula(dropout: float) -> None:
    x, residual = (random(37, 48, seed=i).requires_grad_() for i in (1, 2))
    weight, bias, seed = random(48, seed=3), random(48, seed=4), 99
    wide = [t.detach().double().requires_grad_() for t in (x, residual)]
    stays = torch.from_numpy(kept(x.numel(), dropout, seed)).view(x.shape)
    total = wide[0] * stays / (1 - dropout) + wide[1]
    expected = F.layer_norm(total, (48,), weight.double(), bias.double(), 1e-5)
    found = norm(x, weight, bias, 1e-5, residual, dropout, seed)
    torch.testing.assert_close(found.double(), expected, **rounding(expected, 4))  # the sum is rounded first
    grad = random(37, 48, seed=5)
    found.backward(grad)
    expected.backward(grad.double())
    for half, exact in zip((x, residual), wide, strict=True):
        torch.testing.assert_close(half.grad.double(), exact.grad, **rounding(exact.grad, 4))


@needs_compiler
def test_norms_that_compute_something_else_are_left_alone_and_trained_ones_get_gradients() -> None:
    layer, other = nn.LayerNorm(32).to(HALF), nn.LayerNorm((2, 16)).to(HALF)
    llama = LlamaForCausalLM(LlamaConfig(**LLAMA)).to(HALF)
    gemma = GemmaForCausalLM(GemmaConfig(**LLAMA, head_dim=32)).to(HALF)
    assert "norm" in use_native_kernels(layers := nn.ModuleList([layer, other, llama]))
    assert "norm" not in use_native_kernels(gemma)
    assert type(other) is nn.LayerNorm
    assert isinstance(llama.model.norm, LlamaRMSNorm)
    assert copy.deepcopy(layers)[0].weight.equal(layer.weight)
    x = random(4, 32).requires_grad_()
    assert "_Norm" not in type(layer(x).grad_fn).__name__
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    assert "_Norm" in type(layer(x).grad_fn).__name__
    assert "_Norm" not in type(layer.eval()(x).grad_fn).__name__
    plain = LlamaRMSNorm(64).to(HALF)
    plain.weight.data = llama.model.norm.weight.data = random(64, seed=4)
    llama.model.norm.requires_grad_(False).train()
    rows = random(500, 64, seed=5)
    assert float((llama.model.norm(rows) != plain(rows)).double().mean()) < 1e-3  # the same roundings


@needs_compiler
def test_the_end_of_a_block_is_one_pass_only_where_it_is_the_formula() -> None:
    class Other(BertSelfOutput):
        def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
            return self.LayerNorm(self.dropout(self.dense(hidden_states) + input_tensor))

    same, other = BertSelfOutput(BERT).to(HALF).requires_grad_(False), Other(BERT).to(HALF).requires_grad_(False)
    for module in (same, other):
        use_lean_dropout(module)
    assert "residual" in use_native_kernels(same)
    assert "residual" not in use_native_kernels(other)
    plain = BertSelfOutput(BERT).to(HALF)
    plain.load_state_dict(same.state_dict())
    for module in (same, plain):
        module.dropout.p = 0.0
        module.train()
    x, residual = random(7, 64).requires_grad_(), random(7, 64, seed=1)
    out = same(x, residual)
    assert "_Norm" in type(out.grad_fn).__name__
    torch.testing.assert_close(out.float(), plain(x, residual).float(), rtol=0.02, atol=0.02)
    same.LayerNorm.requires_grad_(True)
    assert "_Norm" not in type(same(x, residual).grad_fn).__name__


@needs_compiler
@pytest.mark.usefixtures("build")
def test_gelu_is_as_exact_as_torchs_for_every_number_and_only_exact_ones_use_it() -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(HALF)
    x = torch.where(x.abs() <= 12, x, 0).requires_grad_()
    wide = x.detach().double().requires_grad_()
    found, expected = gelu(x), wide * torch.special.erfc(-wide / 2**0.5) / 2  # F.gelu is exact to 1e-16 only
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-30)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=2**-8, atol=1e-5)
    exact, approximate = nn.GELU(), nn.GELU(approximate="tanh")
    assert "gelu" in use_native_kernels(nn.ModuleList([exact, approximate]))
    assert type(approximate) is nn.GELU
    assert "_Gelu" in type(exact(random(4, 32).requires_grad_()).grad_fn).__name__
    assert "_Gelu" not in type(exact(random(4, 32).float().requires_grad_()).grad_fn).__name__


@needs_compiler
@pytest.mark.usefixtures("build")
def test_swiglu_is_the_formula_and_only_gated_mlps_use_it() -> None:
    gate, up = (random(7, 48, seed=i).mul(4).requires_grad_() for i in range(2))
    wide = [t.detach().double().requires_grad_() for t in (gate, up)]
    found, expected = swiglu(gate, up), F.silu(wide[0]) * wide[1]
    torch.testing.assert_close(found.double(), expected, **rounding(expected, 2))
    grad = random(7, 48, seed=3)
    found.backward(grad)
    expected.backward(grad.double())
    for half, exact in zip((gate, up), wide, strict=True):
        torch.testing.assert_close(half.grad.double(), exact.grad, **rounding(exact.grad))

    class Swapped(LlamaMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    config = LlamaConfig(**LLAMA)
    same, swapped = LlamaMLP(config).to(HALF), Swapped(config).to(HALF)
    with_gelu = LlamaMLP(LlamaConfig(**LLAMA, hidden_act="gelu")).to(HALF)
    assert "swiglu" in use_native_kernels(same)
    assert "swiglu" not in use_native_kernels(nn.ModuleList([swapped, with_gelu]))
    x = random(3, 64)
    plain = LlamaMLP(config).to(HALF)
    plain.load_state_dict(same.state_dict())
    torch.testing.assert_close(same.train()(x), plain(x), rtol=0.01, atol=0.001)


@needs_products
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("rows", [1, 15, 32, 33, 95])
@pytest.mark.parametrize(
    ("wide", "deep"), [(32, 32), (96, 64), (64, 160), (64, 16416)]
)  # the last: more than one panel
def test_products_with_frozen_matrices_equal_those_of_torch(rows: int, wide: int, deep: int) -> None:
    weight, bias = random(wide, deep), random(wide, seed=1)
    x, dy = random(rows, deep + 32, seed=2)[:, :deep], random(rows, wide, seed=3)
    exact = x.double() @ weight.double().T
    for b in (None, bias):
        expected = exact if b is None else exact + b.double()
        torch.testing.assert_close(frozen_products.linear(x, weight, b).double(), expected, **rounding(expected))
    back = dy.double() @ weight.double()
    torch.testing.assert_close(frozen_products.input_gradient(dy, weight).double(), back, **rounding(back))
    onto = random(rows, deep, seed=4)
    more = onto.double() + back
    assert frozen_products.input_gradient(dy, weight, onto) is onto
    torch.testing.assert_close(onto.double(), more, **rounding(more))


@needs_products
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("rank", [1, 8, 33])
@pytest.mark.parametrize("rows", [1, 32, 95])
@pytest.mark.parametrize(("wide", "deep"), [(32, 32), (96, 64), (64, 16416)])
def test_what_an_adapter_adds_is_in_the_sums_before_they_are_rounded(
    rows: int, wide: int, deep: int, rank: int
) -> None:
    weight, bias, x, dy = (
        random(wide, deep),
        random(wide, seed=1),
        random(rows, deep, seed=2),
        random(rows, wide, seed=3),
    )
    roundings = 1 if library.has_bf16_products() else 2  # torch rounds the product before the adapter is added
    low = random(rows, rank + 5, seed=4)[:, :rank]
    for factor in (random(rank, wide, seed=5), random(wide, rank, seed=5).T):  # in both orders of storage
        expected = x.double() @ weight.double().T + low.double() @ factor.double()
        for b in (None, bias):
            exact = expected if b is None else expected + b.double()
            out = frozen_products.linear(x, weight, b, frozen_products.LowRankUpdate(low, factor))
            torch.testing.assert_close(out.double(), exact, **rounding(exact, roundings))
    factor, onto = random(rank, deep, seed=6), random(rows, deep, seed=7)
    adapter = frozen_products.LowRankUpdate(low, factor)
    back = dy.double() @ weight.double() + low.double() @ factor.double()
    torch.testing.assert_close(
        frozen_products.input_gradient(dy, weight, None, adapter).double(), back, **rounding(back, roundings)
    )
    more = onto.double() + back
    assert frozen_products.input_gradient(dy, weight, onto, adapter) is onto
    torch.testing.assert_close(onto.double(), more, **rounding(more, roundings))


@needs_products
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("rows", [1, 32, 95])
@pytest.mark.parametrize(("wide", "deep"), [(32, 32), (96, 64), (64, 16416)])
def test_gelu_beside_a_product_is_gelu_after_it_bit_for_bit(rows: int, wide: int, deep: int) -> None:
    weight, bias, dy = random(wide, deep) / deep**0.5, random(wide, seed=1), random(rows, wide, seed=3)
    for b in (bias, None):
        x, same = (random(rows, deep + 32, seed=2)[:, :deep].requires_grad_() for _ in range(2))
        out, expected = frozen_products.frozen_linear_gelu(x, weight, b), gelu(F.linear(same, weight, b))
        hidden = frozen_products.frozen_linear(same, weight, b)
        assert torch.equal(out, gelu(hidden))
        torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
        out.backward(dy)
        gelu(hidden).backward(dy)
        assert torch.equal(x.grad, same.grad)


@needs_products
def test_gelu_of_products_with_other_shapes_is_left_to_torch() -> None:
    x, weight = random(2, 3, 48).requires_grad_(), random(32, 48, seed=1)  # 48 is no multiple of 32
    out = frozen_products.frozen_linear_gelu(x, weight, None)
    torch.testing.assert_close(out, F.gelu(F.linear(x, weight)), rtol=0.02, atol=0.02)
    out.sum().backward()
    assert x.grad is not None


@needs_products
def test_products_with_other_shapes_are_left_to_torch() -> None:
    for x, weight in (
        (random(4, 40), random(64, 40)),
        (random(4, 64), random(40, 64)),
        (random(4, 64).float(), random(32, 64).float()),
        (random(4, 32), random(32, 64).T[:32].T),
        (random(0, 32), random(32, 32)),
        (random(1, (1 << 15) + 32), random(32, (1 << 15) + 32)),  # scratch memory would be larger than the stack allows
        (random(32, 4).T[:, :4].repeat(1, 8).T.contiguous().T, random(32, 32)),
    ):
        assert not frozen_products._can_compute(x, weight)
        bias = torch.zeros(len(weight), dtype=x.dtype)
        torch.testing.assert_close(frozen_products.linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("rank", [1, 8, 16, 33])
@pytest.mark.parametrize("rows", [1, 32, 70])
@pytest.mark.parametrize("width", [64, 40])  # 40 is left to torch
def test_products_with_the_factors_of_an_adapter(rows: int, width: int, rank: int) -> None:
    x, low = random(rows, width + 32)[:, :width], random(rows, rank + 3, seed=1)[:, :rank]
    for factor in (random(width, rank, seed=2), random(rank, width, seed=3).T):  # in both orders of storage
        expected = 0.5 * x.double() @ factor.double()
        found = torch.empty(rows, rank + 1, dtype=HALF)[:, :rank]
        assert adapter_products.times_few(x, factor, 0.5, found) is found
        torch.testing.assert_close(found.double(), expected, **rounding(expected))
        y = random(rows, width, seed=4)
        expected = y.double() + low.double() @ factor.double().T
        torch.testing.assert_close(adapter_products.add_few(y, low, factor.T).double(), expected, **rounding(expected))
    expected = low.double().T @ x.double()
    for dtype, limits in ((torch.float32, {"rtol": 0.01, "atol": 0.02}), (HALF, {"rtol": 0.01, "atol": 0.1})):
        found = adapter_products.sum_of_few(low, x, dtype)
        torch.testing.assert_close(found.double(), expected, **limits)
        other = adapter_products.sum_of_few(low, x, dtype, transposed=True)
        assert torch.equal(other, found.T)
        assert found.is_contiguous()
        assert other.is_contiguous()
        assert found.dtype == other.dtype == dtype


def test_factors_that_would_not_fit_on_the_stack_are_left_to_torch() -> None:
    fits, large = random(1 << 14, 32), random((1 << 14) + 32, 32)
    for factor in (fits, large, random(2048 + 32, 256)):
        may = adapter_products._can_compute(random(1, len(factor)), factor, len(factor), factor.shape[1])
        assert may is (factor is fits and library.has_bf16_products())


@needs_products
def test_gradients_of_factors_are_fp32_sums() -> None:
    low, x = random(500, 8), random(500, 64, seed=1)
    found = adapter_products.sum_of_few(low, x, torch.float32)
    torch.testing.assert_close(found.double(), low.double().T @ x.double(), rtol=1e-5, atol=1e-4)


@needs_compiler
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (64, 128), (65, 144), (200, 272)])
def test_products_with_the_gain(rows: int, width: int) -> None:
    z, y = (random(rows + 1, width + 16, seed=i)[1:, 16:].contiguous() for i in (1, 2))
    bias, strided = random(width, seed=3), (1 + random(width, 2, seed=4).float() / 64)[:, 0]
    expected = (z.double() * strided.double()).to(HALF)
    assert gains.can_compute(z, strided)
    alone, plus = z.clone(), torch.empty_like(z)
    gains.times_gain(alone, strided, None, alone)
    assert torch.equal(alone, expected)
    again = z.clone()
    gains.times_gain(again, strided, bias, plus)
    assert torch.equal(again, expected)
    assert torch.equal(plus, expected + bias)
    gradient, sums = gains.times_gain_backward(z, y, strided)
    assert torch.equal(gradient, expected)
    exact = z.double() * y.double()
    assert ((sums.double() - exact.sum(0)).abs() <= 2**-23 * (8 + rows / 64) * exact.abs().sum(0)).all()


@needs_compiler
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("dropout", [0.1, 0.75])
@pytest.mark.parametrize("magnitude", [None, 1.5])
def test_dropout_of_an_adapter_is_that_of_its_seed(dropout: float, magnitude: float | None) -> None:
    rows, inputs, outputs, rank = 37, 48, 32, 4
    x, weight, dy = random(rows, inputs), random(outputs, inputs, seed=1), random(rows, outputs, seed=2)
    A, B = random(rank, inputs, seed=3).float() / 4, random(outputs, rank, seed=4).float() / 4
    m = None if magnitude is None else torch.full((outputs,), magnitude)
    given = [t.clone().requires_grad_() for t in (x, A, B)]
    to_matrix = Native(lambda stored, dtype: stored.to(dtype))
    torch.manual_seed(5)
    out = adapted_linear(given[0], (weight,), to_matrix, None, *given[1:], 0.5, dropout, m, m)
    torch.manual_seed(5)
    stays = torch.from_numpy(kept(rows * inputs, dropout, int(torch.randint(2**62, ())))).view(rows, inputs)
    wide = [t.double().requires_grad_() for t in (x, A.to(HALF), B.to(HALF))]
    low = (wide[0] * stays / (1 - dropout)) @ wide[1].T
    exact = (wide[0] @ weight.double().T + 0.5 * low @ wide[2].T) * (magnitude or 1.0)
    out.backward(dy)
    exact.backward(dy.double())
    for found, expected in [(out, exact), *((mine.grad, other.grad) for mine, other in zip(given, wide, strict=True))]:
        torch.testing.assert_close(found.detach().double(), expected.detach(), **rounding(expected.detach(), 3))


def test_what_the_gains_functions_do_not_take() -> None:
    z, gain = random(4, 32), torch.ones(32)
    others = [(z.float(), gain), (z, gain.double()), (z[:, :20].clone(), gain[:20]), (z.T.contiguous().T, gain)]
    others += [(z.view(2, 2, 32), gain), (z.to("meta"), gain)]
    assert gains.can_compute(z, gain) is library.available()
    assert not any(gains.can_compute(*pair) for pair in others)


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    q = random(4, 3, 20, 32)
    x, weight, bias = random(77, 64), random(256, 64), random(64, seed=1)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        wide = q.detach().requires_grad_()
        out = native_attention(wide, wide, wide, None, True, 1.0, 0.1, 5)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), wide)
        others = [
            native_dropout(x, 0.5, 3),
            norm(x, bias, bias, 1e-5),
            frozen_products.linear(x, weight, None),
            frozen_products.frozen_linear_gelu(x, weight, None),
            frozen_products.linear(x, weight, None, frozen_products.LowRankUpdate(x[:, :8], weight[:, :8].T)),
            gelu(x),
        ]
        others += [adapter_products.sum_of_few(x[:, :8], x, torch.float32), swiglu(x, x)]
        others += [adapter_products.add_few(x.clone(), x[:, :8], x[:8])]
        others += gains.times_gain_backward(x, x, torch.ones(64))
        others += [add_kept(x.clone(), x, DropoutMask.of(0.5, 3))]
        results.append([out, gradient, *others])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_compiler
@pytest.mark.parametrize("adapter", [LoRA(rank=4, targets="all-linear"), DoRA(rank=4, targets="all-linear"), None])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_model_has_the_same_loss_and_no_worse_gradients_than_with_torch(
    architecture: str, adapter: LoRA | None
) -> None:
    def trained(kernels: str, dtype: torch.dtype) -> tuple[float, Tensor, str]:
        torch.manual_seed(0)
        model = BertModel(BERT) if architecture == "bert" else LlamaForCausalLM(LlamaConfig(**LLAMA))
        model = model.to(HALF).to(dtype)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if adapter is None:
            model.requires_grad_(False).get_input_embeddings().requires_grad_(True)
        else:
            model = adapter.apply(model)
            for name, parameter in model.named_parameters():
                if name.endswith("lora_B"):
                    nn.init.normal_(parameter, std=0.1)
        use_lean_attention(model)
        use_lean_dropout(model)
        used = use_kernels(model, kernels, CPU, dtype)
        ids = torch.arange(24).view(3, 8) % 50
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        model.train()
        out = model(input_ids=ids, attention_mask=mask)
        loss = (out.logits if architecture == "llama" else out.last_hidden_state)[mask.bool()].float().square().mean()
        loss.backward()
        grads = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
        return float(loss), torch.cat(grads), used

    exact_loss, exact, used = trained("auto", torch.float32)
    assert used == "none"
    plain_loss, plain, used = trained("none", HALF)
    assert used == "none"
    loss, grads, used = trained("".join(("au", "to")), HALF)  # a word of a command line is not the literal's object
    assert used.startswith("native: attention")
    assert ("gelu" in used, "residual" in used) == (architecture == "bert",) * 2
    assert "norm" in used
    assert ("swiglu" in used) is (architecture == "llama")
    assert ("dropout" in used) is (architecture == "bert")
    assert abs(loss - exact_loss) <= 1.5 * abs(plain_loss - exact_loss) + 2e-3 * exact_loss
    assert (grads - exact).norm() <= 1.3 * (plain - exact).norm() + 1e-6


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "no-such-compiler")
    library.compiled.cache_clear()
    library._function.cache_clear()
    library.available.cache_clear()
    yield
    library.compiled.cache_clear()
    library._function.cache_clear()
    library.available.cache_clear()


@needs_compiler
@pytest.mark.parametrize(
    ("architecture", "functions"),
    [
        ("bert", {"attention", "dropout", "norm", "gelu"}),
        ("llama", {"attention", "norm", "swiglu"}),
    ],
)
def test_a_training_pass_calls_the_functions_that_the_model_has_a_use_for(
    architecture: str, functions: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = BertModel(BERT) if architecture == "bert" else LlamaForCausalLM(LlamaConfig(**LLAMA))
    model = model.to(HALF).requires_grad_(False)
    use_lean_attention(model)
    use_lean_dropout(model)
    used = set(use_native_kernels(model))
    assert functions <= used | {"dropout"}
    called: set[str] = set()
    call = library.call
    monkeypatch.setattr(library, "call", lambda name, *given: (called.add(name), call(name, *given))[1])
    x = random(2, 8, 64).requires_grad_()
    model.train()(inputs_embeds=x)[0].float().square().mean().backward()
    backward = {"attention_backward", "norm_backward"} | ({"multiply"} if "gelu" in functions else {"swiglu_backward"})
    beside = {"gelu", "multiply"} if "intermediate" in used else set()  # GELU beside a product
    assert called - {"product_with_frozen"} == (functions | backward) - beside
    called.clear()
    model.eval()(inputs_embeds=x)
    assert called == set()
    model.train()
    with torch.autocast("cpu", HALF):
        model(inputs_embeds=x)
    assert not called & {"norm", "gelu", "swiglu"}
    called.clear()
    model.float().train()(inputs_embeds=x.float())
    assert called <= {"dropout"}


@needs_compiler
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_hooks_of_each_module_are_called(architecture: str) -> None:
    """As of a user who looks at activations: a function that computes several modules calls none of them."""
    torch.manual_seed(0)
    model = BertModel(BERT) if architecture == "bert" else LlamaForCausalLM(LlamaConfig(**LLAMA))
    model = model.to(HALF).requires_grad_(False).train()
    use_lean_attention(model)
    use_lean_dropout(model)
    x, seen = random(2, 8, 64), list[str]()

    def names() -> set[str]:
        seen.clear()
        model(inputs_embeds=x)
        return set(seen)

    handles = [
        module.register_forward_hook(lambda *_, name=name: seen.append(name)) for name, module in model.named_modules()
    ]
    expected = names()
    use_native_kernels(model)
    assert names() == expected
    for handle in handles:
        handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    with_all = names()
    everywhere.remove()
    assert {"BertIntermediate", "Linear", "GELUActivation"} <= with_all or architecture == "llama"


def test_without_a_compiler_everything_is_torchs_and_asking_for_c_is_refused(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SLOW", frozenset())  # else torch is not used either
    assert not library.available()
    with pytest.raises(library.CompilerError, match="there is no C compiler"):
        use_native_kernels(nn.ReLU())
    model = BertModel(BERT).to(HALF)
    assert use_kernels(model, "auto", CPU, HALF) == "none"
    assert not any(getattr(module, "native", False) for module in model.modules())
    sentence = "there is no C compiler no-such-compiler on the PATH; install a C compiler such as gcc, or give auto"
    with pytest.raises(UserError, match=sentence):
        use_kernels(model, "native", CPU, HALF)


@needs_compiler
def test_a_compiler_that_fails_is_said_and_training_goes_on_with_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, no_compiler: None
) -> None:
    assert use_kernels(BertModel(BERT).to(HALF), "auto", CPU, HALF) == "none"
    assert not capsys.readouterr().err  # without a compiler there is nothing to say
    broken = tmp_path / "broken-cc"
    broken.write_text('#!/bin/sh\necho "error: out of order" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert use_kernels(BertModel(BERT).to(HALF), "auto", CPU, HALF) == "none"
    assert "failed (error: out of order); training runs without the C functions" in capsys.readouterr().err
    broken.write_text("no program\n")
    assert use_kernels(BertModel(BERT).to(HALF), "auto", CPU, HALF) == "none"
    assert f"{broken} cannot be run ([Errno 8] Exec format error" in capsys.readouterr().err


def test_native_kernels_are_refused_on_gpus_and_in_other_dtypes() -> None:
    model = BertModel(BERT)
    assert use_kernels(model, "auto", CPU, torch.float32) == "none"
    with pytest.raises(UserError, match="runs on CPUs in bf16, and this run is in float32; give auto or none"):
        use_kernels(model, "native", CPU, torch.float32)
    with pytest.raises(UserError, match="runs on CPUs in bf16, and this run is on cuda; give auto or none"):
        use_kernels(model, "native", torch.device("cuda"), HALF)
    with pytest.raises(UserError, match="model.kernels native and model.compile_blocks fuse the same operations"):
        use_kernels(model, "native", CPU, HALF, compiled=True)


@needs_compiler
def test_a_compiler_that_fails_is_named_and_the_compiled_file_is_used_again(tmp_path: Path) -> None:
    code = "from litpeft.ops.native import library; print(library.compiled()._name)"
    compiler = tmp_path / "counting-cc"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec cc "$@"\n')
    compiler.chmod(0o755)
    environment = os.environ | {"LITPEFT_CACHE": str(tmp_path / "cache"), "CC": str(compiler)}
    for calls in (2, 3):  # version and compile; then the version only
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        assert Path(done.stdout.strip()).parent == tmp_path / "cache" / "kernels"
        assert len((tmp_path / "calls").read_text().splitlines()) == calls
    assert [path.suffix for path in (tmp_path / "cache" / "kernels").iterdir()] == [".so"]
    compiler.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo x;; *) echo "error: no such option" >&2; exit 1;; esac'
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "CompilerError" in done.stderr
    assert "failed (error: no such option)" in done.stderr


def test_the_structures_have_the_layout_that_the_c_file_reads() -> None:
    mask = DropoutMask.of(0.25, 1234567)
    assert mask.share == 2**30
    assert mask.first_key + (mask.second_key << 32) == 0x599ED017FB08FC85  # the first number of SplitMix64's author
    assert mask.factor == pytest.approx(4 / 3)
    assert DropoutMask.of(1.0 - 1e-12, 0).share == 2**32 - 1  # not 2^32, which is 0


@pytest.mark.parametrize("width", [16, 24, 32, 40])
def test_modules_of_other_widths_are_left_to_torch(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """C reads and writes 16 numbers at a time."""
    monkeypatch.setattr(library, "compiled", lambda: None)
    called = []
    monkeypatch.setattr(library, "call", lambda name, *_: called.append(name))
    modules = nn.ModuleList([nn.LayerNorm(width), nn.GELU()]).to(HALF).requires_grad_(False).train()
    monkeypatch.setattr(library, "has_bf16_products", lambda: False)
    use_native_kernels(modules)
    for module in modules:
        module(random(16, width))
    assert called == (["norm", "gelu"] if width % 16 == 0 else [])


def test_autocast_is_off_only_inside() -> None:
    x = torch.zeros(2)
    with torch.autocast("cpu", HALF):
        with without_autocast(x):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    with without_autocast(x):
        assert not torch.is_autocast_enabled("cpu")
