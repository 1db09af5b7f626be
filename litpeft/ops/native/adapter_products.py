"""Products with the factors of an adapter in bf16 on a CPU, in C: one side of each is the rank.

Where the C functions cannot compute, because of dtype, device or shape, torch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from litpeft.ops import products
from litpeft.ops.native import library

SIDE = 32  # the long sides are multiples of this
LARGEST_RANK = 256
LARGEST = 1 << 19  # numbers of a factor, its rank rounded up: it is packed on the stack, in 1 MiB


def times_few(x: Tensor, factor: Tensor, scale: float, low: Tensor) -> Tensor:
    """Write scale · x factor to low (N, r); x (N, k), factor (k, r) in either order of storage. Rounded once."""
    if _can_compute(x, factor, k=len(factor), rank=factor.shape[1]):
        sizes = len(x), *factor.shape
        library.call("times_few", x, x.stride(0), factor, *factor.stride(), scale, low, low.stride(0), *sizes)
        return low
    return products.scaled_mm(x, factor, scale, low)


def add_few(y: Tensor, low: Tensor, factor: Tensor) -> Tensor:
    """Add low factor to y (N, n) in place; low (N, r), factor (r, n) in either order of storage. Rounded once."""
    if _can_compute(low, factor, k=y.shape[1], rank=len(factor)) and y.is_contiguous() and y.dtype == low.dtype:
        sizes = len(y), y.shape[1], len(factor)
        library.call("add_few", low, low.stride(0), factor, *factor.stride(), y, *sizes)
        return y
    return products.addmm(y, low, factor)


def sum_of_few(low: Tensor, x: Tensor, dtype: torch.dtype, transposed: bool = False) -> Tensor:
    """Return lowᵀ x (r, n), or its transpose (n, r), both contiguous; low (N, r), x (N, n)."""
    rank, width = low.shape[1], x.shape[1]
    if _can_compute(x, low, k=width, rank=rank) and dtype == torch.float32:
        out = x.new_empty(*((width, rank) if transposed else (rank, width)), dtype=dtype)
        strides = out.T.stride() if transposed else out.stride()
        scratch = x.new_empty(_whole(rank) * _whole(len(x)))
        library.call("sum_of_few", low, low.stride(0), x, x.stride(0), out, *strides, *x.shape, rank, scratch)
        return out
    product = products.mm(low.T, x, dtype)
    return (product.T if transposed else product).contiguous()


def _can_compute(x: Tensor, factor: Tensor, k: int, rank: int) -> bool:
    half = x.dtype == factor.dtype == torch.bfloat16 and x.is_cpu
    fits = k % SIDE == 0 and rank <= LARGEST_RANK and k * _whole(rank) <= LARGEST and x.stride(1) == 1
    fits = fits and x.shape[0] > 0
    return half and fits and library.has_bf16_products()


def _whole(count: int) -> int:
    return -(-count // SIDE) * SIDE
