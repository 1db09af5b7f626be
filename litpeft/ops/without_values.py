"""Tensors without values, meta and fake ones, with which memory estimates are made."""

from __future__ import annotations

from torch import Tensor


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor has values that can be read."""
    return not (tensor.is_meta or hasattr(tensor, "fake_mode"))
