"""Let a model compute its products of 16-bit numbers in fp32, on CPUs without instructions for them.

A mode (torch.overrides) sees each function of torch that a forward pass calls, so that the products of a model's own
attention, router or scan are found as well as those of its layers. Adapted and quantised layers, and `attention`, have
backward passes of their own and read an attribute. Evaluation computes in the same way as training.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from litpeft.ops import products
from litpeft.ops.autocast import as_autocast, without_autocast
from litpeft.ops.wide_functions import wide_grouped_mm, wide_linear, wide_matmul


def use_wide_products(model: nn.Module) -> str:
    """Let a model compute products in fp32, and return the name of this for the run record."""
    called = {model}  # modules that are called by themselves; blocks are by gradient checkpointing
    for module in model.modules():
        module.native = True  # read by `attention` and by adapted and quantised layers
        if isinstance(module, (PreTrainedModel, GradientCheckpointingLayer)):
            called.add(module)
        if isinstance(module, PreTrainedModel) and isinstance(head := module.get_output_embeddings(), nn.Module):
            called.add(head)  # by the loss
    for module in called:
        if not hasattr(module, "has_wide_products"):
            module.__class__ = _wide(type(module))
    return "products in fp32"


@cache
def _wide(base: type) -> type:
    """Return a sub-class of a module's class whose forward pass computes products in fp32."""

    @wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        with wide_products():
            return base.forward(self, *args, **options)

    return type(base.__name__, (base,), {"__module__": base.__module__, "forward": forward, "has_wide_products": True})


_here = threading.local()


@contextmanager
def wide_products() -> Iterator[None]:
    """Compute the slow products of functions of torch in fp32 inside the with block, and in their backward passes."""
    if getattr(_here, "active", False):
        yield
        return
    _here.active = True
    try:
        with _WideProducts():
            yield
    finally:
        _here.active = False


class _WideProducts(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wide = WIDE.get(getattr(func, "__name__", ""))
        if wide is None or "out" in kwargs:
            return func(*args, **kwargs)
        given, options = (args, kwargs) if wide is _grouped_mm else tree_map(_rounded, (args, kwargs))
        tensors = [each for each in tree_leaves((given, options)) if _is_real(each)]
        if not tensors or not products.are_slow(tensors[0]) or len({each.dtype for each in tensors}) > 1:
            return func(*args, **kwargs)
        with without_autocast(tensors[0]):
            return wide(func, *given, **options)


def _is_real(given: Any) -> bool:
    return isinstance(given, Tensor) and given.is_floating_point()


def _rounded(given: Any) -> Any:
    """Return what autocast makes of an argument."""
    return as_autocast(given) if _is_real(given) and given.dtype != torch.float64 else given


def _linear(func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return wide_linear(input, weight, bias)


def _matmul(func: Any, *factors: Tensor, **options: Any) -> Tensor:
    if options or any(each.ndim < 2 for each in factors):
        return _any(func, *factors, **options)
    a, b = factors
    return wide_linear(a, b.T, None) if b.ndim == 2 else wide_matmul(a, b)


def _addmm(func: Any, *given: Tensor, **options: Any) -> Tensor:
    if options or given[0].ndim != 1:
        return _any(func, *given, **options)
    bias, x, weight = given
    return wide_linear(x, weight.T, bias)


def _grouped_mm(func: Any, a: Tensor, b: Tensor, offs: Tensor | None = None, **others: Any) -> Tensor:
    if offs is None or a.ndim != 2 or b.ndim != 3 or any(each is not None for each in others.values()):
        return func(a, b, offs=offs, **others)
    return wide_grouped_mm(a, b, offs)


def _any(func: Any, *args: Any, **options: Any) -> Tensor:
    """Compute a function that few models call; the factors that autograd saves are fp32."""
    dtype = next(each.dtype for each in tree_leaves((args, options)) if _is_real(each))
    args, options = tree_map(lambda each: each.float() if _is_real(each) else each, (args, options))
    return func(*args, **options).to(dtype)


WIDE: dict[str, Callable[..., Tensor]] = {  # function of torch, or method of Tensor -> what is called in its place
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "addmm": _addmm,
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), _grouped_mm),
    **dict.fromkeys(("baddbmm", "addbmm", "einsum", "conv1d", "conv2d", "conv3d"), _any),
}
