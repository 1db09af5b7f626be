"""CUDA's autocast rules for meta tensors, which have no autocast of their own.

The lists follow aten/src/ATen/autocast_mode.h of torch 2.13: matrix products and convolutions run in the lower dtype,
operations that lose accuracy run in fp32, all others keep their dtypes. The CPU's lists are shorter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

LOWER = (
    *("linear", "matmul", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "einsum", "prelu"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
    "scaled_dot_product_attention",
)
WIDE = (
    *("exp", "expm1", "log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "softplus", "logsumexp"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "layer_norm", "group_norm", "cosine_similarity"),
    *("nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "kl_div", "binary_cross_entropy_with_logits"),
    "cross_entropy_loss",  # replaces the CPU rule, which would hide the operations inside
)
WIDE_RESULT = ("softmax.int", "log_softmax.int")  # computed in fp32 unless a dtype is given
KEY = torch._C.DispatchKey.AutocastCPU  # meta tensors have no autocast key, so torch.autocast("cpu") applies
KEYS = torch._C.DispatchKeySet(KEY)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Cast meta tensors by CUDA's rules wherever `torch.autocast("cpu")` is active inside the with block."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # cast weights, kept until autocast ends
    forget = torch.clear_autocast_cache

    def lower(x: Tensor) -> Tensor:
        if not _eligible(x):
            return x
        dtype = torch.get_autocast_dtype("cpu")
        if not (x.dtype == torch.float32 and x.requires_grad and x.is_leaf and torch.is_autocast_cache_enabled()):
            return x.to(dtype)
        if id(x) not in copies:
            with torch.enable_grad():  # the first use may be without gradients, a later one with
                copies[id(x)] = x, x.to(dtype)
        return copies[id(x)][1]

    def clear() -> None:
        copies.clear()
        forget()

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once")  # about replacing the CPU rule
        for names, kernel in ((LOWER, _casting(lower)), (WIDE, _casting(_wide)), (WIDE_RESULT, _asking_wide)):
            for name in names:
                library.impl(name, kernel(_operation(name)), "AutocastCPU")
    try:
        with torch._C._IncludeDispatchKeyGuard(KEY), patch.object(torch, "clear_autocast_cache", clear):
            yield
    finally:
        library._destroy()


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _casting(cast: Callable[[Tensor], Tensor]) -> Callable[[Any], Callable[..., Any]]:
    def kernel_of(operation: Any) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(KEYS):
                args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
                return operation(*args, **kwargs)

        return kernel

    return kernel_of


def _asking_wide(operation: Any) -> Callable[..., Tensor]:
    def kernel(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(KEYS):
            return operation(x, dim, torch.float32 if dtype is None and _eligible(x) else dtype)

    return kernel


def _wide(x: Tensor) -> Tensor:
    return x.float() if _eligible(x) else x


def _eligible(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != torch.float64
