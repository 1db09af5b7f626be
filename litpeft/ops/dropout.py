"""Dropout whose masks cost a CPU a tenth of what torch's do, and can be drawn again from a seed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable


def new_seed() -> int:
    """From torch's global generator on the host: a run's seed decides it, and a saved state takes it up again."""
    return int(torch.randint(2**62, (), device="cpu"))


def kept(x: Tensor, dropout: float, seed: int) -> Tensor:
    """Which numbers of x a dropout keeps, 1 or 0 as uint8: the same for the same seed, the global generator aside.

    Sixteen random bits a number, four numbers a draw. The share that is zeroed is `dropout` to within 2^-17.
    """
    count, device = x.numel(), x.device
    words = -(-count // 4)
    if x.is_meta or isinstance(x, FakeTensor):  # of an estimate: no numbers, but as many bytes
        draws = torch.empty(words, dtype=torch.int64, device=device).view(torch.int16)
    elif device.type == "cpu":
        draws = torch.from_numpy(np.random.SFC64(seed).random_raw(words).view(np.int16))  # twice as fast as torch's
    else:
        generator = _generator(device).manual_seed(seed)
        draws = torch.empty(words, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
        draws = draws.view(torch.int16)
    least = min(round(dropout * 65536) - 32768, 32767)  # the draws are signed
    mask = torch.empty(x.shape, dtype=torch.uint8, device=device)
    # into a tensor of this dtype: asked for a bool, and multiplied with one, a CPU takes five times as long
    return torch.ge(draws[:count].view(x.shape), least, out=mask)


@cache
def _generator(device: torch.device) -> torch.Generator:
    """One a GPU: to make one takes longer than to draw."""
    return torch.Generator(device)


class Dropout(nn.Dropout):
    """nn.Dropout with these masks; the random numbers, not the distribution, differ."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or torch.compiler.is_compiling():
            return super().forward(x)
        return _Dropout.apply(x, self.p, new_seed())


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, seed: int) -> Tensor:
        mask = kept(x, share, seed)
        ctx.save_for_backward(mask)
        ctx.factor = 1 / (1 - share)
        return (x * mask.to(x.dtype)).mul_(ctx.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (grad * mask.to(grad.dtype)).mul_(ctx.factor), None, None


def use_lean_dropout(model: nn.Module) -> None:
    """Give all of a model's nn.Dropout these masks."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
