"""DoRA's row norms n = ‖W + s BA‖, and products with the gain m/n (Liu et al. 2024, https://arxiv.org/abs/2402.09353).

Shapes: W (out, in), A (r, in), B (out, r), magnitude m (out), norm n (out), scaling s (scalar).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops.native import gain as in_c
from litpeft.ops.row_chunks import split_rows


class _Gain(torch.autograd.Function):
    """Multiply `out` in place with the gain along dimension `dim`; only the output is saved for backward."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, magnitude: Tensor, gain: Tensor, dim: int) -> Tensor:
        ctx.mark_dirty(out)
        times_plus(out.movedim(dim, -1), gain)
        ctx.save_for_backward(out, magnitude, gain)
        ctx.dim = dim
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, magnitude, gain = ctx.saved_tensors
        dout, dm = times_backward(grad.movedim(ctx.dim, -1), out.movedim(ctx.dim, -1), magnitude, gain)
        return dout.movedim(-1, ctx.dim), dm, None, None


def with_gain(out: Tensor, magnitude: Tensor, gain: Tensor, dim: int = -1) -> Tensor:
    """Return `out` multiplied in place with DoRA's gain m/n, a constant for autograd, along dimension `dim`."""
    return _Gain.apply(out, magnitude, gain, dim)


def low_rank_norm(squares: Tensor, w: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return the row norms ‖W + s BA‖ without computing BA.

    ‖W + s BA‖² = ‖W‖² + 2 s Σ_r B ⊙ (W Aᵀ) + s² Σ_r (B (A Aᵀ)) ⊙ B: the products are (out, r) and (r, r).

    Args:
        squares: squared row norms ‖W‖² (out).
        w: W (g, out/g, in), one matrix per group; a linear layer has g = 1.
        A: (g, r/g, in).
        B: (g, out/g, r/g).
        scaling: s.

    Returns:
        (out), in the dtype of `squares`. Never 0: the result is at least ‖W‖ √eps (the rounding of ‖W‖²) and at least
        the root of the smallest normal number, so that a row of zeros can be divided by its norm.
    """
    return norm_from_cross(squares, w @ A.mT.to(w.dtype), A, B, scaling)


def norm_from_cross(squares: Tensor, cross: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return `low_rank_norm` from cross = W Aᵀ (g, out/g, r/g). The g matrices may be those of g layers."""
    wide = squares.dtype
    A, B, cross = A.to(wide), B.to(wide), cross.to(wide)
    inner = A @ A.mT  # (g, r/g, r/g)
    added = (B * (2 * scaling * cross + scaling**2 * (B @ inner))).sum(-1).flatten()
    limits = torch.finfo(wide)
    return (squares + added).maximum(limits.eps * squares).sqrt().clamp_min(limits.tiny**0.5)


def times_plus(
    z: Tensor, gain: Tensor, bias: Tensor | None = None, keep: bool = True, native: bool = False
) -> tuple[Tensor, Tensor]:
    """Return z ⊙ gain, computed in place, and z ⊙ gain + bias.

    The gain is not rounded to bf16, where 1.003 becomes 1. Products use a few rows at a time, because a CPU kernel
    would copy all of z to the wider dtype.

    Args:
        z: (..., out); overwritten.
        gain: (out), fp32 or wider.
        bias: (out) in the dtype of z, or None.
        keep: whether the caller needs z ⊙ gain without the bias; if False, the sum overwrites z as well.
        native: whether to compute in C where that is possible; the results are the same.
    """
    out = z if bias is None or not keep else torch.empty_like(z)
    if native and in_c.can_compute(z, gain):
        in_c.times_gain(z, gain, bias, out)
        return z, out
    for z_part, out_part in split_rows(z, out):
        torch.mul(z_part, gain, out=z_part)
        if bias is not None:
            torch.add(z_part, bias, out=out_part)
    return z, out


def times_backward(
    dy: Tensor, scaled: Tensor, magnitude: Tensor, gain: Tensor, native: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradients of m/n ⊙ z by z and by m: dy ⊙ m/n and Σ dy ⊙ scaled / m.

    A few rows at a time, so that no fp32 copy of dy is as large as dy.

    Args:
        dy: (..., out), the gradient of m/n ⊙ z.
        scaled: (..., out), m/n ⊙ z.
        magnitude: m (out); products are computed and summed in its dtype, at least in fp32.
        gain: m/n (out).
        native: whether to compute in C where that is possible.
    """
    if native and in_c.can_compute(dy, gain) and scaled.is_contiguous():
        dz, total = in_c.times_gain_backward(dy, scaled, gain)
    else:
        total, dz = None, torch.empty_like(dy)
        for dy_part, scaled_part, dz_part in split_rows(dy, scaled, dz):
            wide = dy_part.to(torch.promote_types(magnitude.dtype, torch.float32))
            torch.mul(wide, gain, out=dz_part)
            products = wide * scaled_part if wide is dy_part else wide.mul_(scaled_part)
            part = products.flatten(0, -2).sum(0)
            total = part if total is None else total.add_(part)
    return dz, (total / magnitude).masked_fill_(magnitude == 0, 0)
