"""The arithmetic of adapted layers: what has to be computed and kept for backward, and no more.

Shapes: x (N, in), W (out, in), A (r, in), B (out, r), s the scaling, m and n (out) DoRA's magnitude and norm.

    LoRA   y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ               Hu et al. 2021, eq. 3, https://arxiv.org/abs/2106.09685
    DoRA   y = m/n ⊙ (x Wᵀ + s (drop(x) Aᵀ) Bᵀ) + b       Liu et al. 2024, eq. 5 and 11, https://arxiv.org/abs/2402.09353
           n = ‖W + s BA‖ by row, taken as a constant in backward (section 4.3 of the paper)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from litpeft.ops.dropout import kept, new_seed
from litpeft.ops.overridable import overridable
from litpeft.ops.row_chunks import by_rows

Open = Callable[..., Tensor]  # (*what is held, dtype=...) -> W (out, in): a cast, a transposed view, a dequantisation


@overridable
def adapted_linear(
    x: Tensor,
    held: tuple[Tensor, ...],
    open_: Open,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float = 0.0,
    magnitude: Tensor | None = None,
    norm: Tensor | None = None,
    opened: Tensor | None = None,
) -> Tensor:
    """A frozen linear layer with LoRA, or with DoRA where a magnitude is given.

    Kept for backward: x, x Aᵀ (N, r), the parameters, and W as it is held; with DoRA also the output before the bias.
    A dropout's mask is drawn again in backward from its seed.

    Args:
        x: (..., in), of the dtype to compute in.
        held: the frozen weight's tensors, as `open_` takes them.
        open_: gives W (out, in) in the dtype asked for.
        bias: (out) or None.
        A: (r, in), any dtype.
        B: (out, r), any dtype.
        scaling: s.
        dropout: share of the adapter's input that is zeroed.
        magnitude: m (out), or None for LoRA.
        norm: n (out).
        opened: W where the caller has opened it already; forward uses it, nothing keeps it.

    Returns:
        (..., out) of the dtype of x.
    """
    seed = new_seed() if dropout else None
    rows = x.reshape(-1, x.shape[-1])  # (N, in); out here, so that the output is no view that must not be written to
    out = _AdaptedLinear.apply(rows, bias, A, B, magnitude, norm, scaling, dropout, seed, open_, opened, *held)
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
        open_: Open,
        opened: Tensor | None,
        *held: Tensor,
    ) -> Tensor:
        dtype = rows.dtype
        low = F.linear(_zeroed(rows, _mask(rows, dropout, seed)), A.to(dtype))  # (N, r)
        added = bias.to(dtype) if bias is not None else None
        out = F.linear(
            rows, opened if opened is not None else open_(*held, dtype=dtype), None if norm is not None else added
        )
        out.addmm_(low, (scaling / (1 - dropout) * B).to(dtype).T)  # in place: nothing else of the output's size
        scaled = None
        if magnitude is not None:
            scaled, out = times_plus(out, magnitude / norm, added, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(rows, low, bias, A, B, magnitude, norm, scaled, *held)
        ctx.settings = scaling, dropout, seed, open_
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, bias, A, B, magnitude, norm, scaled, *held = ctx.saved_tensors
        scaling, dropout, seed, open_ = ctx.settings
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
            # the thin matrix first: its product is several times faster so on a CPU
            dB = (low.T @ dy).T.to(B.dtype) * scaling
        if need_x:
            dx = dy @ open_(*held, dtype=dy.dtype)
            if mask is None:
                dx.addmm_(dlow, A.to(dy.dtype))
            else:
                dx += (dlow @ A.to(dy.dtype)).mul_(_factor(mask, dy))
        return (dx, dbias, dA, dB, dm, *[None] * (6 + len(held)))


def _mask(x: Tensor, dropout: float, seed: int | None) -> Tensor | None:
    """Of the numbers of x that a dropout keeps; None where there is none."""
    return None if seed is None else kept(x, dropout, seed)


def _zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """Without what a dropout drops; what is left is not made larger."""
    return x if mask is None else x * _factor(mask, x)


def _factor(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as x can be multiplied with it: a CPU takes five times as long where dtypes differ."""
    return mask.to(x.dtype) if x.device.type == "cpu" else mask


