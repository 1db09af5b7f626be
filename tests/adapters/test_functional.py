"""Autograd functions of adapted layers: values against dense float64 formulas, and memory use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from litpeft.adapters.functional import adapted_linear, frozen_linear
from litpeft.adapters.gain import low_rank_norm, times_backward, times_plus, with_gain
from litpeft.ops.dropout import keep_mask
from litpeft.ops.row_chunks import CHUNK

SCALING = 1.5
UNIT = 2**-8  # largest relative error of one rounding to bf16


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype)


def tensors(
    lead: tuple[int, ...], inputs: int, outputs: int, rank: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    """Return x, the frozen weight and norm, and trainable tensors; magnitudes have both signs and are not near zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = draw(outputs, inputs) / inputs**0.5
    A, B = draw(rank, inputs) / inputs**0.5, draw(outputs, rank) / rank**0.5
    signs = draw(outputs).sign()
    drawn = {
        "x": draw(*lead, inputs),
        "weight": weight,
        "bias": draw(outputs),
        "A": A,
        "B": B,
        "magnitude": (0.5 + draw(outputs).abs()) * signs,
        "norm": (weight + SCALING * B @ A).norm(dim=1) + 0.1,  # any constant works here
    }
    return {name: tensor.to(dtype) for name, tensor in drawn.items()}


def dense(t: dict[str, Tensor], bias: bool, magnitude: bool, mask: Tensor | float = 1.0) -> Tensor:
    """Compute the formulas of the module docstring with a dense BA and plain autograd; the mask is on the branch only."""
    out = t["x"] @ t["weight"].T + (t["x"] * mask) @ (SCALING * t["B"] @ t["A"]).T
    if magnitude:
        out = t["magnitude"] / t["norm"] * out
    return out + t["bias"] if bias else out


def ours(t: dict[str, Tensor], bias: bool, magnitude: bool, dropout: float = 0.0) -> Tensor:
    m, gain = (t["magnitude"], t["magnitude"].detach() / t["norm"]) if magnitude else (None, None)
    return adapted_linear(
        t["x"], (t["weight"],), cast, t["bias"] if bias else None, t["A"], t["B"], SCALING, dropout, m, gain
    )


def leaves(t: dict[str, Tensor], bias: bool, magnitude: bool) -> list[str]:
    return ["x", "A", "B", *(["bias"] if bias else []), *(["magnitude"] if magnitude else [])]


