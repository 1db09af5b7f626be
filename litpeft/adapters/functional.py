"""Autograd functions of the adapted layers, which save as little as possible for backward.

Shapes: x (N, in), W (out, in), A (r, in), B (out, r), scaling s (scalar), DoRA's magnitude m (out) and norm n (out).

    LoRA   y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ               Hu et al. 2021, eq. 3, https://arxiv.org/abs/2106.09685
    DoRA   y = m/n ⊙ (x Wᵀ + s (drop(x) Aᵀ) Bᵀ) + b       Liu et al. 2024, eq. 5 and 11, https://arxiv.org/abs/2402.09353
           n = ‖W + s BA‖ (row norms), a constant in backward (section 4.3 of the paper)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from litpeft.ops.dropout import keep_mask, new_seed
from litpeft.ops.overridable import overridable
from litpeft.ops.row_chunks import split_rows

ToMatrix = Callable[..., Tensor]  # (*stored tensors, dtype=...) -> W (out, in): casts, transposes or dequantises


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
    norm: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute a frozen linear layer with LoRA, or with DoRA if a magnitude is given.

    Saved for backward: x, x Aᵀ (N, r), the parameters and the stored form of W; with DoRA also the output before the
    bias. Dropout masks are drawn again in backward from their seed.

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
        norm: n (out), or None for LoRA.
        weight: W, if the caller has computed it already; used in forward and not saved.

    Returns:
        (..., out), in the dtype of x.
    """
    seed = new_seed() if dropout else None
    rows = x.reshape(-1, x.shape[-1])  # (N, in); reshaped here: a view from a Function cannot be changed in place
    out = _AdaptedLinear.apply(rows, bias, A, B, magnitude, norm, scaling, dropout, seed, to_matrix, weight, *stored)
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
        norm: Tensor | None,
        scaling: float,
        dropout: float,
        seed: int | None,
        to_matrix: ToMatrix,
        weight: Tensor | None,
        *stored: Tensor,
    ) -> Tensor:
        dtype = rows.dtype
        low = F.linear(_zeroed(rows, _mask(rows, dropout, seed)), A.to(dtype))  # (N, r)
        added = bias.to(dtype) if bias is not None else None
        out = F.linear(
            rows, weight if weight is not None else to_matrix(*stored, dtype=dtype), None if norm is not None else added
        )
        out.addmm_(low, (scaling / (1 - dropout) * B).to(dtype).T)  # in place: no second tensor of the output's size
        scaled = None
        if magnitude is not None:
            scaled, out = times_plus(out, magnitude / norm, added, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(rows, low, bias, A, B, magnitude, norm, scaled, *stored)
        ctx.settings = scaling, dropout, seed, to_matrix
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, bias, A, B, magnitude, norm, scaled, *stored = ctx.saved_tensors
        scaling, dropout, seed, to_matrix = ctx.settings
        scaling /= 1 - dropout
        need_x, need_bias, need_A, need_B = ctx.needs_input_grad[:4]
        dx = dbias = dA = dB = dm = None
        if need_bias:
            dbias = dy.sum(0, dtype=bias.dtype)
        if magnitude is not None:
            dy, dm = times_backward(dy, scaled, magnitude, norm)
        dlow = F.linear(dy, (scaling * B).T.to(dy.dtype).contiguous())  # (N, r)
        mask = _mask(rows, dropout, seed) if need_A or need_x else None
        if need_A:
            dA = (dlow.T @ _zeroed(rows, mask)).to(A.dtype)
        if need_B:
            # (lowᵀ dy)ᵀ, not dyᵀ low: several times faster on a CPU
            dB = (low.T @ dy).T.to(B.dtype) * scaling
        if need_x:
            dx = dy @ to_matrix(*stored, dtype=dy.dtype)
            if mask is None:
                dx.addmm_(dlow, A.to(dy.dtype))
            else:
                dx += (dlow @ A.to(dy.dtype)).mul_(_factor(mask, dy))
        return (dx, dbias, dA, dB, dm, *[None] * (6 + len(stored)))


def _mask(x: Tensor, dropout: float, seed: int | None) -> Tensor | None:
    """Return the dropout mask, 1 for numbers of x that stay; None without dropout."""
    return None if seed is None else keep_mask(x, dropout, seed)


def _zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return x with the mask applied but not scaled by 1 / (1 - dropout)."""
    return x if mask is None else x * _factor(mask, x)


def _factor(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask in x's dtype on a CPU, where a product of two dtypes takes five times as long."""
    return mask.to(x.dtype) if x.device.type == "cpu" else mask


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
        return F.linear(x, to_matrix(*stored, dtype=x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors
        dx = grad @ ctx.to_matrix(*stored, dtype=grad.dtype) if ctx.needs_input_grad[0] else None
        dbias = grad.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return (dx, dbias, None, *[None] * len(stored))


class _Gain(torch.autograd.Function):
    """Multiply `out` in place with m/n along dimension `dim`; only the output is saved for backward."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, magnitude: Tensor, norm: Tensor, dim: int) -> Tensor:
        ctx.mark_dirty(out)
        times_plus(out.movedim(dim, -1), magnitude / norm)
        ctx.save_for_backward(out, magnitude, norm)
        ctx.dim = dim
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, magnitude, norm = ctx.saved_tensors
        dout, dm = times_backward(grad.movedim(ctx.dim, -1), out.movedim(ctx.dim, -1), magnitude, norm)
        return dout.movedim(-1, ctx.dim), dm, None, None


def with_gain(out: Tensor, magnitude: Tensor, norm: Tensor, dim: int = -1) -> Tensor:
    """Return `out` multiplied in place with DoRA's m/n along dimension `dim`."""
    return _Gain.apply(out, magnitude, norm, dim)


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
    wide = squares.dtype
    A, B = A.to(wide), B.to(wide)
    cross = (w @ A.mT.to(w.dtype)).to(wide)  # (g, out/g, r/g)
    inner = A @ A.mT  # (g, r/g, r/g)
    added = (B * (2 * scaling * cross + scaling**2 * (B @ inner))).sum(-1).flatten()
    limits = torch.finfo(wide)
    return (squares + added).maximum(limits.eps * squares).sqrt().clamp_min(limits.tiny**0.5)


def times_plus(z: Tensor, gain: Tensor, bias: Tensor | None = None, keep: bool = True) -> tuple[Tensor, Tensor]:
    """Return z ⊙ gain, computed in place, and z ⊙ gain + bias.

    The gain is not rounded to bf16, where 1.003 becomes 1. Products use a few rows at a time, because a CPU kernel
    would copy all of z to the wider dtype.

    Args:
        z: (..., out); overwritten.
        gain: (out), fp32 or wider.
        bias: (out) in the dtype of z, or None.
        keep: whether the caller needs z ⊙ gain without the bias; if False, the sum overwrites z as well.
    """
    out = z if bias is None or not keep else torch.empty_like(z)
    for z_part, out_part in split_rows(z, out):
        torch.mul(z_part, gain, out=z_part)
        if bias is not None:
            torch.add(z_part, bias, out=out_part)
    return z, out


def times_backward(dy: Tensor, scaled: Tensor, magnitude: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of m/n ⊙ z by z and by m: dy ⊙ m/n and Σ dy ⊙ scaled / m.

    Args:
        dy: (..., out), the gradient of m/n ⊙ z.
        scaled: (..., out), m/n ⊙ z.
        magnitude: m (out); products are computed and summed in its dtype.
        norm: n (out).
    """
    gain, total, dz = magnitude / norm, torch.zeros_like(magnitude), torch.empty_like(dy)
    for dy_part, scaled_part, dz_part in split_rows(dy, scaled, dz):
        wide = dy_part.to(total.dtype)
        torch.mul(wide, gain, out=dz_part)
        total += (wide * scaled_part).flatten(0, -2).sum(0)
    return dz, torch.where(magnitude == 0, 0, total / magnitude)
