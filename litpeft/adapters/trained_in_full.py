"""Modules that every adapter trains in full, in fp32, inside a base of another dtype: heads and new parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.errors import UserError


class CastTo(nn.Module):
    """Parametrization that casts an fp32 parameter to the base's dtype whenever its module reads it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter.to(self.dtype)


def find_modules_to_save(suffixes: Sequence[str], model: nn.Module) -> list[str]:
    """Return the names of the modules with these name suffixes; refuse unknown suffixes and tied weights."""
    names = []
    for suffix in suffixes:
        found = [name for name, module in model.named_modules() if f".{name}".endswith(f".{suffix}") and name]
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name, _ in model.named_modules() if name}))
            raise UserError(f"model.adapter.modules_to_save: {suffix!r} is no module of this model; it has: {known}.")
        for name in found:
            module = model.get_submodule(name)  # a ModuleList has no forward of its own: take its items
            names += [f"{name}.{i}" for i in range(len(module))] if isinstance(module, nn.ModuleList) else [name]
    owners: dict[int, set[str]] = {}  # id of a parameter -> all its names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    for name in names:
        tied = {other for p in model.get_submodule(name).parameters() for other in owners[id(p)]}
        if outside := sorted(other for other in tied if not other.startswith(f"{name}.")):
            raise UserError(
                f"model.adapter.modules_to_save: {name} shares its weight with {outside[0]}; "
                "put it into model.adapter.targets instead."
            )
    return names


def base_dtype(model: nn.Module, head: Sequence[str]) -> torch.dtype:
    """Return the dtype of the base: of its first floating-point parameter outside of the head.

    The head may be the first module, and a newly initialised head may be fp32 in a bf16 model.
    """
    base = (p.dtype for name, p in model.named_parameters() if not any(name.startswith(f"{part}.") for part in head))
    return next((dtype for dtype in base if dtype.is_floating_point), torch.float32)


def outermost(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names without those inside another module of `names` or `others`, and without duplicates."""
    return [
        name
        for name in dict.fromkeys(names)
        if not any(f"{name}.".startswith(f"{other}.") for other in [*others, *(set(names) - {name})])
    ]


def train_in_full(module: nn.Module, dtype: torch.dtype, cast_output: bool = False) -> None:
    """Train a module in fp32 inside a model of another dtype: cast its inputs to fp32.

    Args:
        module: the module to train in full.
        dtype: dtype of the model.
        cast_output: whether to cast the outputs back to `dtype`, because layers of the base follow.

    Raises:
        UserError: a layer of the module is quantised.
    """
    if any(isinstance(layer, QuantisedLinear) for layer in module.modules()):
        raise UserError(
            f"model.base: {type(module).__name__} is to be trained in full but quantised; name it among the modules "
            "that the base leaves out, such as modules_to_not_convert."
        )
    module.requires_grad_(True)
    module.float()
    if dtype != torch.float32:
        module.register_forward_pre_hook(cast_inputs, with_kwargs=True)
        if cast_output:
            module.register_forward_hook(partial(cast_output_to, dtype))


def train_without_children(module: nn.Module, dtype: torch.dtype) -> None:
    """Train a module's direct parameters in fp32, not those of its children; cast its output to the base's dtype."""
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad = True
        parameter.data = parameter.data.float()
    if dtype != torch.float32:
        if not list(module.children()):
            module.register_forward_pre_hook(cast_inputs, with_kwargs=True)
        module.register_forward_hook(partial(cast_output_to, dtype))


def cast_inputs(module: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return tuple(_to_fp32(x) for x in inputs), {name: _to_fp32(x) for name, x in options.items()}


def _to_fp32(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(_to_fp32(item) for item in x)
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def cast_output_to(dtype: torch.dtype, module: nn.Module, inputs: tuple, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(cast_output_to(dtype, module, inputs, item) for item in output)
    return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output
