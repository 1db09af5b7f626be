"""Dropout masks: shares, seeds, and the replacement of a model's nn.Dropout."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from litpeft.ops.dropout import Dropout, add_zeroed, input_mask, keep_mask, new_seed, use_lean_dropout, zeroed
from litpeft.ops.native import library
from litpeft.ops.native.dropout import DropoutMask


def test_the_mask_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    x = torch.empty(64, 33)
    assert torch.equal(keep_mask(x, 0.5, 7), keep_mask(x, 0.5, 7))
    assert torch.equal(keep_mask(x, 0.5, 7), keep_mask(x.bfloat16(), 0.5, 7))  # depends only on the shape
    assert not torch.equal(keep_mask(x, 0.5, 7), keep_mask(x, 0.5, 8))
    assert set(keep_mask(x, 0.5, 7).unique().tolist()) == {0, 1}


def test_the_mask_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    keep_mask(torch.empty(100), 0.5, 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(), (0, 5), (1,), (2,), (3,), (5,), (7, 3), (4, 4)])
def test_the_mask_has_the_shape_of_its_input(shape: tuple[int, ...]) -> None:
    assert keep_mask(torch.empty(shape), 0.5, 1).shape == shape


@pytest.mark.parametrize("dropout", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_share_of_zeros_is_the_dropout_in_every_column_of_a_draw(dropout: float) -> None:
    n = 400_000
    zeros = keep_mask(torch.empty(n // 4, 4), dropout, 11) == 0  # one draw serves four numbers
    for some in (zeros, *zeros.T):
        deviation = (dropout * (1 - dropout) / some.numel()) ** 0.5
        assert abs(float(some.double().mean()) - dropout) < 5 * deviation + 2**-17
    pairs = [float((a & b).double().mean()) for a, b in itertools.combinations(zeros.T, 2)]
    both = dropout**2
    assert all(abs(pair - both) < 5 * (both * (1 - both) / (n // 4)) ** 0.5 + 2**-15 for pair in pairs)  # independent


@pytest.mark.parametrize("dropout", [1e-6, 1 - 1e-6])
def test_dropout_near_zero_and_near_one(dropout: float) -> None:
    assert abs(float(keep_mask(torch.empty(1000), dropout, 1).double().mean()) - (1 - dropout)) < 0.01


def test_the_dropout_layer_zeroes_scales_and_passes_gradients() -> None:
    torch.manual_seed(0)
    layer = Dropout(0.3)
    x = torch.randn(500, 400, dtype=torch.float64).add_(10).requires_grad_()
    out = layer(x)
    zero = out == 0
    assert abs(float(zero.double().mean()) - 0.3) < 5 * (0.3 * 0.7 / x.numel()) ** 0.5
    torch.testing.assert_close(out, torch.where(zero, 0, x / 0.7), rtol=1e-14, atol=0)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(zero, 0, torch.ones_like(x) / 0.7), rtol=1e-14, atol=0)


def test_each_call_draws_a_new_mask_and_the_global_state_repeats_it() -> None:
    layer, x = Dropout(0.5), torch.ones(1000)
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    torch.set_rng_state(state)
    assert not torch.equal(first, second)
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropout_of_zero_and_one_equal_torch(share: float) -> None:
    x = torch.randn(10)
    assert torch.equal(Dropout(share)(x), nn.Dropout(share)(x))


def test_the_layer_draws_the_mask_of_a_seed() -> None:
    x, layer = torch.ones(30, 8, requires_grad=True), Dropout(0.3).train()
    torch.manual_seed(1)
    out = layer(x)
    torch.manual_seed(1)
    kept = keep_mask(x, 0.3, new_seed())
    assert torch.equal(out != 0, kept.bool())
    assert torch.allclose(out[kept.bool()], torch.tensor(1 / 0.7))


def test_nothing_is_dropped_in_evaluation() -> None:
    x = torch.randn(10)
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_only_nn_dropout_layers_are_replaced() -> None:
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Dropout1d(0.2)))
    use_lean_dropout(model)
    assert type(model[0]) is Dropout
    assert model[0].p == 0.2
    assert type(model[1][0]) is nn.Dropout1d


@pytest.mark.parametrize("available", [False, True])
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 36), torch.bfloat16), ((3, 36), torch.bfloat16), ((4, 36), torch.float32)]
)
def test_an_adapter_draws_its_mask_in_c_only_where_c_can_compute(
    shape: tuple[int, int], dtype: torch.dtype, native: bool, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C reads and writes 16 bf16 numbers at a time."""
    monkeypatch.setattr(library, "available", lambda: available)
    x = torch.arange(1.0, 1 + shape[0] * shape[1]).view(shape).to(dtype)
    mask = input_mask(x, 0.5, 7, native)
    assert input_mask(x, 0.5, None, native) is None
    if native and available and dtype == torch.bfloat16 and shape == (4, 36):
        assert isinstance(mask, DropoutMask)
        assert mask.factor == 1
    else:
        assert torch.equal(mask, keep_mask(x, 0.5, 7))
        assert torch.equal(zeroed(x, mask), x * mask)
        assert torch.equal(add_zeroed(x.clone(), x, mask), x + x * mask)
    assert zeroed(x, None) is x
