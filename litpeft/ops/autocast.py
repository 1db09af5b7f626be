"""Autocast, as a layer that computes by its own rules has to see it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def as_autocast(x: Tensor) -> Tensor:
    """x as a linear layer would see it: where autocast is on, in its dtype."""
    kind = _device(x)
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Within, what is computed with x keeps the dtypes that it is given."""
    kind = _device(x)
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _device(x: Tensor) -> str:
    return "cpu" if x.is_meta else x.device.type  # the tensors of an estimate follow the host's
