"""The end of a block of BERT, LayerNorm(drop(dense(x)) + residual), in one pass after the product: see `norm`."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from litpeft.ops.dropout import Dropout, new_seed
from litpeft.ops.native_norms import NativeNorm, norm


class NativeResidual:
    """Mixed into the class of such an end."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        x, layer = self.dense(hidden_states), self.LayerNorm
        if not layer.can_compute(x) or input_tensor.dtype != x.dtype or not self.training:
            return layer(self.dropout(x) + input_tensor)
        seed = new_seed() if self.dropout.p else 0
        return norm(x, layer.weight, layer.bias, layer.eps, input_tensor, self.dropout.p, seed)


def use_native_residuals(model: nn.Module) -> None:
    """Let such ends in a model, whose norms use `norm`, add and drop in the same pass."""
    for module in model.modules():
        parts = [getattr(module, name, None) for name in ("LayerNorm", "dropout")]
        if isinstance(parts[0], NativeNorm) and isinstance(parts[1], Dropout) and parts[1].p < 1:
            if _ends_a_block(type(module)):
                module.__class__ = _native_class(type(module))


@cache
def _native_class(base: type) -> type:
    return type(base.__name__, (NativeResidual, base), {"__module__": base.__module__})


@cache
def _ends_a_block(kind: type) -> bool:
    """Return whether forward of a class is LayerNorm(dropout(dense(x)) + residual) and nothing else: tried."""
    with torch.device("cpu"), torch.no_grad():
        x, residual = torch.arange(8.0), torch.arange(8.0).square()
        stub = SimpleNamespace(dense=lambda t: 3 * t, dropout=lambda t: t.sqrt(), LayerNorm=lambda t: t - 7)
        try:
            found = kind.forward(stub, x, residual)
        except (AttributeError, TypeError, RuntimeError, ValueError):
            return False
        return isinstance(found, Tensor) and torch.allclose(found, (3 * x).sqrt() + residual - 7)
