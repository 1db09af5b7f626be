"""Dropout in bf16 on a CPU in one pass, in C; backward draws the mask again, so none is saved."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litpeft.ops.native import library


class DropoutMask(ctypes.Structure):
    """What the C functions need to draw a dropout mask, which depends on a number's position and on this alone."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("share", "first_key", "second_key")] + [("factor", ctypes.c_float)]

    @classmethod
    def of(cls, probability: float, seed: int, scaled: bool = True) -> DropoutMask:
        """Return the mask of a seed (0 to 2^64 - 1); probability 0 draws nothing.

        Args:
            probability: share of the numbers that are dropped.
            seed: seed of the mask.
            scaled: whether the numbers that stay are divided by 1 - probability.
        """
        share, keys = min(round(probability * 2**32), 2**32 - 1), _mixed(seed)
        return cls(share, keys & 0xFFFFFFFF, keys >> 32, 1 / (1 - probability) if scaled else 1.0)


def _mixed(seed: int) -> int:
    """Return 64 bits that have nothing in common for seeds that differ in one bit (SplitMix64, Steele et al. 2014)."""
    whole = (1 << 64) - 1
    bits = seed + 0x9E3779B97F4A7C15 & whole
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & whole
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & whole
    return bits ^ bits >> 31


def can_compute(x: Tensor) -> bool:
    """Return whether `native_dropout` takes this tensor."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() % library.LANES == 0


def native_dropout(x: Tensor, probability: float, seed: int) -> Tensor:
    """Return x / (1 - p) where it is kept, else 0; the mask depends on shape and seed only."""
    library.check_whole(x)
    return _Dropout.apply(x, DropoutMask.of(probability, seed))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: DropoutMask) -> Tensor:
        ctx.mask = mask
        return masked(x, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return masked(grad, ctx.mask), None


def masked(x: Tensor, mask: DropoutMask) -> Tensor:
    """Return x, times the mask's factor, where it is kept, else 0."""
    x = x.contiguous()
    out = torch.empty_like(x)
    library.call("dropout", x, out, x.numel(), mask)
    return out


def add_kept(out: Tensor, x: Tensor, mask: DropoutMask) -> Tensor:
    """Add x, where it is kept, to a contiguous tensor in place; without the mask's factor."""
    library.call("add_kept", x.contiguous(), out, x.numel(), mask)
    return out
