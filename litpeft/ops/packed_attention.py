"""Causal attention within the documents of packed rows, without a mask of T x T for rows of T tokens.

The model is given a *document mask* in place of an attention mask: the offsets of the documents in the batch's tokens,
row after row, as int32 (1, 1, L, documents + 1). L, the tokens of the longest document, is a size and not a value, so
that nothing is read from a GPU; the offsets are repeated along it without a copy. transformers hands a mask with four
dimensions to the attention of each layer as it is.

With torch 2.13 or newer, a GPU that can (compute capability 8 or more) computes all documents in one call of
FlashAttention's kernel for variable lengths (Dao 2023, https://arxiv.org/abs/2307.08691). Elsewhere each document is
computed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from itertools import pairwise

import torch
from torch import Tensor, nn

from litpeft.ops.autocast import as_autocast
from litpeft.ops.without_values import has_values

try:
    from torch.nn.attention.varlen import varlen_attn

    if not {"window_size", "enable_gqa"} <= set(signature(varlen_attn).parameters):  # torch 2.10 to 2.12
        varlen_attn = None
except ImportError:
    varlen_attn = None

HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256  # largest head size of the flash kernel


def document_mask(offsets: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """Return the document mask of a packed batch, int32 (1, 1, longest, documents + 1).

    Args:
        offsets: first token of each document in the batch's tokens, row after row, and the number of all tokens:
            (documents + 1) int32.
        longest: tokens of the longest document.
        dtype: compute dtype; the offsets are moved to the CPU if the device has no kernel for this dtype.
    """
    if not offsets.is_meta and not _has_kernel(offsets.device, dtype):
        offsets = offsets.cpu()
    return offsets.expand(1, 1, longest, -1)


def is_document_mask(mask: Tensor | None) -> bool:
    """Return whether an attention mask is a document mask; other masks are bool or floating-point."""
    return mask is not None and mask.dtype == torch.int32 and mask.dim() == 4


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    alone: Callable[..., tuple[Tensor, None]],
) -> tuple[Tensor, None]:
    """Compute causal attention within documents, with the signature of transformers' AttentionInterface.

    Args:
        module: the attention layer.
        query: (B, H, T, D).
        key: (B, G, T, D); each key head serves H/G query heads.
        value: (B, G, T, D).
        mask: document mask (1, 1, L, documents + 1).
        dropout: dropout probability of the attention probabilities.
        scaling: factor of the scores; None for 1/√D.
        window: number of tokens that each token attends to, itself included; None for all earlier tokens.
        alone: computes the attention of one document, (1, H, L, D), likewise.

    Returns:
        (B, T, H, D), and None in place of the probabilities.
    """
    query, key, value = (as_autocast(t) for t in (query, key, value))
    batch, _, tokens, width = query.shape
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))  # (B T, H, D): views where torch can
    offsets, longest = mask[0, 0, 0], mask.shape[2]
    fits = width % 8 == 0 and width <= LARGEST_HEAD and value.shape[-1] == width and not dropout
    if fits and _in_one_call(query, offsets):
        reach = (-1 if window is None else window - 1, 0)
        grouped = q.shape[1] != k.shape[1]
        given = q, k, v, offsets, offsets, longest, longest
        out = varlen_attn(*given, scale=scaling, window_size=reach, enable_gqa=grouped)
        return out.view(batch, tokens, *out.shape[1:]), None
    lengths = _lengths(offsets, longest, batch * tokens)
    documents = []
    # split, not slices: the gradient of a slice is as large as the batch
    for parts in zip(*(t.split(lengths) for t in (q, k, v)), strict=True):
        near = None if window is None or len(parts[0]) <= window else _near(len(parts[0]), window, q.device)
        documents.append(alone(module, *(t.transpose(0, 1)[None] for t in parts), near, dropout, scaling, True)[0])
    return torch.cat(documents, 1).view(batch, tokens, *documents[0].shape[2:]), None


def _near(length: int, window: int, device: torch.device) -> Tensor:
    """Return the causal mask of one document with a sliding window, bool (1, 1, L, L)."""
    earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return earlier.triu(1 - window)[None, None]


def _lengths(offsets: Tensor, longest: int, total: int) -> list[int]:
    """Return the tokens of each document; for tensors without values, documents as long as the longest."""
    if not has_values(offsets):
        return [min(longest, total - first) for first in range(0, total, longest)]
    return [end - start for start, end in pairwise(offsets.tolist())]


def _has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether one call can compute all documents on this device; meta tensors stand for a GPU that can."""
    if dtype not in HALF or varlen_attn is None:
        return False
    return device.type == "meta" or (device.type == "cuda" and _kernel_works(device, dtype))


@cache
@torch.inference_mode(False)
@torch.enable_grad()
def _kernel_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernel computes two short documents, forward and backward, as each alone."""
    # not random numbers: they would advance the generator, whose state a resumed run restores
    numbers = (torch.arange(n * 24 * 64, device=device).mul(n).sin().to(dtype).view(24, n, 64) for n in (2, 1, 1))
    q, k, v = (tensor.requires_grad_() for tensor in numbers)
    offsets = torch.tensor([0, 16, 24], dtype=torch.int32, device=device)
    found = []
    try:
        for place in (offsets, offsets.cpu()):  # offsets on the CPU: each document alone
            mask = place.expand(1, 1, 16, -1)
            given = (t.transpose(0, 1)[None] for t in (q, k, v))
            out, _ = packed_attention(nn.Module(), *given, mask, 0.0, None, None, alone=_alone)
            found.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))])
    except (RuntimeError, NotImplementedError):  # a card or a build without the kernel
        return False
    return all(torch.allclose(one, other, rtol=0.1, atol=0.1) for one, other in zip(*found, strict=True))


def _alone(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, None]:
    out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2), None


def _in_one_call(query: Tensor, offsets: Tensor) -> bool:
    """Return whether this call can use the kernel; `document_mask` leaves offsets on the device only if it has one."""
    return offsets.device.type != "cpu" and query.dtype in HALF and varlen_attn is not None
