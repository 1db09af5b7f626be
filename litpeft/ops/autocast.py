"""Autocast for layers with custom autograd functions, which torch does not cast itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def as_autocast(x: Tensor) -> Tensor:
    """Return x in the autocast dtype if autocast is on, as a linear layer would cast it."""
    kind = _device(x)
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Turn autocast off for the device of x inside the with block."""
    kind = _device(x)
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _device(x: Tensor) -> str:
    return "cpu" if x.is_meta else x.device.type  # memory estimates use meta tensors; they follow the CPU's setting
