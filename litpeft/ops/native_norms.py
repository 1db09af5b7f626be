"""LayerNorm, and the RMSNorm of transformers, in bf16 on a CPU: one pass each way, in C, for frozen weights.

    LayerNorm   y = (x - mean) / √(var + ε) ⊙ w + b       Ba et al. 2016, eq. 4, https://arxiv.org/abs/1607.06450
    RMSNorm     y = x / √(mean(x²) + ε) ⊙ w               Zhang & Sennrich 2019, eq. 4, https://arxiv.org/abs/1910.07467

Saved for backward: x and two fp32 numbers per row.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from litpeft.ops import native
from litpeft.ops.native_dropout import NativeDropout


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
    return _Norm.apply(x, residual, weight, bias, eps, NativeDropout.of(dropout, seed))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, mask: NativeDropout
    ) -> Tensor:
        x = x.contiguous()
        out, sums = torch.empty_like(x), x
        if residual is not None:
            residual, sums = residual.contiguous(), torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        mean, inverse = x.new_empty(2, rows, dtype=torch.float32)
        native.call("norm", x, residual, sums, weight, bias, out, mean, inverse, rows, x.shape[-1], eps, mask)
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
        native.call("norm_backward", grad.contiguous(), x, weight, mean, inverse, dx, kept, *sizes, mask)
        return (dx if kept is None else kept, dx if with_residual else None, *[None] * 4)


class NativeNorm:
    """Mixed into the class of a norm: computes training passes in bf16 with `norm`."""

    def can_compute(self, x: Tensor) -> bool:
        """Return whether this call may be computed with `norm`."""
        weight, bias = self.weight, getattr(self, "bias", None)
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
        half = x.dtype == weight.dtype == torch.bfloat16 and (bias is None or bias.dtype == torch.bfloat16)
        ours = self.training and x.device.type == "cpu" and not torch.compiler.is_compiling()
        return ours and frozen and half and not torch.is_autocast_enabled("cpu")

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_compute(x):
            return super().forward(x)
        eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
        return norm(x, self.weight, getattr(self, "bias", None), eps)


def use_native_norms(model: nn.Module) -> bool:
    """Let the norms of a model that are LayerNorm or RMSNorm use `norm`; return whether there are any."""
    found = False
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and len(weight) % native.LANES == 0:
            if _is_layer_norm(module) or _computes_rms_norm(type(module)):
                module.__class__ = _native_class(type(module))
                found = True
    return found


def _is_layer_norm(module: nn.Module) -> bool:
    return type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.bias is not None


@cache
def _native_class(base: type) -> type:
    return type(base.__name__, (NativeNorm, base), {"__module__": base.__module__})


@cache
def _computes_rms_norm(kind: type) -> bool:
    """Return whether a class computes the RMSNorm above: tried on numbers, because names do not tell (Gemma: 1 + w)."""
    if "RMSNorm" not in kind.__name__ or issubclass(kind, NativeNorm):
        return False
    with torch.device("cpu"), torch.no_grad():
        x = (torch.arange(64.0) * 1.7).sin().view(4, 16).bfloat16()
        weight = (1 + torch.arange(16.0) / 16).bfloat16()
        stub = SimpleNamespace(weight=weight, variance_epsilon=0.01, eps=0.01)
        try:
            found = kind.forward(stub, x)
        except (AttributeError, TypeError, RuntimeError):
            return False
        wide = x.float()
        expected = weight * (wide / (wide.square().mean(-1, keepdim=True) + 0.01).sqrt()).bfloat16()
    return found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), rtol=0.01, atol=0.001)
