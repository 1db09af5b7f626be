"""GELU in bf16 on a CPU, in C: forward computes the derivative too, which shares its functions, and saves it.

    y = x Φ(x)        Hendrycks & Gimpel 2016, section 2, https://arxiv.org/abs/1606.08415
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from litpeft.ops import native


def gelu(x: Tensor) -> Tensor:
    """Compute x Φ(x) of a bf16 tensor, whose numbers are a multiple of 16."""
    return _Gelu.apply(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out, slope = torch.empty_like(x), torch.empty_like(x)
        native.call("gelu", x, out, slope, x.numel())
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        dx = torch.empty_like(slope)
        native.call("multiply", grad.contiguous(), slope, dx, dx.numel())
        return dx


class NativeGelu:
    """Mixed into the class of a GELU: computes training passes in bf16 with `gelu`."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() % native.LANES == 0
        if not (self.training and half) or torch.compiler.is_compiling():
            return super().forward(x)
        return gelu(x)


def use_native_gelu(model: nn.Module) -> bool:
    """Let the exact GELUs of a model use `gelu`; return whether there are any."""
    found = [module for module in model.modules() if _is_exact(module)]
    for module in found:
        module.__class__ = _native_class(type(module))
    return bool(found)


def _is_exact(module: nn.Module) -> bool:
    if type(module) is nn.GELU:
        return module.approximate == "none"
    return type(module) is GELUActivation and module.act is nn.functional.gelu


@cache
def _native_class(base: type) -> type:
    return type(base.__name__, (NativeGelu, base), {"__module__": base.__module__})
