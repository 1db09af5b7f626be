"""Let a model on a CPU train with the C functions of `litpeft.ops.native`."""

from __future__ import annotations

from torch import nn

from litpeft.ops.dropout import Dropout
from litpeft.ops.native import library
from litpeft.ops.native_gelu import use_native_gelu
from litpeft.ops.native_linear import use_native_linear
from litpeft.ops.native_norms import use_native_norms
from litpeft.ops.native_residual import use_native_residuals
from litpeft.ops.native_swiglu import use_native_swiglu


def use_native_kernels(model: nn.Module) -> list[str]:
    """Let a model use the C functions that it has a use for, and return their names.

    Args:
        model: the model, with the attention of `use_lean_attention` and the dropout of `use_lean_dropout`.

    Raises:
        CompilerError: the functions cannot be compiled here.
    """
    library()
    dropout = False
    for module in model.modules():
        module.native = True  # read by `attention`, `Dropout` and adapted layers
        dropout |= isinstance(module, Dropout)
    used = {"attention": True, "dropout": dropout}
    used |= {"linear": use_native_linear(model), "norms": use_native_norms(model), "swiglu": use_native_swiglu(model)}
    used["gelu"] = use_native_gelu(model)
    use_native_residuals(model)
    return [name for name, is_used in used.items() if is_used]
