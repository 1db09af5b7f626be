"""Fast attention for short sequences on a CPU.

In bf16, torch's fused CPU kernel takes three to fifteen times as long as its matrix products, mostly in backward. It
does not support dropout: torch then runs an unfused version with several passes over memory. Here a few heads at a time
are computed in a core's cache, with batched products:

    P = softmax(q kᵀ s + mask)    out = drop(P) v         Vaswani et al. 2017, eq. 1, https://arxiv.org/abs/1706.03762

Scores and probabilities are fp32, as in the fused kernel. P is computed again in backward and never saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from litpeft.ops.autocast import without_autocast
from litpeft.ops.dropout import keep_mask, new_seed
from litpeft.ops.native import library
from litpeft.ops.native.attention import can_compute, native_attention
from litpeft.ops.overridable import overridable
from litpeft.ops.packed_attention import is_document_mask, packed_attention
from litpeft.ops.products import are_slow

NAME = "litpeft"
LONGEST = 512  # tokens; for longer sequences torch's kernel is as fast and needs less memory
CHUNK = 1 << 18  # scores computed at a time (at least one head): 1 MiB in fp32
MASKED = torch.finfo(torch.float32).min / 2  # finite, so that a fully masked row does not become NaN


def use_lean_attention(model: nn.Module) -> None:
    """Make a transformers model use `attention`, unless it has another attention implementation than sdpa."""
    if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


@overridable
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the signature of transformers' AttentionInterface; use sdpa where it is faster.

    Args:
        module: the attention layer; its attribute `is_causal` is the default of `is_causal`.
        query: (B, H, T, D).
        key: (B, G, S, D); each key head serves H/G query heads.
        value: (B, G, S, D).
        attention_mask: (B, 1 or H, T, S), bool (True attends) or added to the scores; None for no mask, or a causal
            mask if `is_causal`; for packed rows a document mask (`litpeft.ops.packed_attention`).
        dropout: dropout probability of the attention probabilities.
        scaling: s; None for 1/√D.
        is_causal: whether each position attends only to earlier positions; used if there is no mask.

    Returns:
        (B, T, H, D), and None in place of the probabilities.
    """
    faster = query.device.type == "cpu" and (query.dtype != torch.float32 or dropout > 0)
    short = max(query.shape[2], key.shape[2]) <= LONGEST and 0 <= dropout < 1
    bias_trains = attention_mask is not None and attention_mask.requires_grad
    unsupported = any(others.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    if is_document_mask(attention_mask):
        if unsupported:
            raise ValueError("attention within documents has no position bias, soft cap or cache")
        window = others.get("sliding_window")
        return packed_attention(module, query, key, value, attention_mask, dropout, scaling, window, alone=attention)
    # depends on the training mode, not on requires_grad, so that gradient checkpointing repeats the same computation
    native = getattr(module, "native", False)
    in_fp32 = native and module.training and are_slow(query)
    if not (module.training and faster and short) or bias_trains or unsupported or torch.compiler.is_compiling():
        tensors = query, key, value, attention_mask
        if in_fp32:
            tensors = (_in_fp32(each) for each in tensors)
            others = {name: _in_fp32(each) for name, each in others.items()}  # T5's position_bias is one
        found = sdpa_attention_forward(module, *tensors, dropout, scaling, is_causal=is_causal, **others)
        return (found[0].to(query.dtype), None) if in_fp32 else found
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    seed = new_seed() if dropout else 0
    if native and can_compute(query, key, value) and library.available():
        return native_attention(query, key, value, attention_mask, causal, scaling, dropout, seed), None
    if attention_mask is None and causal and query.shape[2] > 1:
        earlier = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        attention_mask = earlier[None, None]
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros(attention_mask.shape).masked_fill_(~attention_mask, MASKED)
    with without_autocast(query):
        return _Attention.apply(query, key, value, attention_mask, scaling, dropout, seed, in_fp32), None


def _in_fp32(given: Any) -> Any:
    return given.float() if isinstance(given, Tensor) and given.is_floating_point() else given


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Attention(torch.autograd.Function):
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
        in_fp32: bool,
    ) -> Tensor:
        shape, groups = query.shape, key.shape[1]
        query, key, value = _by_group(query, groups), key.contiguous(), value.contiguous()
        if mask is not None:  # a view: (B, G, H/G, T, S)
            mask = mask.expand(*shape[:3], key.shape[2]).unflatten(1, (groups, -1))
        ctx.save_for_backward(query, key, value, mask)
        dtype = torch.float32 if in_fp32 else value.dtype  # of the factors of all products but the scores
        ctx.settings = scaling, dropout, seed, dtype
        out = value.new_empty(*query.shape[:3], value.shape[3])
        for i, part in enumerate(_parts(query, key)):
            q, k, v, o = (tensor[part].flatten(0, 1) for tensor in (query, key, value, out))
            p = _probabilities(q, k, mask, part, scaling)
            if dropout:
                p *= _dropout_factors(p, dropout, seed + i)
            _product(p.to(dtype), v.to(dtype), o)
        return out.view(*shape[:3], -1).transpose(1, 2).contiguous()  # (B, T, H, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        scaling, dropout, seed, dtype = ctx.settings
        grad = grad.transpose(1, 2)
        shape = *grad.shape[:3], query.shape[3]
        grad = _by_group(grad, key.shape[1])
        dquery, dkey, dvalue = (torch.empty_like(tensor) for tensor in (query, key, value))
        for i, part in enumerate(_parts(query, key)):
            q, k, v, g = (tensor[part].flatten(0, 1).to(dtype) for tensor in (query, key, value, grad))
            dq, dk, dv = (tensor[part].flatten(0, 1) for tensor in (dquery, dkey, dvalue))
            p = _probabilities(q, k, mask, part, scaling)
            dp, dropped = torch.bmm(g, v.mT).to(p.dtype), p
            if dropout:
                factors = _dropout_factors(p, dropout, seed + i)
                dp, dropped = dp.mul_(factors), p * factors
            _product(dropped.to(dtype).mT, g, dv)
            ds = torch._softmax_backward_data(dp, p, -1, torch.float32).mul_(scaling).to(dtype)
            _product(ds, k, dq)
            _product(ds.mT, q, dk)
        return (dquery.view(shape), dkey, dvalue, *[None] * 5)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write a batched product to `out`, rounded if the factors are wider."""
    if left.dtype == out.dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(torch.bmm(left, right))


def _by_group(heads: Tensor, groups: int) -> Tensor:
    """Stack the query heads that share a key head: (B, H, T, D) -> (B, G, H/G T, D)."""
    return heads.unflatten(1, (groups, -1)).flatten(2, 3).contiguous()


def _parts(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices (rows of the batch, groups of heads) with at most CHUNK scores each."""
    batch, groups, scores = query.shape[0], query.shape[1], query.shape[2] * key.shape[2]  # scores per group
    rows = max(1, CHUNK // (groups * scores))
    groups_at_once = groups if groups * scores <= CHUNK else max(1, CHUNK // scores)
    for row in range(0, batch, rows):
        for group in range(0, groups, groups_at_once):
            yield slice(row, row + rows), slice(group, group + groups_at_once)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, part: tuple[slice, slice], scaling: float) -> Tensor:
    """Return P (n, H/G T, S) in fp32 from queries (n, H/G T, D) and keys (n, S, D)."""
    scores = torch.bmm(q.float().mul_(scaling) if q.dtype != torch.float32 else q * scaling, k.float().mT)
    if mask is not None:
        mask = mask[part]
        scores.view(mask.shape).add_(mask)
    return torch.softmax(scores, -1)


def _dropout_factors(p: Tensor, dropout: float, seed: int) -> Tensor:
    """Return the factors of dropout: 0 or 1 / (1 - dropout)."""
    return keep_mask(p, dropout, seed).to(p.dtype).mul_(1 / (1 - dropout))
