"""What an adapter leaves out is counted by kind."""

from __future__ import annotations

import torch
from torch import nn

from litpeft.adapters.not_adapted import not_adapted


class Odd(nn.Module):
    """A parameter with the name of an expert's weight that is none, weights that are, and what needs no mention."""

    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Parameter(torch.zeros(3, 2), requires_grad=False)
        self.up_proj = nn.Parameter(torch.zeros(2, 3, 2), requires_grad=False)
        self.trained = nn.Parameter(torch.zeros(5, 5))
        self.norm = nn.Parameter(torch.zeros(7), requires_grad=False)


def test_weights_are_counted_by_kind() -> None:
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 4), nn.RNN(2, 3), Odd(), nn.Linear(2, 2), nn.RNN(2, 1))
    for module in (model[0], model[1], model[3], model[4]):
        module.requires_grad_(False)
    model[0].half()
    assert not_adapted(model) == {
        "ConvTranspose1d": {"params": 24, "bytes": 48, "dtype": "float16", "example": "0.weight"},
        "RNN": {"params": 18, "bytes": 72, "dtype": "float32", "example": "1.weight_ih_l0"},
        "Odd": {"params": 6, "bytes": 24, "dtype": "float32", "example": "2.down_proj"},
        "experts": {"params": 12, "bytes": 48, "dtype": "float32", "example": "2.up_proj"},
    }