def trainable(t: dict[str, Tensor], names: list[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return copies; the named ones are leaves with gradients."""
    return {k: v.detach().to(dtype or v.dtype).clone().requires_grad_(k in names) for k, v in t.items()}


# --- values and gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_in_float64_equal_finite_differences(bias: bool, magnitude: bool, dropout: float) -> None:
    t = tensors((2, 3), 5, 4, 3)
    names = leaves(t, bias, magnitude)

    def function(*given: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same dropout mask each time
        return ours(t | dict(zip(names, given, strict=True)), bias, magnitude, dropout)

    assert torch.autograd.gradcheck(function, [t[name].requires_grad_() for name in names])


@pytest.mark.parametrize("dim", [-1, 1])
def test_gradients_of_the_gain_in_float64_equal_finite_differences(dim: int) -> None:
    torch.manual_seed(0)
    out = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    magnitude = torch.randn(out.shape[dim], dtype=torch.float64, requires_grad=True)
    norm = torch.rand(out.shape[dim], dtype=torch.float64) + 0.5
    # a copy, because the argument is overwritten
    assert torch.autograd.gradcheck(lambda o, m: with_gain(o.clone(), m, m.detach() / norm, dim), (out, magnitude))


def test_a_magnitude_of_zero_gets_no_gradient() -> None:
    """Its output is zero whatever the weight; from the output, 0 / 0 would be NaN."""
    z, magnitude = torch.randn(3, 4), torch.tensor([1.0, 0.0, 2.0, -1.0], requires_grad=True)
    norm = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with_gain(z.clone().requires_grad_().clone(), magnitude, magnitude.detach() / norm).sum().backward()
    expected = z.sum(0) / norm
    expected[1] = 0
    torch.testing.assert_close(magnitude.grad, expected)


def test_gradients_of_a_frozen_layer_in_float64_equal_finite_differences() -> None:
    t = tensors((2, 3), 5, 4, 3)
    x, bias = t["x"].requires_grad_(), t["bias"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: frozen_linear(x, (t["weight"],), cast, b), (x, bias))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    lead=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    inputs=st.integers(1, 24),
    outputs=st.integers(1, 24),
    rank=st.integers(1, 32),
    bias=st.booleans(),
    magnitude=st.booleans(),
    dropout=st.sampled_from([0.0, 0.25, 0.9]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_values_and_all_gradients_equal_the_dense_formula(
    lead: tuple[int, ...],
    inputs: int,
    outputs: int,
    rank: int,
    bias: bool,
    magnitude: bool,
    dropout: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    drawn = tensors(lead, inputs, outputs, rank, dtype, seed)
    names = leaves(drawn, bias, magnitude)
    mine, exact = trainable(drawn, names), trainable(drawn, names, torch.float64)
    torch.manual_seed(seed)
    mask: Tensor | float = 1.0
    if dropout:
        mask = keep_mask(drawn["x"].reshape(-1, inputs), dropout, int(torch.randint(2**62, ()))).view(*lead, inputs)
        mask = mask.double() / (1 - dropout)
    torch.manual_seed(seed)
    out, expected = ours(mine, bias, magnitude, dropout), dense(exact, bias, magnitude, mask)
    assert out.dtype == dtype
    assert out.shape == (*lead, outputs)
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    out.backward(upstream)
    expected.backward(upstream.double())
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5

    def near(a: Tensor, b: Tensor, what: str) -> None:
        assert a.shape == b.shape, what
        if a.numel():
            size = max(1.0, float(b.detach().abs().max())) / (1 - dropout)
            assert float((a.double() - b).detach().abs().max()) <= tolerance * size, what

    near(out, expected, "output")
    for name in names:
        assert mine[name].grad.dtype == dtype
        near(mine[name].grad, exact[name].grad, name)
    assert mine["weight"].grad is None


@pytest.mark.parametrize("frozen", ["x", "bias", "A", "B", "magnitude"])
def test_only_tensors_with_requires_grad_get_gradients(frozen: str) -> None:
    t = tensors((6,), 5, 4, 3)
    everything = trainable(t, leaves(t, True, True))
    ours(everything, True, True).square().sum().backward()
    fewer = trainable(t, [name for name in leaves(t, True, True) if name != frozen])
    ours(fewer, True, True).square().sum().backward()
    for name in leaves(t, True, True):
        if name == frozen:
            assert fewer[name].grad is None
        else:
            assert torch.equal(fewer[name].grad, everything[name].grad), name


def test_rows_and_upstream_gradients_need_not_be_contiguous() -> None:
    t = tensors((4, 6), 5, 4, 3)
    straight = trainable(t, leaves(t, True, True))
    crooked = trainable(t, leaves(t, True, True))
    upstream = torch.randn(4, 6, 4, dtype=torch.float64)
    ours(straight, True, True).backward(upstream)
    x = crooked["x"].transpose(0, 1).contiguous().transpose(0, 1)
    assert not x.is_contiguous()
    out = ours(crooked | {"x": x}, True, True)
    out.backward(upstream.transpose(0, 1).contiguous().transpose(0, 1))
    for name in leaves(t, True, True):
        torch.testing.assert_close(crooked[name].grad, straight[name].grad, rtol=1e-12, atol=1e-12)


# --- DoRA's norm


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 24),
    outputs=st.integers(1, 8),
    rank=st.integers(1, 12),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_the_norm_is_that_of_the_dense_rows(
    groups: int, inputs: int, outputs: int, rank: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    w = torch.randn(groups, outputs, inputs, dtype=dtype)
    A, B = torch.randn(groups, rank, inputs, dtype=dtype), torch.randn(groups, outputs, rank, dtype=dtype)
    squares = w.double().square().sum(-1).flatten().to(dtype)
    norm = low_rank_norm(squares, w, A, B, SCALING)
    low = SCALING * B.double() @ A.double()
    exact = (w.double() + low).norm(dim=-1).flatten()
    assert norm.dtype == dtype
    # the terms may cancel, so the error of the square is bounded relative to their size; A A^T is computed first, so with
    # rank > inputs the terms can be larger than the product BA
    size = (
        (w.double().norm(dim=-1) + SCALING * B.double().norm(dim=-1) * A.double().norm(dim=(1, 2))[:, None])
        .flatten()
        .square()
    )
    bound = 4 * (inputs + rank) * torch.finfo(dtype).eps * size
    assert ((norm.double().square() - exact.square()).abs() <= bound).all()


def test_a_row_of_zeros_gives_no_nan() -> None:
    w = torch.randn(1, 4, 6)
    w[0, 2] = 0
    A, B = torch.randn(1, 3, 6), torch.zeros(1, 4, 3)
    norm = low_rank_norm(w.square().sum(-1).flatten(), w, A, B, SCALING)
    assert (norm > 0).all()
    out = with_gain(torch.randn(5, 6) @ w[0].T, w[0].norm(dim=1), w[0].norm(dim=1) / norm)
    assert out.isfinite().all()
    assert (out[:, 2] == 0).all()


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 1e-1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_is_accurate_where_the_adapter_cancels_the_weight(dtype: torch.dtype, distance: float) -> None:
    torch.manual_seed(0)
    A, B = torch.randn(1, 8, 32, dtype=dtype), torch.randn(1, 16, 8, dtype=dtype)
    w = -SCALING * B @ A * (1 + distance * torch.randn(1, 16, 32, dtype=dtype))
    norm = low_rank_norm(w.square().sum(-1).flatten(), w, A, B, SCALING)
    exact = (w.double() + SCALING * B.double() @ A.double()).norm(dim=-1).flatten()
    size = w.double().square().sum(-1).flatten()
    assert norm.isfinite().all()
    assert (norm > 0).all()
    assert ((norm.double().square() - exact.square()).abs() <= 64 * torch.finfo(dtype).eps * size).all()


# --- dropout's mask


def test_dropout_keeps_the_mean_and_affects_only_the_low_rank_branch() -> None:
    t = tensors((3,), 40, 6, 4)
    frozen = t["x"] @ t["weight"].T
    torch.manual_seed(0)
    outs = torch.stack([ours(t, False, False, 0.5) for _ in range(2000)])
    spread = outs.std(0) / len(outs) ** 0.5
    assert ((outs.mean(0) - ours(t, False, False)).abs() < 5 * spread).all()
    assert (outs.std(0) > 0).all()
    without = t | {"B": torch.zeros_like(t["B"])}
    torch.testing.assert_close(ours(without, False, False, 0.5), frozen, rtol=1e-13, atol=1e-13)


# --- bf16


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("rows", [3, 3 * CHUNK // 64])  # in one piece, and in several
def test_the_gain_in_bf16_has_one_rounding(rows: int, native: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 64, dtype=torch.bfloat16)
    gain = 1 + 0.01 * torch.randn(64)
    exact = x.double() * gain.double()
    out, same = times_plus(x.clone(), gain, native=native)
    assert out is same
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= UNIT * (1 + 2**-12) * exact.abs()).all()
    coarse = (x * gain.bfloat16()).double() - exact  # the error with a gain in bf16: larger than the bound
    assert (coarse.abs() > UNIT * (1 + 2**-12) * exact.abs()).any()
    bias = torch.randn(64, dtype=torch.bfloat16)
    kept_apart, shifted = times_plus(x.clone(), gain, bias, native=native)
    assert torch.equal(kept_apart, out)
    assert torch.equal(shifted, out + bias)
    first, second = times_plus(x.clone(), gain, bias, keep=False, native=native)
    assert first is second
    assert torch.equal(second, shifted)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("rows", [3, 3 * CHUNK // 64])
def test_the_magnitude_gradient_in_bf16_has_one_rounding_per_output(rows: int, native: bool) -> None:
    torch.manual_seed(0)
    z, dy = torch.randn(rows, 64, dtype=torch.bfloat16), torch.randn(rows, 64, dtype=torch.bfloat16)
    magnitude, norm = torch.randn(64), torch.rand(64) + 0.5
    scaled = times_plus(z.clone(), magnitude / norm)[0]
    terms = dy.double() * z.double() / norm.double()
    dz, dm = times_backward(dy, scaled, magnitude, magnitude / norm, native)
    assert torch.equal(dz, times_plus(dy.clone(), magnitude / norm)[0])
    error = (dm.double() - terms.sum(0)).abs()
    assert (error <= (UNIT + 2**-24 * (rows + 8)) * terms.abs().sum(0)).all()
    ones = torch.ones(rows, 64, dtype=torch.bfloat16)
    one = torch.ones(64)
    assert (times_backward(ones, ones, one, one, native)[1] == rows).all()  # a sum in bf16 would stop at 256


@pytest.mark.parametrize("magnitude", [False, True])
def test_bf16_outputs_are_within_the_sum_of_their_roundings(magnitude: bool) -> None:
    t = tensors((200,), 96, 80, 8)
    t |= {name: t[name].bfloat16() for name in ("x", "weight", "bias")}
    t |= {name: t[name].float() for name in ("A", "B", "magnitude", "norm")}
    out = ours(t, True, magnitude)
    assert out.dtype == torch.bfloat16
    exact = {name: tensor.double() for name, tensor in t.items()}
    expected = dense(exact, True, magnitude)
    size = {name: tensor.abs() for name, tensor in exact.items()}
    gain = size["magnitude"] / size["norm"] if magnitude else torch.ones(80, dtype=torch.float64)
    branch = SCALING * size["x"] @ size["A"].T @ size["B"].T
    z = dense(exact, False, False)
    # A, B and their product with x are rounded, then the frozen product, the sum, the scaled sum and that with the bias
    roundings = gain * (3 * branch + (exact["x"] @ exact["weight"].T).abs() + z.abs())
    roundings = roundings + (gain * z.abs() if magnitude else 0) + size["bias"] + expected.abs()
    sums = gain * (size["x"] @ size["weight"].T + branch) * 2**-24 * 100  # products are summed in fp32
    assert ((out.double() - expected).abs() <= UNIT * 1.02 * roundings + sums).all()
    assert ((out.double() - expected).norm() / expected.norm()) < 2 * UNIT


@pytest.mark.parametrize("magnitude", [False, True])
def test_bf16_gradients_are_near_float64_and_have_the_dtype_of_their_tensor(magnitude: bool) -> None:
    t = tensors((300,), 64, 48, 8)
    t |= {name: t[name].bfloat16() for name in ("x", "weight", "bias")}
    t |= {name: t[name].float() for name in ("A", "B", "magnitude", "norm")}
    names = leaves(t, True, magnitude)
    mine, exact = trainable(t, names), trainable(t, names, torch.float64)
    upstream = torch.randn(300, 48).bfloat16()
    ours(mine, True, magnitude).backward(upstream)
    dense(exact, True, magnitude).backward(upstream.double())
    for name in names:
        assert mine[name].grad.dtype == mine[name].dtype, name
        error = (mine[name].grad.double() - exact[name].grad).norm() / exact[name].grad.norm()
        assert error < 2 * UNIT, (name, error)


# --- memory


def saved_by(function: Callable[[], Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the output and the tensors saved for backward, one per storage."""
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    return out, found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("magnitude", [False, True])
def test_only_the_documented_tensors_are_saved_for_backward(
    magnitude: bool, bias: bool, dtype: torch.dtype, dropout: float
) -> None:
    t = tensors((4, 5), 24, 36, 3)
    t = {name: tensor.to(dtype if name in ("x", "weight") else torch.float32) for name, tensor in t.items()}
    for name in leaves(t, bias, magnitude):
        t[name].requires_grad_()
    out, saved = saved_by(lambda: ours(t, bias, magnitude, dropout))
    given = {t[name].untyped_storage().data_ptr(): name for name in t}
    by_reference = {given[place] for place in saved if place in given}
    assert by_reference == {"x", "weight", *leaves(t, bias, magnitude)}
    made = [(tuple(tensor.shape), tensor.dtype) for place, tensor in saved.items() if place not in given]
    assert made == [((20, 3), dtype), *([((36,), torch.float32), ((20, 36), dtype)] if magnitude else [])]
    if magnitude and not bias:  # then the saved tensor is the output
        assert out.untyped_storage().data_ptr() in saved


def test_a_frozen_layer_saves_only_its_stored_weight() -> None:
    t = tensors((20,), 24, 36, 3, torch.bfloat16)
    x = t["x"].requires_grad_()
    _, saved = saved_by(lambda: frozen_linear(x, (t["weight"],), partial(cast), None))
    assert list(saved) == [t["weight"].untyped_storage().data_ptr()]


def test_the_gain_saves_only_its_output_and_works_in_place() -> None:
    out = torch.randn(6, 5)
    leaf = torch.zeros(6, 5, requires_grad=True)
    given = out + leaf
    magnitude, norm = torch.randn(5, requires_grad=True), torch.rand(5) + 0.5
    gain = magnitude.detach() / norm
    result, saved = saved_by(lambda: with_gain(given, magnitude, gain))
    places = [tensor.untyped_storage().data_ptr() for tensor in (given, magnitude, gain)]
    assert set(saved) == set(places)
    assert result.data_ptr() == given.data_ptr()
    torch.testing.assert_close(result, out * gain)


class Made(TorchDispatchMode):
    """Records every new tensor that an operation allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []  # referenced, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:
                self.tensors.append(leaf)
        return result

    def as_large_as(self, numbers: int) -> list[tuple[int, torch.dtype]]:
        """Return size and dtype of the tensors with at least this many numbers."""
        return sorted(((t.numel(), t.dtype) for t in self.tensors if t.numel() >= numbers), key=str)


@pytest.mark.parametrize("magnitude", [False, True])
def test_bf16_allocates_no_fp32_copy_and_only_one_tensor_of_the_output_size(magnitude: bool) -> None:
    rows, inputs, outputs = 2048, 384, 256  # a chunk is a quarter of the output, and the weight a fifth
    t = tensors((rows,), inputs, outputs, 4)
    t = {
        name: tensor.to(torch.bfloat16 if name in ("x", "weight", "bias") else torch.float32)
        for name, tensor in t.items()
    }
    for name in leaves(t, False, magnitude):
        t[name].requires_grad_()
    half = rows * outputs // 2
    with Made() as made:
        out = ours(t, False, magnitude)
    assert made.as_large_as(half) == [(rows * outputs, torch.bfloat16)]
    upstream = torch.ones_like(out)
    with Made() as made:
        out.backward(upstream)
    scaled = [(rows * outputs, torch.bfloat16)] if magnitude else []  # dy times the gain, for the gradient of x
    assert made.as_large_as(half) == sorted([*scaled, (rows * inputs, torch.bfloat16)], key=str)
