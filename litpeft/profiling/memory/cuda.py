"""Make torch choose on meta tensors what it chooses on CUDA, so that a trace holds what a GPU would hold.

Fused dropout keeps a mask of one byte per element. Attention uses the flash kernel, or the memory-efficient kernel with
a mask or in fp32. Autocast follows CUDA's lists. Optimizers use foreach or fused kernels.
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

# cuBLAS workspaces in bytes for the threads of forward and backward, taken from the allocator (:4096:2:16:8 KiB)
WORKSPACES = (8_519_680, 8_519_680)
LARGE_WORKSPACES = (2**25, 2**25)
LARGE = (9, 10)  # major compute capabilities of Hopper and data-centre Blackwell
FLASH_HEAD = 256  # largest head size of the flash kernel

aten = torch.ops.aten


def workspaces(capability: int) -> tuple[int, int]:
    """Return the bytes of cuBLAS workspaces on a GPU with this major compute capability."""
    return LARGE_WORKSPACES if capability in LARGE else WORKSPACES


def context_bytes(capability: int) -> int:
    """Return the bytes of the CUDA context: driver, kernels and libraries. Measured on an H100, assumed elsewhere."""
    return (750 if capability in LARGE else 500) * 2**20


@contextmanager
def cuda_choices() -> Iterator[None]:
    """Run meta tensors through the operations that CUDA would use, inside the with block."""
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "AutogradMeta")
    devices = "_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"
    try:
        with patch.multiple(optimizers, **{name: lambda: ["cuda", "meta"] for name in devices}), cuda_autocast():
            yield
    finally:
        library._destroy()


def prepare_bitsandbytes(optimizer: torch.optim.Optimizer) -> None:
    """Prepare the 8-bit codes and the paged states of a bitsandbytes optimizer for a trace.

    Paged states of at least 100,000 elements are in memory that the driver moves between host and GPU and that torch
    does not count, so the trace places them on the host.
    """
    if hasattr(optimizer, "fill_qmap"):
        optimizer.fill_qmap()  # reads values, so it must run before the trace
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
    if attn_mask is None and query.dtype != torch.float32 and query.shape[-1] <= FLASH_HEAD:
        width = query.shape[-1]
        query, key, value = (F.pad(t, (0, -t.shape[-1] % 8)) if t.shape[-1] % 8 else t for t in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :width]
    if enable_gqa and key.shape[-3] != query.shape[-3]:  # the memory-efficient kernel has no grouped-query attention
        given = query, key, value, attn_mask, dropout_p, is_causal
        return aten._scaled_dot_product_attention_math(*given, scale=scale, enable_gqa=True)[0]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    if attn_mask is not None:
        if attn_mask.shape[-1] % 16:  # the kernel needs aligned rows of the bias
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
    # on CUDA, fp16 input with fp32 output is one kernel without a copy
    half = dtype == torch.float32 and x.dtype == torch.float16
    return aten._softmax(x if dtype is None or half else x.to(dtype), dim, half)


KERNELS = {
    "dropout": _dropout,
    "scaled_dot_product_attention": _attention,
    "linear": _linear,
    "softmax.int": _softmax,
}
