"""Dropout with masks that can be drawn again from a seed; drawing is ten times as fast on a CPU as torch's."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from litpeft.ops.native import library
from litpeft.ops.native.dropout import DropoutMask, add_kept, can_compute, masked, native_dropout


def new_seed() -> int:
    """Draw a seed from torch's global CPU generator, whose state is in checkpoints."""
    return int(torch.randint(2**62, (), device="cpu"))


def keep_mask(x: Tensor, dropout: float, seed: int) -> Tensor:
    """Return a uint8 dropout mask in the shape of x (1: keep, 0: drop), which depends only on shape and seed.

    On a CPU each number uses 16 random bits, so the share of zeros is `dropout` to within 2^-17. Does not use the
    global generator.
    """
    mask = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    if x.device.type != "cpu":  # one launch
        generator = None if x.is_meta else _generator(x.device).manual_seed(seed)
        return mask.bernoulli_(1 - dropout, generator=generator)
    count = x.numel()
    words = -(-count // 4)  # one random int64 serves four numbers
    if isinstance(x, FakeTensor):  # a memory estimate: allocate the same bytes without drawing
        draws = torch.empty(words, dtype=torch.int64, device=x.device).view(torch.int16)
    else:
        draws = torch.from_numpy(np.random.SFC64(seed).random_raw(words).view(np.int16))  # twice as fast as torch's
    threshold = min(round(dropout * 65536) - 32768, 32767)  # the draws are signed
    # not bool: on a CPU, comparing to bool and multiplying with bool take five times as long
    return torch.ge(draws[:count].view(x.shape), threshold, out=mask)


def functional_mask(x: Tensor, dropout: float) -> Tensor:
    """Return a bool dropout mask in the shape of x (True: keep), from torch's global generator.

    For compiled calls: the compiler fuses the mask into the product with x and can draw it again in backward.
    """
    return torch.rand(x.shape, device=x.device) >= dropout


def input_mask(x: Tensor, dropout: float, seed: int | None, native: bool) -> Tensor | DropoutMask | None:
    """Return the dropout mask of an adapter's input: 1 for numbers of x that stay; None without a seed.

    With `native`, what the C functions draw the mask from, where they can compute.
    """
    if seed is None:
        return None
    in_c = native and can_compute(x) and library.available()
    return DropoutMask.of(dropout, seed, scaled=False) if in_c else keep_mask(x, dropout, seed)


def zeroed(x: Tensor, mask: Tensor | DropoutMask | None) -> Tensor:
    """Return x with the mask applied but not scaled by 1 / (1 - dropout)."""
    if isinstance(mask, DropoutMask):
        return masked(x, mask)
    return x if mask is None else x * _factor(mask, x)


def add_zeroed(out: Tensor, x: Tensor, mask: Tensor | DropoutMask) -> Tensor:
    """Add `zeroed(x, mask)` to a contiguous tensor in place."""
    return add_kept(out, x, mask) if isinstance(mask, DropoutMask) else out.addcmul_(x, _factor(mask, x))


def _factor(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask in x's dtype on a CPU, where a product of two dtypes takes five times as long."""
    return mask.to(x.dtype) if x.device.type == "cpu" else mask


@cache
def _generator(device: torch.device) -> torch.Generator:
    """Return one generator per GPU: creating a generator takes longer than drawing."""
    return torch.Generator(device)


class Dropout(nn.Dropout):
    """nn.Dropout with masks that are drawn from a seed: other random numbers than torch's, the same distribution."""

    native = False  # whether to use the C function

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or torch.compiler.is_compiling():
            return super().forward(x)
        if self.native and can_compute(x) and library.available():
            return native_dropout(x, self.p, new_seed())
        return _Dropout.apply(x, self.p, new_seed())


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, seed: int) -> Tensor:
        mask = keep_mask(x, share, seed)
        ctx.save_for_backward(mask)
        ctx.factor = 1 / (1 - share)
        return (x * mask.to(x.dtype)).mul_(ctx.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (grad * mask.to(grad.dtype)).mul_(ctx.factor), None, None


def use_lean_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout of a model by `Dropout`."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
