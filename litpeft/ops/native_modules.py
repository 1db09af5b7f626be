"""Modules of a model whose training passes in bf16 on a CPU use the C functions of `litpeft.ops.native`.

A module gets a sub-class of its class, which computes what the functions can and leaves the rest to its class: other
dtypes, evaluation, compiled blocks, weights that are trained. What a class of transformers computes does not follow
from its name, so it is tried on a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers.activations import GELUActivation

from litpeft.ops.dropout import Dropout, new_seed
from litpeft.ops.native import library
from litpeft.ops.native.activations import gelu, swiglu
from litpeft.ops.native.frozen_products import frozen_linear, frozen_linear_gelu
from litpeft.ops.native.norms import norm


def use_native_kernels(model: nn.Module) -> list[str]:
    """Let the modules of a model use the C functions, and return the names of the functions that it has a use for.

    Args:
        model: the model, with the attention of `use_lean_attention` and the dropout of `use_lean_dropout`.

    Raises:
        CompilerError: the functions cannot be compiled here.
    """
    library.compiled()
    used = {"attention"}
    for module in model.modules():
        module.native = True  # read by `attention`, `Dropout` and adapted layers
        if isinstance(module, Dropout):
            used.add("dropout")
        for name, (kind, is_one) in KINDS.items():
            if is_one(module):
                module.__class__ = mixed(kind, type(module))
                used.add(name)
                break
    return sorted(used)


@cache
def mixed(kind: type, base: type) -> type:
    """Return a sub-class of a module's class that `kind` is mixed into."""
    return type(base.__name__, (kind, base), {"__module__": base.__module__})


def _half_on_cpu(module: nn.Module, *tensors: Tensor) -> bool:
    """Return whether a call is a training pass in bf16 on a CPU, with sizes that the functions take."""
    if not module.training or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(t.dtype == torch.bfloat16 and t.is_cpu and t.shape[-1] % library.LANES == 0 for t in tensors)


def _frozen(*tensors: Tensor | None) -> bool:
    return not any(t is not None and t.requires_grad for t in tensors)


def _hooked(*modules: nn.Module) -> bool:
    """Return whether anybody waits for the calls of modules, which a function that computes several does not make."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        return True
    return any(
        each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks
        for each in modules
    )


class NativeLinear:
    """nn.Linear while its weights are frozen, on processors with products of bf16 numbers."""

    def can_use_product(self, x: Tensor) -> bool:
        """Return whether this call can use `frozen_linear`."""
        return _half_on_cpu(self, x, self.weight) and _frozen(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.weight, self.bias) if self.can_use_product(x) else super().forward(x)


class NativeNorm:
    """LayerNorm, or RMSNorm of transformers, while its weights are frozen."""

    def can_use_norm(self, x: Tensor) -> bool:
        """Return whether this call can use `norm`."""
        weights = [self.weight] if getattr(self, "bias", None) is None else [self.weight, self.bias]
        return _half_on_cpu(self, x, *weights) and _frozen(*weights)

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_use_norm(x):
            return super().forward(x)
        eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
        return norm(x, self.weight, getattr(self, "bias", None), eps)


class NativeResidual:
    """The end of a block of BERT, LayerNorm(drop(dense(x)) + residual): one pass after the product."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        x, layer = self.dense(hidden_states), self.LayerNorm
        fits = isinstance(layer, NativeNorm) and layer.can_use_norm(x) and input_tensor.dtype == x.dtype
        if not fits or not self.training or _hooked(layer, self.dropout):
            return layer(self.dropout(x) + input_tensor)
        seed = new_seed() if self.dropout.p else 0
        return norm(x, layer.weight, layer.bias, layer.eps, input_tensor, self.dropout.p, seed)


class NativeGelu:
    """The exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x) if _half_on_cpu(self, x) else super().forward(x)


class NativeIntermediate:
    """The first half of BERT's MLP, gelu(dense(x)): GELU is computed beside the product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        dense, act = self.dense, self.intermediate_act_fn
        both = isinstance(dense, NativeLinear) and dense.can_use_product(hidden_states) and isinstance(act, NativeGelu)
        if not both or dense.out_features % library.LANES or _hooked(dense, act):
            return super().forward(hidden_states)
        return frozen_linear_gelu(hidden_states, dense.weight, dense.bias)