@overridable
def frozen_linear(x: Tensor, held: tuple[Tensor, ...], open_: Open, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b with a weight that is opened in forward and again in backward, and kept in neither."""
    out = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), bias, open_, *held)
    return out.view(*x.shape[:-1], out.shape[-1])


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, open_: Open, *held: Tensor) -> Tensor:
        ctx.save_for_backward(*held)
        ctx.open_, ctx.bias_dtype = open_, None if bias is None else bias.dtype
        return F.linear(x, open_(*held, dtype=x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.saved_tensors
        dx = grad @ ctx.open_(*held, dtype=grad.dtype) if ctx.needs_input_grad[0] else None
        dbias = grad.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return (dx, dbias, None, *[None] * len(held))


class _Gain(torch.autograd.Function):
    """out ⊙ m/n by the channel `dim`, in place; keeps the output alone."""

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
    """DoRA's factor m/n on the channel `dim` of `out`, which is overwritten."""
    return _Gain.apply(out, magnitude, norm, dim)


def low_rank_norm(squares: Tensor, w: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """‖W + s BA‖ by row without forming BA.

    ‖W + s BA‖² = ‖W‖² + 2 s Σ_r B ⊙ (W Aᵀ) + s² Σ_r (B (A Aᵀ)) ⊙ B: the products are (out, r) and (r, r).

    Args:
        squares: ‖W‖² (out).
        w: W (g, out/g, in), one matrix a group; a linear layer has one group.
        A: (g, r/g, in).
        B: (g, out/g, r/g).
        scaling: s.

    Returns:
        (out), of the dtype of `squares`; never 0, so that a row of zeros stays one. Where BA all but cancels W, what is
        left is below the rounding of ‖W‖², and that is what is given.
    """
    wide = squares.dtype
    A, B = A.to(wide), B.to(wide)
    cross = (w @ A.mT.to(w.dtype)).to(wide)  # (g, out/g, r/g)
    inner = A @ A.mT  # (g, r/g, r/g)
    added = (B * (2 * scaling * cross + scaling**2 * (B @ inner))).sum(-1).flatten()
    limits = torch.finfo(wide)
    return (squares + added).maximum(limits.eps * squares).sqrt().clamp_min(limits.tiny**0.5)


def times_plus(z: Tensor, gain: Tensor, bias: Tensor | None = None, keep: bool = True) -> tuple[Tensor, Tensor]:
    """z ⊙ gain by the last dimension, in place with the gain's precision and one rounding; and that plus the bias.

    In bf16 the gain itself must not be rounded: 1.003 would be 1. A CPU kernel would copy all of z in the wider dtype,
    hence a few rows at a time.

    Args:
        z: (..., out); holds z ⊙ gain afterwards.
        gain: (out), fp32 or wider.
        bias: (out) of the dtype of z, or None.
        keep: whether the first result is needed after the second.
    """
    out = z if bias is None or not keep else torch.empty_like(z)
    for part, into in by_rows(z, out):
        torch.mul(part, gain, out=part)
        if bias is not None:
            torch.add(part, bias, out=into)
    return z, out


def times_backward(dy: Tensor, scaled: Tensor, magnitude: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of m/n ⊙ z to those of z and m: dy ⊙ m/n and Σ dy ⊙ scaled / m, as `scaled` is m/n ⊙ z.

    Args:
        dy: (..., out).
        scaled: likewise.
        magnitude: m (out), in whose dtype products are made and summed.
        norm: n (out).
    """
    gain, total, dz = magnitude / norm, torch.zeros_like(magnitude), torch.empty_like(dy)
    for part, other, into in by_rows(dy, scaled, dz):
        wide = part.to(total.dtype)
        torch.mul(wide, gain, out=into)
        total += (wide * other).flatten(0, -2).sum(0)
    return dz, torch.where(magnitude == 0, 0, total / magnitude)
