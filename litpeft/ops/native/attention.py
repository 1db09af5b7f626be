"""Attention of short rows in bf16 on a CPU, computed head by head in C: see `attention` for the equations.

Batched products of small matrices, and the passes between them, cost more than their arithmetic. One C function reads
query, key and value where they are, keeps the scores of one head in the core's cache, and draws dropout masks from a
seed, so that backward draws them again. Saved for backward beside these: the mask, and one fp32 number per query.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops.native import library
from litpeft.ops.native.dropout import DropoutMask

WIDEST = 128  # numbers per head: scratch memory is on the stack
SIDE = 32  # the sides of factors are multiples of this
MASKED = torch.finfo(torch.float32).min / 2  # finite, so that a fully masked row does not become NaN


class _Shape(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "heads", "groups", "queries", "keys", "width")],
        *[(name, ctypes.c_int64 * 3) for name in ("query", "key", "value", "out", "mask")],
        ("mask_by_query", ctypes.c_int64),
        ("scaling", ctypes.c_float),
        ("dropout", DropoutMask),
    ]


def can_compute(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether `native_attention` takes these tensors; the rows have at most 512 tokens."""
    width = query.shape[-1]
    same = key.shape[-1] == value.shape[-1] == width and width % SIDE == 0 and width <= WIDEST
    return same and all(t.dtype == torch.bfloat16 and t.stride(-1) == 1 for t in (query, key, value))


def native_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """Compute attention of short rows.

    Args:
        query: (B, H, T, D), bf16.
        key: (B, G, S, D); each key head serves H/G query heads.
        value: (B, G, S, D).
        mask: (B or 1, H or 1, T or 1, S), bool (True attends) or added to the scores; or None.
        causal: whether each position attends only to earlier positions; used if there is no mask.
        scaling: factor of the scores.
        dropout: dropout probability of the attention probabilities.
        seed: seed of the dropout mask.

    Returns:
        (B, T, H, D).
    """
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    by_query = mask is not None and mask.shape[2] > 1 and mask.stride(2) != 0
    if mask is not None:
        mask = _prepared(mask, by_query)
    return _NativeAttention.apply(query, key, value, mask, by_query, scaling, dropout, seed)


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        by_query: bool,
        scaling: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        out = query.new_empty(batch, tokens, heads, width)
        lse = query.new_empty(batch, heads, _whole(tokens), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, lse)
        ctx.settings = by_query, scaling, DropoutMask.of(dropout, seed)
        shape = _shape(query, key, value, mask, out, *ctx.settings)
        library.call("attention", shape, query, key, value, mask, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, lse = ctx.saved_tensors
        grad = grad.contiguous()
        batch, heads, tokens, width = query.shape
        dquery = query.new_empty(batch, tokens, heads, width)  # a view of it has the layout of the projection's output
        dkey = key.new_empty(batch, key.shape[2], key.shape[1], width)
        dvalue = torch.empty_like(dkey)
        shape = _shape(query, key, value, mask, grad, *ctx.settings)
        library.call("attention_backward", shape, query, key, value, mask, lse, grad, dquery, dkey, dvalue)
        return (*(t.transpose(1, 2) for t in (dquery, dkey, dvalue)), *[None] * 5)


def _whole(tokens: int) -> int:
    return -(-tokens // SIDE) * SIDE


def _prepared(mask: Tensor, by_query: bool) -> Tensor:
    """Return a mask as the C functions read it, fp32: (B, H, S, queries in whole blocks), or (B, H, S) for all queries.

    All layers of a model have the same mask, so the result is kept with it.
    """
    version, prepared = getattr(mask, "prepared_for_c", (None, None))
    if version == mask._version:
        return prepared
    whole = mask if by_query else mask[:, :, :1]
    if mask.dtype == torch.bool:
        whole = torch.zeros(whole.shape).masked_fill_(~whole, MASKED)
    if by_query:
        size = *whole.shape[:2], whole.shape[3], _whole(whole.shape[2])
        prepared = whole.new_full(size, MASKED, dtype=torch.float32)
        prepared[..., : whole.shape[2]] = whole.mT
    else:
        # a copy: a view would keep the mask alive, and the mask the view
        prepared = whole[:, :, 0].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    mask.prepared_for_c = mask._version, prepared
    return prepared


def _shape(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    by_query: bool,
    scaling: float,
    dropout: DropoutMask,
) -> _Shape:
    batch, heads, tokens, width = query.shape
    strides = [t.stride()[:3] for t in (query, key, value)] + [(out.stride(0), out.stride(2), out.stride(1))]
    if mask is not None:
        one_of = [0 if size == 1 else stride for size, stride in zip(mask.shape[:2], mask.stride()[:2], strict=True)]
        strides.append((*one_of, mask.stride(2)))
    else:
        strides.append((0, 0, 0))
    sizes = batch, heads, key.shape[1], tokens, key.shape[2], width
    return _Shape(*sizes, *((ctypes.c_int64 * 3)(*three) for three in strides), by_query, scaling, dropout)
