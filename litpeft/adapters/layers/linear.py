"""Linear layers with an adapter: torch's, GPT-2's transposed ones, and those held in four bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.functional import Open, adapted_linear
from litpeft.adapters.layers.base import AdaptedLayer
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.ops.autocast import as_autocast, without_autocast


class AdaptedLinear(AdaptedLayer):
    """nn.Linear with an adapter."""

    def take_over(self, base: nn.Linear) -> None:
        super().take_over(base)
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The frozen weight as it is held."""
        return (self.weight,)

    @property
    def open(self) -> Open:
        """From `held` to W (out, in)."""
        return _cast

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        x = as_autocast(x)
        with without_autocast(x):
            return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The product in the dtype of x."""
        norm = opened = None
        if self.magnitude is not None:
            # for the norm and for the product alike: a 4-bit weight is dequantised once
            if self.norm_is_due() and not torch.compiler.is_compiling():
                opened = self.open(*self.held, dtype=x.dtype)
            norm = self.norm(opened)
        dropout = self.dropout if self.training else 0.0
        parts = self.lora_A, self.lora_B, self.scaling, dropout, self.magnitude, norm, opened
        return adapted_linear(x, self.held, self.open, self.bias, *parts)

    def plain(self, matrix: Tensor) -> nn.Module:
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = nn.Parameter(matrix, requires_grad=False), self.bias
        return layer


class AdaptedConv1D(AdaptedLinear):
    """transformers' Conv1D (GPT-2): a linear layer whose weight is (in, out)."""

    def take_over(self, base: Conv1D) -> None:
        AdaptedLayer.take_over(self, base)
        self.in_features, self.out_features = base.nx, base.nf

    def matrix(self) -> Tensor:
        return self.weight.T

    @property
    def open(self) -> Open:
        return _cast_transposed

    def plain(self, matrix: Tensor) -> Conv1D:
        with torch.device("meta"):
            layer = Conv1D(self.out_features, self.in_features)
        layer.weight, layer.bias = nn.Parameter(matrix.T.contiguous(), requires_grad=False), self.bias
        return layer


class AdaptedLinear4bit(AdaptedLinear):
    """A four-bit layer with an adapter. It is merged into the layer that was quantised, with its weight dequantised."""

    def take_over(self, base: Linear4bit) -> None:
        self.bias, base.bias = base.bias, None
        self.base = base  # its buffers go with it to other devices
        self.in_features, self.out_features = base.in_features, base.out_features

    def frozen(self) -> Iterator[Tensor]:
        return self.base.buffers()

    def matrix(self) -> Tensor:
        return self.base.weight

    weight = property(matrix)

    @property
    def held(self) -> tuple[Tensor, ...]:
        return self.base.held

    @property
    def open(self) -> Open:
        return self.base.open

    def plain(self, matrix: Tensor) -> nn.Module:
        layer = self.base.plain(matrix)
        layer.bias = self.bias
        return layer

    def compute(self, x: Tensor) -> Tensor:
        return super().compute(x.to(self.base.compute_dtype or x.dtype)).to(x.dtype)


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype)


def _cast_transposed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.T.to(dtype)
