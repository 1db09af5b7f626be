"""Autograd functions of the adapted layers, which save as little as possible for backward.

Shapes: x (N, in), W (out, in), A (r, in), B (out, r), scaling s (scalar), DoRA's magnitude m (out) and norm n (out).

    LoRA   y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ               Hu et al. 2021, eq. 3, https://arxiv.org/abs/2106.09685
    DoRA   y = m/n ⊙ (x Wᵀ + s (drop(x) Aᵀ) Bᵀ) + b       Liu et al. 2024, eq. 5 and 11, https://arxiv.org/abs/2402.09353
           n = ‖W + s BA‖ (row norms), a constant in backward (section 4.3 of the paper); m/n is called the gain

A small model on a GPU spends its time on kernel launches, so both directions use few: s is a factor inside of two
products, casts and gains are computed once per optimizer step (`Prepared`), and gradients have their parameter's dtype
and layout. `tests/profiling/test_launches.py` counts the launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from litpeft.adapters.gain import times_backward, times_plus
from litpeft.ops import products
from litpeft.ops.dropout import add_zeroed, functional_mask, input_mask, new_seed, zeroed
from litpeft.ops.native import adapter_products, frozen_products, library
from litpeft.ops.native.frozen_products import LowRankUpdate
from litpeft.ops.overridable import overridable

WIDE_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()  # torch.mm with `out_dtype`: torch 2.8 and newer
Product = Callable[[Tensor, "Tensor | None"], Tensor]
ToMatrix = Callable[..., Tensor]  # (*stored tensors, dtype=...) -> W (out, in): casts, transposes or dequantises


@dataclass(frozen=True)
class Native:
    """A function `to_matrix` with whose W products are computed by `ops.native` or `ops.products`."""

    to_matrix: ToMatrix

    def __call__(self, *stored: Tensor, dtype: torch.dtype) -> Tensor:
        return self.to_matrix(*stored, dtype=dtype)


def with_native_products(layer: nn.Module, to_matrix: ToMatrix) -> ToMatrix:
    """Return what a call of this layer uses as `to_matrix`; int8 weights have products of their own.

    Evaluation computes with torch, unless it would take ten times as long.
    """
    used = layer.native and (layer.training or not library.available())
    return Native(to_matrix) if used and not hasattr(to_matrix, "product") else to_matrix


@dataclass(eq=False)
class Prepared:
    """Tensors of one adapted layer that are computed once per optimizer step and used by all of its calls.

    Attributes:
        A: A (r, in) in the compute dtype, without gradient; None if the parameter has this dtype.
        B: B (out, r), likewise.
        gain: m/n (out); None for LoRA, and where each call computes the gain.
        key: cache key: compute dtype and identity of the values from which the tensors were computed.
        used: whether a backward pass has used the tensors; the parameters may be updated after a backward pass.
        whole: the object whose parts these tensors are, for one expert of a mixture.
    """

    A: Tensor | None
    B: Tensor | None
    gain: Tensor | None = None
    key: tuple[object, ...] = ()
    used: bool = False
    whole: Prepared | None = None

    def fits(self, A: Tensor, dtype: torch.dtype) -> bool:
        """Return whether the tensors can hold the casts of A, and of its B, to this dtype."""
        if self.A is None:
            return self.key[0] == dtype == A.dtype
        return self.A.dtype == dtype != A.dtype and self.A.shape == A.shape and self.A.device == A.device

    def factors(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B in the compute dtype, given the parameters."""
        return (A, B) if self.A is None else (self.A, self.B)


