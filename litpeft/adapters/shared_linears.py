"""One autograd function for adapted linear layers that have the same input; the shapes are those of `functional`.

For n layers with A of r_1 .. r_n rows, stacked to A (r_1 + .. + r_n, in): one product x Aᵀ for all layers, one for the
gradient of all A, and the gradient by x is the sum of the products dy_i W_i, each added by the product itself. Computed
alone, the layers would read x once each, and autograd would add n gradients by x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.adapters.functional import (
    Native,
    Prepared,
    Product,
    ToMatrix,
    for_product,
    frozen_gradient,
    frozen_product,
    gradient_of_B,
    matrix_product,
    scaled_product,
)
from litpeft.adapters.gain import times_backward, times_plus
from litpeft.ops.native.frozen_products import LowRankUpdate
from litpeft.ops.overridable import overridable


class LinearCall(NamedTuple):
    """What the call of one adapted layer needs beside its input: the arguments of `adapted_linear` of these names."""

    stored: tuple[Tensor, ...]
    to_matrix: ToMatrix
    bias: Tensor | None
    A: Tensor
    B: Tensor
    magnitude: Tensor | None = None
    gain: Tensor | None = None
    weight: Tensor | Product | None = None
    prepared: Prepared | None = None


@overridable
def adapted_linears(
    x: Tensor, calls: Sequence[LinearCall], scaling: float, on_backward: Callable[[], None]
) -> tuple[Tensor, ...]:
    """Compute adapted linear layers with the same input, without dropout, as `adapted_linear` computes each.

    Args:
        x: (..., in), in the compute dtype.
        calls: the layers' tensors; all A have the same dtype.
        scaling: s, the same for all layers.
        on_backward: called when the backward pass reaches these layers.

    Returns:
        One (..., out) per layer, in the dtype of x.
    """
    rows = x.reshape(-1, x.shape[-1])
    tensors = [t for c in calls for t in (c.bias, c.A, c.B, c.magnitude, c.gain, *c.stored)]
    outs = _AdaptedLinears.apply(rows, tuple(calls), scaling, on_backward, *tensors)
    return tuple(out.view(*x.shape[:-1], out.shape[-1]) for out in outs)


class _AdaptedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        calls: tuple[LinearCall, ...],
        factor: float,
        on_backward: Callable[[], None],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        dtype = rows.dtype
        factors = [_factors(c.prepared, c.A, c.B, dtype) for c in calls]
        stacked = torch.cat([a for a, _ in factors])
        native = isinstance(calls[0].to_matrix, Native)
        low = scaled_product(rows, stacked.T, factor, native)  # (N, r_1 + .. + r_n)
        outs, scaled, lows = [], [], _columns(low, [len(a) for a, _ in factors], native)
        for c, (_, b), part in zip(calls, factors, lows, strict=True):
            added = None if c.bias is None else c.bias.to(dtype)
            plain, update = added if c.magnitude is None else None, LowRankUpdate(part, b.T)
            out = frozen_product(rows, c.stored, c.to_matrix, plain, c.weight, update)
            kept = None
            if c.magnitude is not None:
                gain = c.prepared.gain if c.gain is None else c.gain
                kept, out = times_plus(out, gain, added, any(ctx.needs_input_grad), native)
            outs.append(out)
            scaled.append(kept)
        ctx.save_for_backward(rows, stacked, *lows, *scaled, *tensors)
        ctx.settings = factor, on_backward, native, [(c.to_matrix, c.prepared, 5 + len(c.stored)) for c in calls]
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        factor, on_backward, native, settings = ctx.settings
        on_backward()
        rows, stacked, *saved = ctx.saved_tensors
        count = len(settings)
        lows, scaled, tensors = saved[:count], saved[count : 2 * count], saved[2 * count :]
        need_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        layers, first, dx, grads = [], 0, None, [None] * len(tensors)  # `layers`: those that have a gradient
        for (to_matrix, prepared, count), dy, low, kept in zip(settings, upstream, lows, scaled, strict=True):
            bias, A, B, magnitude, gain, *stored = tensors[first : first + count]
            if dy is not None:
                _, b = _factors(prepared, A, B, dy.dtype)
                if prepared is not None:
                    prepared.used = True
                if needs[first]:
                    grads[first] = dy.sum(0, dtype=bias.dtype)
                if magnitude is not None:
                    gain = prepared.gain if gain is None else gain
                    dy, grads[first + 3] = times_backward(dy, kept, magnitude, gain, native)
                if needs[first + 2]:
                    grads[first + 2] = gradient_of_B(dy, low, B.dtype, native)
                layers.append((first + 1, b, dy, stored, to_matrix))
            first += count
        if not layers:
            return (None,) * (4 + len(tensors))
        ranks = [b.shape[1] for _, b, *_ in layers]
        dlow = rows.new_empty(len(rows), sum(ranks))  # (N, r_1 + .. + r_n)
        parts = _columns(dlow, ranks, native)
        for part, (_, b, dy, *_) in zip(parts, layers, strict=True):
            scaled_product(dy, for_product(b), factor, native, part)
        if parts[0]._base is not dlow:
            torch.cat(parts, 1, out=dlow)
        if any(needs[place] for place, *_ in layers):
            dA = matrix_product(dlow.T, rows, tensors[1].dtype, native)
            for (place, *_), part in zip(layers, dA.split(ranks), strict=True):
                grads[place] = part
        if need_x:
            if len(layers) < len(settings):  # the rows of A of these layers
                every = stacked.split([low.shape[1] for low in lows])
                stacked = torch.cat([a for a, dy in zip(every, upstream, strict=True) if dy is not None])
            for layer in layers:
                *_, dy, stored, to_matrix = layer
                update = LowRankUpdate(dlow, stacked) if layer is layers[-1] else None  # of all layers at once
                dx = frozen_gradient(dy, stored, to_matrix, dx, update)
        return (dx, None, None, None, *grads)


def _factors(prepared: Prepared | None, A: Tensor, B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A and B in the compute dtype."""
    return (A.to(dtype), B.to(dtype)) if prepared is None else prepared.factors(A, B)


def _columns(matrix: Tensor, widths: list[int], native: bool) -> tuple[Tensor, ...]:
    """Return the columns of each layer: views, or copies where torch's products with a view take a third longer."""
    parts = matrix.split(widths, 1)
    return tuple(part.contiguous() for part in parts) if matrix.device.type == "cpu" and not native else parts
