"""Products of 16-bit numbers on CPUs that have no instructions for them: computed in fp32, and rounded once.

There torch multiplies the numbers one at a time, which takes ten times as long as fp32 in x Wᵀ and forty times in dy W.
Here factors are widened to fp32, a part of a large one at a time, so that memory stays that of 16-bit numbers.
Elsewhere these functions call torch's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
PART = 1 << 21  # numbers of a factor or of a product that are fp32 at a time: 8 MiB, which may stay in a cache
FEWEST = 64  # rows or columns of a part, at least
FEW = 4  # rows of x in x Wᵀ up to which widening W would take longer than torch's product


def _slow_on_cpu() -> frozenset[torch.dtype]:
    """Return the dtypes whose products oneDNN, torch's library for them, does not compute on this processor."""
    slow = []
    for dtype, name in HALVES.items():
        try:
            known = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
        except (AttributeError, RuntimeError):  # a build of torch without oneDNN
            known = True
        slow += [] if known else [dtype]
    return frozenset(slow)


SLOW = _slow_on_cpu()


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Return whether the processor is quick in products of this dtype."""
    return dtype not in SLOW


def are_slow(x: Tensor) -> bool:
    """Return whether products with x are quicker in fp32."""
    return x.dtype in SLOW and x.device.type == "cpu"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b; x (N, in), W (out, in), b (out). Generation, with a row for each answer, stays torch's."""
    if not are_slow(x) or len(x) <= FEW:
        return F.linear(x, weight, bias)
    out = x.new_empty(len(x), len(weight))
    if bias is None:
        return _product(x, weight.T, out)
    return _product(x, weight.T, out, added=bias.expand_as(out))


def mm(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Compute a b in `dtype`, by default that of a; a (N, k), b (k, n)."""
    if not are_slow(a):
        return (a @ b).to(dtype or a.dtype)
    return _product(a, b, a.new_empty(len(a), b.shape[1], dtype=dtype))


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Compute the products of matrices; a (B, n, k), b (B, k, m)."""
    if not are_slow(a):
        return torch.bmm(a, b)
    out = a.new_empty(len(a), a.shape[1], b.shape[2])
    for some in _parts(len(a), max(a[0].numel(), b[0].numel(), out[0].numel()), fewest=1):
        out[some] = torch.bmm(a[some].float(), b[some].float())
    return out


def addmm(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a b to `out` (N, n) in place."""
    return _product(a, b, out, added=out) if are_slow(a) else out.addmm_(a, b)


def scaled_mm(a: Tensor, b: Tensor, scale: float, out: Tensor) -> Tensor:
    """Write scale · a b to `out` (N, n)."""
    return _product(a, b, out, scale) if are_slow(a) else out.addmm_(a, b, beta=0, alpha=scale)


def _product(a: Tensor, b: Tensor, out: Tensor, scale: float = 1.0, added: Tensor | None = None) -> Tensor:
    """Write scale · a b, plus what is to be added, to `out`; return `out`."""
    depth, width = b.shape
    if b.stride(1) == 1:  # parts of b are some of its rows, which lie together in memory
        for rows in _parts(len(a), width):
            sums = _wide(added, rows)
            for some in _parts(depth, max(width, len(a[rows]))):
                sums = _plus(sums, a[rows, some].float(), b[some].float(), scale)
            out[rows] = 0 if sums is None else sums
        return out
    for rows in _parts(len(a), depth):
        left = a[rows].float()
        for columns in _parts(width, max(depth, len(left))):
            sums = _wide(added, (rows, columns))
            out[rows, columns] = _plus(sums, left, b[:, columns].float(), scale)
    return out


def _wide(added: Tensor | None, part: slice | tuple[slice, slice]) -> Tensor | None:
    """Return a copy of a part in fp32."""
    return None if added is None else added[part].to(torch.float32, copy=True)


def _plus(sums: Tensor | None, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return sums + scale · left right; the sums may change."""
    if sums is not None:
        return sums.addmm_(left, right, alpha=scale)
    sums = torch.mm(left, right)
    return sums if scale == 1 else sums.mul_(scale)


def _parts(count: int, width: int, fewest: int | None = None) -> Iterator[slice]:
    """Yield the slices of `count` rows, columns or matrices, of `width` numbers each, that are computed at a time."""
    size = max(fewest or FEWEST, PART // max(width, 1))
    for first in range(0, count, size):
        yield slice(first, first + size)