@overridable
def adapted_linear(
    x: Tensor,
    stored: tuple[Tensor, ...],
    to_matrix: ToMatrix,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float = 0.0,
    magnitude: Tensor | None = None,
    gain: Tensor | None = None,
    weight: Tensor | Product | None = None,
    prepared: Prepared | None = None,
) -> Tensor:
    """Compute a frozen linear layer with LoRA, or with DoRA if a magnitude is given.

    Saved for backward: x, s x Aᵀ (N, r), the parameters and the stored form of W; with DoRA also the gain and the
    output before the bias. Dropout masks are drawn again in backward from their seed. Compiled calls draw masks without
    a seed, because a seed on the host would break the graph; the compiler decides whether to keep or to redraw them.

    Args:
        x: (..., in), in the compute dtype.
        stored: the tensors of the frozen weight, the arguments of `to_matrix`.
        to_matrix: returns W (out, in) in the dtype that it is given.
        bias: (out) or None.
        A: (r, in), any dtype.
        B: (out, r), any dtype.
        scaling: s.
        dropout: dropout probability of the input of A.
        magnitude: m (out), or None for LoRA.
        gain: m/n (out), a constant for autograd; None for LoRA, or if `prepared` has it.
        weight: W, if the caller has computed it already, or a function that returns x Wᵀ + b, given x (N, in) and b;
            used in forward and not saved.
        prepared: A and B in the dtype of x, and the gain, computed before; None to cast A and B here.

    Returns:
        (..., out), in the dtype of x.
    """
    rows = x.reshape(-1, x.shape[-1])  # (N, in); reshaped here: a view from a Function cannot be changed in place
    seed = mask = None
    if dropout and torch.compiler.is_compiling():
        mask = functional_mask(rows, dropout)
    elif dropout:
        seed = new_seed()
    options = scaling / (1 - dropout), dropout, seed, to_matrix, weight, prepared
    out = _AdaptedLinear.apply(rows, bias, A, B, magnitude, gain, mask, *options, *stored)
    return out.view(*x.shape[:-1], out.shape[-1])


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        magnitude: Tensor | None,
        gain: Tensor | None,
        mask: Tensor | None,
        factor: float,
        dropout: float,
        seed: int | None,
        to_matrix: ToMatrix,
        weight: Tensor | Product | None,
        prepared: Prepared | None,
        *stored: Tensor,
    ) -> Tensor:
        dtype = rows.dtype
        a, b = (A.to(dtype), B.to(dtype)) if prepared is None else prepared.factors(A, B)
        native = isinstance(to_matrix, Native)
        drawn = input_mask(rows, dropout, seed, native) if mask is None else mask
        low = scaled_product(zeroed(rows, drawn), a.T, factor, native)  # (N, r)
        added = bias.to(dtype) if bias is not None else None
        plain = added if magnitude is None else None
        out = frozen_product(rows, stored, to_matrix, plain, weight, LowRankUpdate(low, b.T))
        scaled = None
        if magnitude is not None:
            m_over_n = prepared.gain if gain is None else gain
            scaled, out = times_plus(out, m_over_n, added, any(ctx.needs_input_grad), native)
        # `prepared` is not saved for backward: a later call writes the same values into its tensors. If the values
        # change, so do A, B or m, whose change autograd reports.
        ctx.save_for_backward(rows, low, bias, A, B, magnitude, gain, mask, scaled, *stored)
        ctx.settings = factor, dropout, seed, to_matrix, prepared
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, bias, A, B, magnitude, gain, mask, scaled, *stored = ctx.saved_tensors
        factor, dropout, seed, to_matrix, prepared = ctx.settings
        need_x, need_bias, need_A, need_B = ctx.needs_input_grad[:4]
        dx = dbias = dA = dB = dm = None
        if prepared is None:
            a, b = A.to(dy.dtype), B.to(dy.dtype)
        else:
            a, b = prepared.factors(A, B)
            (prepared.whole or prepared).used = True
        if need_bias:
            dbias = dy.sum(0, dtype=bias.dtype)
        native = isinstance(to_matrix, Native)
        if magnitude is not None:
            dy, dm = times_backward(dy, scaled, magnitude, prepared.gain if gain is None else gain, native)
        dlow = scaled_product(dy, for_product(b), factor, native)  # (N, r)
        if mask is None and (need_A or need_x):
            mask = input_mask(rows, dropout, seed, native)
        if need_A:
            dA = matrix_product(dlow.T, zeroed(rows, mask), A.dtype, native)
        if need_B:
            dB = gradient_of_B(dy, low, B.dtype, native)
        if need_x:
            dx = frozen_gradient(dy, stored, to_matrix, update=LowRankUpdate(dlow, a) if mask is None else None)
            if mask is not None:
                add_zeroed(dx, products.mm(dlow, a) if native else dlow @ a, mask)
        return (dx, dbias, dA, dB, dm, *[None] * (8 + len(stored)))


