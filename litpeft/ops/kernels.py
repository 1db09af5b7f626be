"""Which fused kernels a model uses.

liger   for GPUs (extra `gpu`; Hsu et al. 2024, https://arxiv.org/abs/2410.10989): norms, rotary embeddings, SwiGLU
        and GeGLU. Its losses stay off: `litpeft.ops.head_loss` keeps the logits out of memory.
native  for CPUs and bf16, if there is a compiler: C functions (`litpeft.ops.native`) for the passes of a step and, on
        some processors, for its products.

On CPUs without instructions for 16-bit products, `auto` computes these in fp32 (`litpeft.ops.products`).
"""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import version
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from litpeft.errors import UserError
from litpeft.ops import products
from litpeft.ops.native.library import CompilerError, NotForThisMachine
from litpeft.ops.native_modules import use_native_kernels
from litpeft.ops.wide_modules import use_wide_products

Kernels = Literal["auto", "liger", "native", "none"]
LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
_replaced: list[tuple[ModuleType, str, Any]] = []  # functions of transformers that Liger has replaced for all models


def use_kernels(
    model: nn.Module,
    choice: Kernels,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> str:
    """Apply fused kernels to a model, if they are chosen, and return which, for the run record.

    Liger replaces the forward of norms and MLPs in this model. Functions that it replaces in transformers' modules, for
    all models of an architecture, are put back when the next model is built.

    Args:
        model: the model, with its adapter; on meta tensors, as in estimates, Liger is left out.
        choice: `liger`, `native`, `none`, or `auto`: on a GPU Liger, where it is installed, knows the architecture and
            runs; on a CPU in bf16 `native`, where a C compiler is found and the processor is one for it.
        device: the device that the model will be trained on.
        dtype: the compute dtype.
        compiled: whether blocks are compiled, which fuses the same operations.

    Returns:
        `none`, or such as `liger 0.8.5: rms_norm, rope, swiglu`, `native: attention, dropout` or `products in fp32`.

    Raises:
        UserError: `liger` or `native` is asked for and cannot be used.
    """
    while _replaced:
        setattr(*_replaced.pop())
    if choice == "none" or (choice == "auto" and compiled):
        return "none"
    if choice == "auto" and device.type == "cpu" and not products.cpu_multiplies(dtype):
        return use_wide_products(model)
    if compiled:
        raise UserError(f"model.kernels {choice} and model.compile_blocks fuse the same operations; give one of them.")
    if choice == "native" or (choice == "auto" and device.type == "cpu"):
        return _native(model, choice, device, dtype)
    return _liger(model, choice, device)


def warn_of_other_kernels(before: str | None, now: str) -> None:
    """Say that a resumed run computes with other kernels than before; None stands for a checkpoint without a name."""
    if before not in (None, now):
        print(
            f"litpeft: warning: this run was trained with the kernels {before!r} and continues with {now!r}: roundings "
            "and dropout masks are not those of a run without a break.",
            file=sys.stderr,
        )


def _native(model: nn.Module, choice: Kernels, device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cpu" or dtype != torch.bfloat16:
        if choice == "auto":
            return "none"
        reason = f"on {device.type}" if device.type != "cpu" else f"in {str(dtype).removeprefix('torch.')}"
        raise UserError(f"model.kernels native runs on CPUs in bf16, and this run is {reason}; give auto or none.")
    try:
        return f"native: {', '.join(use_native_kernels(model))}"
    except CompilerError as error:
        if choice == "auto":
            if not isinstance(error, NotForThisMachine):
                print(f"litpeft: model.kernels: {error}; training runs without the C functions.", file=sys.stderr)
            return "none"
        raise UserError(f"model.kernels native: {error}; install a C compiler such as gcc, or give auto.") from error


def _liger(model: nn.Module, choice: Kernels, device: torch.device) -> str:
    if any(parameter.is_meta for parameter in model.parameters()):
        return "none"  # an estimate: Triton does not run on meta tensors
    if device.type != "cuda":
        if choice == "auto":
            return "none"
        raise UserError(f"model.kernels liger runs on GPUs, and this run is on {device.type}; give auto or none.")
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as functions
    except Exception as error:  # Triton raises many kinds of errors where it cannot run
        if choice == "auto":
            return "none"
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.kernels liger: liger-kernel cannot be imported ({reason}); install it with "
            "`pip install 'litpeft[gpu]'`, or give auto or none."
        ) from error
    base = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    kind = base.config.model_type if base is not None else type(model).__name__
    if kind not in functions:
        if choice == "auto":
            return "none"
        raise UserError(f"model.kernels liger: Liger has no kernels for {kind}; give auto or none.")
    try:
        return f"liger {version('liger-kernel')}: {', '.join(_apply(functions[kind], base))}"
    except Exception as error:  # for example a class of the architecture that Liger does not know
        failure = f"model.kernels: Liger cannot be applied to {type(base).__name__} ({str(error)[:200]})"
        if choice == "liger":
            raise UserError(f"{failure}; give auto or none.") from error
        print(f"litpeft: {failure}; the model runs without it.", file=sys.stderr)
        return "none"


def _apply(function: Any, model: nn.Module) -> list[str]:
    """Apply Liger's function for an architecture and return the names of the kernels."""
    known = {p.name: p.default for p in inspect.signature(function).parameters.values() if isinstance(p.default, bool)}
    off = [name for name in LOSSES if name in known]
    if any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules()):
        off += [name for name in ("swiglu", "geglu") if name in known]  # they would bypass adapters of the experts
    modules = [m for name, m in sys.modules.items() if m is not None and name.startswith("transformers.")]
    before = [(module, dict(vars(module))) for module in modules]
    try:
        function(model=model, **dict.fromkeys(off, False))
    finally:
        for module, attributes in before:
            for name, value in attributes.items():
                if getattr(module, name, value) is value:
                    continue
                if inspect.isclass(value):  # for models that are built later; this one's layers are replaced already
                    setattr(module, name, value)
                else:
                    _replaced.append((module, name, value))
    return sorted(name for name, default in known.items() if default and name not in off)
