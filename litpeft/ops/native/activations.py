"""Activations in bf16 on a CPU, in C: one pass each way.

    GELU      y = x Φ(x)             Hendrycks & Gimpel 2016, section 2, https://arxiv.org/abs/1606.08415
    SwiGLU    y = silu(gate) ⊙ up    Shazeer 2020, eq. 6, https://arxiv.org/abs/2002.05202

Forward of GELU also computes the derivative, which shares its functions, and saves it in place of x. SwiGLU saves gate
and up; silu(gate) is not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops.native import library


def gelu(x: Tensor) -> Tensor:
    """Compute x Φ(x) of a bf16 tensor, whose numbers are a multiple of 16."""
    library.check_whole(x)
    return _Gelu.apply(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out, slope = torch.empty_like(x), torch.empty_like(x)
        library.call("gelu", x, out, slope, x.numel())
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        dx = torch.empty_like(slope)
        library.call("multiply", grad.contiguous(), slope, dx, dx.numel())
        return dx


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute silu(gate) ⊙ up of two bf16 tensors of one shape, whose numbers are a multiple of 16."""
    library.check_whole(gate, up)
    return _Swiglu.apply(gate, up)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        library.call("swiglu", gate, up, out, out.numel())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        library.call("swiglu_backward", grad.contiguous(), gate, up, dgate, dup, gate.numel())
        return dgate, dup
