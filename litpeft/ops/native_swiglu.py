"""The product of a gated MLP, silu(gate) ⊙ up, in bf16 on a CPU: one pass each way, in C.

Shazeer 2020, eq. 6, https://arxiv.org/abs/2002.05202. Saved for backward: gate and up; silu(gate) is not kept.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from litpeft.ops import native


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute silu(gate) ⊙ up of two bf16 tensors of one shape, whose numbers are a multiple of 16."""
    return _Swiglu.apply(gate, up)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        native.call("swiglu", gate, up, out, out.numel())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        native.call("swiglu_backward", grad.contiguous(), gate, up, dgate, dup, gate.numel())
        return dgate, dup


class NativeGatedMLP:
    """Mixed into the class of a gated MLP: computes training passes in bf16 with `swiglu`."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and x.device.type == "cpu") or torch.compiler.is_compiling():
            return super().forward(x)
        gate, up = self.gate_proj(x), self.up_proj(x)
        if gate.dtype == up.dtype == torch.bfloat16 and gate.numel() % native.LANES == 0:
            return self.down_proj(swiglu(gate, up))
        return self.down_proj(self.act_fn(gate) * up)


def use_native_swiglu(model: nn.Module) -> bool:
    """Let the gated MLPs of a model use `swiglu`; return whether there are any."""
    found = False
    for module in model.modules():
        activation = type(getattr(module, "act_fn", None)).__name__
        if activation in ("SiLU", "SiLUActivation") and _is_gated_mlp(type(module)):
            module.__class__ = _native_class(type(module))
            found = True
    return found


@cache
def _native_class(base: type) -> type:
    return type(base.__name__, (NativeGatedMLP, base), {"__module__": base.__module__})


@cache
def _is_gated_mlp(kind: type) -> bool:
    """Return whether forward of a class is down_proj(act_fn(gate_proj(x)) ⊙ up_proj(x)) and nothing else: tried."""
    with torch.device("cpu"), torch.no_grad():
        x = torch.arange(-4.0, 4.0)
        stub = SimpleNamespace(
            gate_proj=lambda t: 3 * t, up_proj=lambda t: t + 5, down_proj=lambda t: t - 7, act_fn=nn.functional.silu
        )
        try:
            found = kind.forward(stub, x)
        except (AttributeError, TypeError, RuntimeError, ValueError):
            return False
        expected = nn.functional.silu(3 * x) * (x + 5) - 7
        return isinstance(found, Tensor) and torch.allclose(found, expected)
