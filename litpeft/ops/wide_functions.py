"""Products of 16-bit numbers that are computed in fp32, forward and backward; saved factors keep their 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops import products
from litpeft.ops.overridable import overridable
from litpeft.ops.row_chunks import equal_shares
from litpeft.ops.without_values import has_values


@overridable
def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x Wᵀ + b; x (..., in), W (out, in), b (out), of one dtype."""
    out = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], out.shape[-1])


@overridable
def wide_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Compute a b; a (..., n, k), b (..., k, m) of one dtype; their first dimensions broadcast."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (each.expand(*batch, *each.shape[-2:]) for each in (a, b))
    return _Matmul.apply(a.flatten(0, -3), b.flatten(0, -3)).unflatten(0, batch)


@overridable
def wide_grouped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Compute the rows of a (N, k) that belong to each matrix of b (E, k, n) times it; `ends` (E) of these rows."""
    return _GroupedMM.apply(a, b, ends)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return products.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dx = products.mm(dy, weight) if need_x else None
        d_weight = products.mm(dy.T, x) if need_weight else None
        return dx, d_weight, dy.sum(0) if need_bias else None


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        need_a, need_b = ctx.needs_input_grad
        ctx.save_for_backward(a if need_b else None, b if need_a else None)
        return products.bmm(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return products.bmm(dy, b.mT) if need_a else None, products.bmm(a.mT, dy) if need_b else None


class _GroupedMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b)
        ctx.groups = list(_groups(ends, len(a)))
        out = a.new_zeros(len(a), b.shape[2])  # rows after the last group, which belong to no expert, are zeros
        for matrix, rows in zip(b, ctx.groups, strict=True):
            out[rows] = products.mm(a[rows], matrix)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        need_a, need_b, _ = ctx.needs_input_grad
        da = dy.new_zeros(len(dy), b.shape[1]) if need_a else None
        db = torch.zeros_like(b) if need_b else None
        for number, rows in enumerate(ctx.groups):
            if need_a:
                da[rows] = products.mm(dy[rows], b[number].T)
            if need_b:
                db[number] = products.mm(a[rows].T, dy[rows])
        return da, db, None


def _groups(ends: Tensor, rows: int) -> Iterator[slice]:
    """Yield the rows of each group; of tensors without values, as in estimates, equal shares."""
    first = 0
    for end in ends.tolist() if has_values(ends) else accumulate(equal_shares(rows, len(ends))):
        yield slice(first, end)
        first = end
