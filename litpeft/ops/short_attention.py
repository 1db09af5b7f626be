"""Attention of short rows in bf16 on a CPU, computed head by head in C: see `attention` for the equations.

Batched products of small matrices, and the passes between them, cost more than their arithmetic. One C function reads
query, key and value where they are, keeps the scores of one head in the core's cache, and draws dropout masks from a
seed, so that backward draws them again.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops import native
from litpeft.ops.native_dropout import NativeDropout

LONGEST = 128  # tokens; for longer rows batched products are faster
WIDEST = 128  # numbers per head: scratch memory is on the stack


class _Shape(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "heads", "groups", "queries", "keys", "width")],
        *[(name, ctypes.c_int64 * 3) for name in ("query", "key", "value", "mask", "out")],
        ("scaling", ctypes.c_float),
        ("dropout", NativeDropout),
    ]


def can_compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Return whether `short_attention` takes these tensors."""
    width = query.shape[-1]
    same = key.shape[-1] == value.shape[-1] == width and width % native.LANES == 0 and width <= WIDEST
    short = max(query.shape[2], key.shape[2]) <= LONGEST
    half = all(t.dtype == torch.bfloat16 and t.stride(-1) == 1 for t in (query, key, value))
    return same and short and half and (mask is None or mask.dtype == torch.float32)


def short_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float, seed: int
) -> Tensor:
    """Compute attention of short rows.

    Args:
        query: (B, H, T, D), bf16.
        key: (B, G, S, D); each key head serves H/G query heads.
        value: (B, G, S, D).
        mask: added to the scores, fp32, expandable to (B, H, T, S), or None.
        scaling: factor of the scores.
        dropout: dropout probability of the attention probabilities.
        seed: seed of the dropout mask.

    Returns:
        (B, T, H, D).
    """
    return _ShortAttention.apply(query, key, value, mask, scaling, dropout, seed)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        if mask is not None:
            mask = mask.expand(batch, heads, tokens, key.shape[2])
            mask = mask if mask.stride(-1) == 1 or mask.shape[-1] == 1 else mask.contiguous()
        out = query.new_empty(batch, tokens, heads, width)
        ctx.save_for_backward(query, key, value, mask)
        ctx.settings = scaling, NativeDropout.of(dropout, seed)
        native.call("attention", _shape(query, key, value, mask, out, *ctx.settings), query, key, value, mask, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        grad = grad.contiguous()
        batch, heads, tokens, width = query.shape
        dquery = query.new_empty(batch, tokens, heads, width)  # a view of it has the layout of the projection's output
        dkey = key.new_empty(batch, key.shape[2], key.shape[1], width)
        dvalue = torch.empty_like(dkey)
        shape = _shape(query, key, value, mask, grad, *ctx.settings)
        native.call("attention_backward", shape, query, key, value, mask, grad, dquery, dkey, dvalue)
        return (*(t.transpose(1, 2) for t in (dquery, dkey, dvalue)), None, None, None, None)


def _shape(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, scaling: float, dropout: NativeDropout
) -> _Shape:
    batch, heads, tokens, width = query.shape
    strides = [t.stride()[:3] if t is not None else (0, 0, 0) for t in (query, key, value, mask)]
    by_row, by_head = out.stride(1), out.stride(2)
    strides.append((out.stride(0), by_head, by_row))
    return _Shape(
        batch, heads, key.shape[1], tokens, key.shape[2], width, *((ctypes.c_int64 * 3)(*s) for s in strides), scaling, dropout
    )