class NativeGatedMLP:
    """A gated MLP, down_proj(silu(gate_proj(x)) ⊙ up_proj(x))."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        fits = _half_on_cpu(self, gate, up) and not _hooked(self.act_fn)
        return self.down_proj(swiglu(gate, up) if fits else self.act_fn(gate) * up)


def _is_frozen_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and _frozen(module.weight) and library.has_bf16_products()


def _is_norm(module: nn.Module) -> bool:
    if type(module) is nn.LayerNorm:
        return len(module.normalized_shape) == 1 and module.bias is not None
    return "RMSNorm" in type(module).__name__ and _computes_rms_norm(type(module))


def _is_exact_gelu(module: nn.Module) -> bool:
    if type(module) is nn.GELU:
        return module.approximate == "none"
    return type(module) is GELUActivation and module.act is F.gelu


def _is_gated_mlp(module: nn.Module) -> bool:
    activation = type(getattr(module, "act_fn", None)).__name__
    return activation in ("SiLU", "SiLUActivation") and _computes_swiglu(type(module))


def _starts_an_mlp(module: nn.Module) -> bool:
    parts = [getattr(module, name, None) for name in ("dense", "intermediate_act_fn")]
    fits = isinstance(parts[0], nn.Module) and _is_frozen_linear(parts[0]) and isinstance(parts[1], nn.Module)
    return fits and _is_exact_gelu(parts[1]) and _computes_intermediate(type(module))


def _ends_a_block(module: nn.Module) -> bool:
    drops = isinstance(getattr(module, "dropout", None), Dropout) and module.dropout.p < 1
    return drops and type(getattr(module, "LayerNorm", None)) is nn.LayerNorm and _computes_residual(type(module))


@cache
def _computes_rms_norm(kind: type) -> bool:
    """Gemma's, for one, multiplies by 1 + w."""
    x = (torch.arange(64.0) * 1.7).sin().view(4, 16).bfloat16()
    weight, wide = (1 + torch.arange(16.0) / 16).bfloat16(), x.float()
    expected = weight * (wide / (wide.square().mean(-1, keepdim=True) + 0.01).sqrt()).bfloat16()
    return _gives(kind, expected, x, weight=weight, variance_epsilon=0.01, eps=0.01)


@cache
def _computes_swiglu(kind: type) -> bool:
    x = torch.arange(-4.0, 4.0)
    parts = {"gate_proj": lambda t: 3 * t, "up_proj": lambda t: t + 5, "down_proj": lambda t: t - 7, "act_fn": F.silu}
    return _gives(kind, F.silu(3 * x) * (x + 5) - 7, x, **parts)


@cache
def _computes_residual(kind: type) -> bool:
    x, residual = torch.arange(8.0), torch.arange(8.0).square()
    parts = {"dense": lambda t: 3 * t, "dropout": torch.sqrt, "LayerNorm": lambda t: t - 7}
    return _gives(kind, (3 * x).sqrt() + residual - 7, x, residual, **parts)


@cache
def _computes_intermediate(kind: type) -> bool:
    x = torch.arange(8.0)
    return _gives(kind, (3 * x).sqrt(), x, dense=lambda t: 3 * t, intermediate_act_fn=torch.sqrt)


def _gives(kind: type, expected: Tensor, *inputs: Tensor, **attributes: Any) -> bool:
    """Return whether forward of a class, on a stand-in with only these attributes, gives the expected numbers."""
    try:
        with torch.no_grad():
            found = kind.forward(SimpleNamespace(**attributes), *inputs)
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
    same = isinstance(found, Tensor) and found.dtype == expected.dtype and found.shape == expected.shape
    return same and torch.allclose(found.float(), expected.float(), rtol=0.01, atol=0.001)


KINDS: dict[str, tuple[type, Callable[[nn.Module], bool]]] = {
    "linear": (NativeLinear, _is_frozen_linear),
    "intermediate": (NativeIntermediate, _starts_an_mlp),  # a parent of a linear layer, which is seen after it
    "residual": (NativeResidual, _ends_a_block),  # a parent of a norm, which is seen after it
    "norm": (NativeNorm, _is_norm),
    "gelu": (NativeGelu, _is_exact_gelu),
    "swiglu": (NativeGatedMLP, _is_gated_mlp),
}
