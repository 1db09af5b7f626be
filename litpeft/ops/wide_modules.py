"""Modules of a model whose 16-bit products are computed in fp32, on CPUs without instructions for them.

A linear or convolutional layer gets a sub-class of its class. Adapted and quantised layers, and attention, read an
attribute. Evaluation computes in the same way as training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from litpeft.ops import products
from litpeft.ops.autocast import as_autocast, without_autocast
from litpeft.ops.native_modules import mixed
from litpeft.ops.overridable import overridable


def use_wide_products(model: nn.Module) -> str:
    """Let the layers of a model compute products in fp32, and return the name of this for the run record."""
    # without any, autocast rounds fp32 weights; beside some, fp32 weights are multiplied in fp32 anyway
    halves = any(parameter.dtype in products.HALVES for parameter in model.parameters())
    for module in model.modules():
        module.native = True  # read by `attention` and by adapted and quantised layers
        kind = KINDS.get(type(module))
        if kind and (not halves or module.weight.dtype in products.HALVES):
            module.__class__ = mixed(kind, type(module))
    return "products in fp32"


class WideLinear:
    """nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        x = as_autocast(x)
        return _wide(x, self.weight, self.bias) if products.are_slow(x) else super().forward(x)


class WideConv1D:
    """Conv1D of transformers (GPT-2): a linear layer that stores its weight as (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        x = as_autocast(x)
        return _wide(x, self.weight.T, self.bias) if products.are_slow(x) else super().forward(x)


class WideConvolution:
    """nn.Conv1d and nn.Conv2d."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = as_autocast(x)
        if not products.are_slow(x):
            return super()._conv_forward(x, weight, bias)
        # rounded to the dtype of x first, as without this class
        wide = (None if each is None else each.to(x.dtype).float() for each in (x, weight, bias))
        with without_autocast(x):
            return super()._conv_forward(*wide).to(x.dtype)


KINDS: dict[type, type] = {
    nn.Linear: WideLinear,
    Conv1D: WideConv1D,
    nn.Conv1d: WideConvolution,
    nn.Conv2d: WideConvolution,
}


def _wide(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with without_autocast(x):
        return wide_linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


@overridable
def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x Wᵀ + b; x (..., in), W (out, in), b (out), of one dtype."""
    out = _WideLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], out.shape[-1])


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return products.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dx = products.mm(dy, weight) if need_x else None
        d_weight = products.mm(dy.T, x) if need_weight else None
        return dx, d_weight, dy.sum(0) if need_bias else None