def frozen_product(
    rows: Tensor,
    stored: tuple[Tensor, ...],
    to_matrix: ToMatrix,
    bias: Tensor | None,
    weight: Tensor | Product | None = None,
    update: LowRankUpdate | None = None,
) -> Tensor:
    """Return x Wᵀ + b and what an adapter adds; with eight-bit weights, the product of LLM.int8() without W itself."""
    if hasattr(to_matrix, "product"):
        return _plus(to_matrix.product(rows, *stored, bias), update)
    if weight is None:
        weight = to_matrix(*stored, dtype=rows.dtype)
    native = isinstance(to_matrix, Native)
    if not isinstance(weight, Tensor):
        return _plus(weight(rows, bias), update, native)
    if native:
        return frozen_products.linear(rows, weight, bias, update)
    return _plus(F.linear(rows, weight, bias), update)


def frozen_gradient(
    dy: Tensor,
    stored: Sequence[Tensor],
    to_matrix: ToMatrix,
    onto: Tensor | None = None,
    update: LowRankUpdate | None = None,
) -> Tensor:
    """Return dy W (N, in) and what an adapter adds, or add both to a tensor in place."""
    weight = to_matrix(*stored, dtype=dy.dtype)
    if isinstance(to_matrix, Native):
        return frozen_products.input_gradient(dy, weight, onto, update)
    return _plus(dy @ weight if onto is None else onto.addmm_(dy, weight), update)


def _plus(out: Tensor, update: LowRankUpdate | None, native: bool = False) -> Tensor:
    """Add what an adapter adds in place: no second tensor of the output's size."""
    if update is None:
        return out
    return adapter_products.add_few(out, *update) if native else out.addmm_(*update)


def scaled_product(left: Tensor, right: Tensor, factor: float, native: bool, out: Tensor | None = None) -> Tensor:
    """Return factor · left right (N, r) in one launch; the sums are multiplied before they are rounded."""
    out = left.new_empty(len(left), right.shape[1]) if out is None else out
    if native:
        return adapter_products.times_few(left, right, factor, out)
    return out.addmm_(left, right, beta=0, alpha=factor)


def matrix_product(left: Tensor, right: Tensor, dtype: torch.dtype, native: bool) -> Tensor:
    """Return left right in `dtype`. CUDA writes the fp32 sums of 16-bit factors in the same launch."""
    if native:
        return adapter_products.sum_of_few(left.T, right, dtype)
    if WIDE_PRODUCTS and left.device.type in ("cuda", "meta") and dtype == torch.float32 and left.dtype.itemsize == 2:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def gradient_of_B(dy: Tensor, low: Tensor, dtype: torch.dtype, native: bool) -> Tensor:
    """Return dyᵀ low (out, r) in `dtype`; on a CPU as (lowᵀ dy)ᵀ, which is several times faster."""
    if native:
        return adapter_products.sum_of_few(low, dy, dtype, transposed=True)
    if dy.device.type == "cpu":
        return (low.T @ dy).T.to(dtype).contiguous()
    return matrix_product(dy.T, low, dtype, native)


def for_product(b: Tensor) -> Tensor:
    """Return B for the product dy B; on a CPU, fp32 products take half the time with B stored by column."""
    return b.T.contiguous().T if b.device.type == "cpu" and b.dtype.itemsize > 2 else b


@overridable
def frozen_linear(x: Tensor, stored: tuple[Tensor, ...], to_matrix: ToMatrix, bias: Tensor | None) -> Tensor:
    """Compute x Wᵀ + b; W is rebuilt from its stored form in forward and again in backward, and never saved."""
    out = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), bias, to_matrix, *stored)
    return out.view(*x.shape[:-1], out.shape[-1])


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, to_matrix: ToMatrix, *stored: Tensor) -> Tensor:
        ctx.save_for_backward(*stored)
        ctx.to_matrix, ctx.bias_dtype = to_matrix, None if bias is None else bias.dtype
        return frozen_product(x, stored, to_matrix, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors
        dx = frozen_gradient(grad, stored, ctx.to_matrix) if ctx.needs_input_grad[0] else None
        dbias = grad.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return (dx, dbias, None, *[None] * len(stored))
