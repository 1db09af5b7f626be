"""Products with frozen matrices in bf16 on a CPU with AMX, or with AVX-512's products of bf16 numbers, in C.

torch's library for these products, oneDNN, makes new code for each number of rows, in 2 to 5 ms for one shape of a
matrix: batches of texts have ever new numbers of rows, so that a short run waits for it in every step. The C function
runs the same code for all numbers of rows, at the same speed. Bias, GELU and what an adapter adds are computed with the
sums, before they are written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops import products
from litpeft.ops.native import adapter_products, library
from litpeft.ops.native.activations import gelu
from litpeft.ops.overridable import overridable

LARGEST_RANK = adapter_products.LARGEST_RANK
PACKED = 1 << 19  # numbers of the matrix that are held in another layout at a time; as in the C file
LARGEST = 1 << 22  # numbers of the matrix: beside products with larger ones, making code for them does not count
DEEPEST = 1 << 15  # inputs of a layer: 32 rows of them are on the stack, in 2 MiB
DEEP = 32  # the sides of the matrix are multiples of this
PLAIN, ADD, GELU = range(3)  # what is done with the sums; as in the C file


class LowRankUpdate(NamedTuple):
    """What an adapter adds to a product with a frozen matrix: low factor.

    Attributes:
        low: (N, r).
        factor: (r, n), in either order of storage.
    """

    low: Tensor
    factor: Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, update: LowRankUpdate | None = None) -> Tensor:
    """Compute x Wᵀ + b, as F.linear does, and what an adapter adds, rounded once; x (N, in), W (out, in), b (out)."""
    if not _can_compute(x, weight, update) or (bias is not None and bias.dtype != x.dtype):
        out = products.linear(x, weight, bias)
        return out if update is None else adapter_products.add_few(out, *update)
    out = x.new_empty(x.shape[0], weight.shape[0])
    _product(x, weight, True, out, update, bias)
    return out


def input_gradient(
    dy: Tensor, weight: Tensor, onto: Tensor | None = None, update: LowRankUpdate | None = None
) -> Tensor:
    """Compute dy W and what an adapter adds, or add both to a tensor in place; dy (N, out), W (out, in)."""
    if not _can_compute(dy, weight, update):
        dx = products.mm(dy, weight) if onto is None else products.addmm(onto, dy, weight)
        return dx if update is None else adapter_products.add_few(dx, *update)
    dx = dy.new_empty(dy.shape[0], weight.shape[1]) if onto is None else onto
    _product(dy, weight, False, dx, update, kind=PLAIN if onto is None else ADD)
    return dx


def _can_compute(x: Tensor, weight: Tensor, update: LowRankUpdate | None = None) -> bool:
    half = x.dtype == weight.dtype == torch.bfloat16 and x.is_cpu and weight.is_cpu
    (rows, depth), (wide, deep) = x.shape, weight.shape
    whole = wide % DEEP == deep % DEEP == 0 and weight.is_contiguous() and wide * deep <= LARGEST
    fits = whole and depth <= DEEPEST and rows > 0 and x.stride(1) == 1
    if update is not None:
        low, factor = update
        fits = fits and low.dtype == factor.dtype == x.dtype and low.stride(1) == 1 and factor.shape[0] <= LARGEST_RANK
    return half and fits and library.has_bf16_products()


def _product(
    x: Tensor,
    weight: Tensor,
    transposed: bool,
    out: Tensor,
    update: LowRankUpdate | None = None,
    bias: Tensor | None = None,
    kind: int = PLAIN,
    slope: Tensor | None = None,
    multiplier: Tensor | None = None,
) -> None:
    (rows, depth), width = x.shape, out.shape[1]
    added, rank = (None, 0, None, 0, 0), 0
    if update is not None:
        (low, factor), rank = update, update.factor.shape[0]
        added = low, low.stride(0), factor, *factor.stride()
    scratch = x.new_empty(max(min(PACKED, weight.numel()), DEEP * depth) + -(-rank // DEEP) * DEEP * width)
    left, right = (x, x.stride(0), multiplier), (weight, int(transposed))
    ends = bias, kind, out, slope, rows, width, depth, scratch
    library.call("product_with_frozen", *left, *right, *added, rank, *ends)


@overridable
def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a linear layer without gradients for weight and bias; x (..., in)."""
    out = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], out.shape[-1])


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return input_gradient(dy, weight), None, None


@overridable
def frozen_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute GELU of a linear layer without gradients for weight and bias; x (..., in).

    The result of the layer is rounded before GELU, as where it is a tensor of its own. Saved for backward: the
    derivative of GELU.
    """
    rows = x.reshape(-1, x.shape[-1])
    if not _can_compute(rows, weight) or (bias is not None and bias.dtype != x.dtype):
        return gelu(frozen_linear(x, weight, bias))
    return _FrozenLinearGelu.apply(rows, weight, bias).view(*x.shape[:-1], len(weight))


class _FrozenLinearGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out, slope = x.new_empty(len(x), len(weight)), x.new_empty(len(x), len(weight))
        _product(x, weight, True, out, bias=bias, kind=GELU, slope=slope)
        ctx.save_for_backward(weight, slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        weight, slope = ctx.saved_tensors
        dx = dy.new_empty(len(dy), weight.shape[1])
        _product(dy.contiguous(), weight, False, dx, multiplier=slope)
        return dx, None, None
