"""The choices that torch makes on CUDA, made for tensors on the meta device: what is traced is what a GPU would hold.

Fused dropout keeps a mask of a byte a number; attention takes the flash kernel, or with a mask or in fp32 the
memory-efficient one; autocast follows CUDA's lists; optimizers work on many tensors at once, or fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import optimizer as optimizers

from litpeft.profiling.memory.cuda_autocast import cuda_autocast

# cuBLAS's, which torch takes from its allocator, for the threads of forward and backward: :4096:2:16:8 in KiB
WORKSPACES = (8_519_680, 8_519_680)
LARGE_WORKSPACES = (2**25, 2**25)
LARGE = (9, 10)  # major compute capabilities of Hopper and of data centres' Blackwell
FLASH_HEAD = 256  # widest head that the flash kernel takes

aten = torch.ops.aten


def workspaces(capability: int) -> tuple[int, int]:
    """Bytes of cuBLAS's workspaces on a GPU of this major compute capability."""
    return LARGE_WORKSPACES if capability in LARGE else WORKSPACES


def context_bytes(capability: int) -> int:
    """What driver, kernels and libraries take beside the allocator: seen on an H100, elsewhere an assumption."""
    return (750 if capability in LARGE else 500) * 2**20


@contextmanager
def cuda_choices() -> Iterator[None]:
    """Within, tensors on the meta device are computed with as CUDA would do it."""
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "AutogradMeta")
    devices = "_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"
    try:
        with patch.multiple(optimizers, **{name: lambda: ["cuda", "meta"] for name in devices}), cuda_autocast():
            yield
    finally:
        library._destroy()


def leave_to_driver(optimizer: torch.optim.Optimizer) -> None:
    """Prepare an optimizer of bitsandbytes: the codes of its 8-bit states, and its paged states.

    Those of 100,000 numbers and more lie in memory that the driver moves between host and GPU as it likes, which torch
    does not count: here they are on the host.
    """
    if hasattr(optimizer, "fill_qmap"):
        optimizer.fill_qmap()  # it looks at numbers: before there are none
    if not getattr(optimizer, "is_paged", False):
        return
    optimizer.is_paged = False
    plain = optimizer.get_state_buffer

    def buffer(parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        if not parameter.is_meta or parameter.numel() < 1e5:
            return plain(parameter, dtype)
        state = torch.zeros(1, dtype=dtype).expand(parameter.shape)
        state.is_paged = True
        return state

    optimizer.get_state_buffer = buffer


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    return aten.native_dropout(x, p, train)[0] if train and p else x


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if attn_mask is None and query.dtype != torch.float32 and query.shape[-1] <= FLASH_HEAD:
        width = query.shape[-1]
        query, key, value = (F.pad(t, (0, -t.shape[-1] % 8)) if t.shape[-1] % 8 else t for t in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :width]
    if enable_gqa and key.shape[-3] != query.shape[-3]:  # which the memory-efficient kernel has not
        given = query, key, value, attn_mask, dropout_p, is_causal
        return aten._scaled_dot_product_attention_math(*given, scale=scale, enable_gqa=True)[0]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    if attn_mask is not None:
        if attn_mask.shape[-1] % 16:  # the kernel wants rows of the bias aligned
            attn_mask = F.pad(attn_mask, (0, -attn_mask.shape[-1] % 16))[..., : attn_mask.shape[-1]]
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    learns = any(t.requires_grad for t in (query, key, value)) and torch.is_grad_enabled()
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, learns, dropout_p, is_causal, scale=scale
    )[0]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
    return out.view(*x.shape[:-1], weight.shape[0])


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    # half to fp32 is one kernel on CUDA, without a copy
    half = dtype == torch.float32 and x.dtype == torch.float16
    return aten._softmax(x if dtype is None or half else x.to(dtype), dim, half)


KERNELS = {
    "dropout": _dropout,
    "scaled_dot_product_attention": _attention,
    "linear": _linear,
    "softmax.int": _softmax,
}
