"""LayerNorm, and the RMSNorm of transformers, in bf16 on a CPU: one pass each way, in C, for frozen weights.

    LayerNorm   y = (x - mean) / √(var + ε) ⊙ w + b       Ba et al. 2016, eq. 4, https://arxiv.org/abs/1607.06450
    RMSNorm     y = x / √(mean(x²) + ε) ⊙ w               Zhang & Sennrich 2019, eq. 4, https://arxiv.org/abs/1910.07467

Saved for backward: x and two fp32 numbers per row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops.native import library
from litpeft.ops.native.dropout import DropoutMask


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Compute LayerNorm of each row of x, or RMSNorm if there is no bias; of drop(x) + residual if one is given.

    Args:
        x: (..., width), bf16; the width is a multiple of 16.
        weight: (width), bf16; gets no gradient.
        bias: (width), bf16, or None; gets no gradient.
        eps: ε.
        residual: (..., width), bf16, or None.
        dropout: dropout probability of x, with a residual.
        seed: seed of the dropout mask.
    """
    library.check_whole(weight)
    return _Norm.apply(x, residual, weight, bias, eps, DropoutMask.of(dropout, seed))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, mask: DropoutMask
    ) -> Tensor:
        x = x.contiguous()
        out, sums = torch.empty_like(x), x
        if residual is not None:
            residual, sums = residual.contiguous(), torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        mean, inverse = x.new_empty(2, rows, dtype=torch.float32)
        library.call("norm", x, residual, sums, weight, bias, out, mean, inverse, rows, x.shape[-1], eps, mask)
        ctx.save_for_backward(sums, weight, mean, inverse)
        ctx.settings = bias is not None, residual is not None, mask
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        centred, with_residual, mask = ctx.settings
        dx = torch.empty_like(x)
        kept = torch.empty_like(x) if mask.share else None
        sizes = len(mean), x.shape[-1], int(centred)
        library.call("norm_backward", grad.contiguous(), x, weight, mean, inverse, dx, kept, *sizes, mask)
        return (dx if kept is None else kept, dx if with_residual else None, *[None] * 4)
