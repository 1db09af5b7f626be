"""Linear layers with an adapter: nn.Linear, Conv1D (GPT-2, transposed weight) and quantised layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.functional import Product, ToMatrix, adapted_linear, with_native_products
from litpeft.adapters.layers.base import AdaptedLayer, optimizer_steps
from litpeft.adapters.layers.shared_input import SharedInput
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.adapters.shared_linears import LinearCall
from litpeft.ops.autocast import as_autocast, without_autocast


class AdaptedLinear(AdaptedLayer):
    """nn.Linear with an adapter."""

    prepares = True
    output_is_changed = False  # whether the model changes the output in place
    compute_dtype: torch.dtype | None = None  # dtype of the product; None for the dtype of the input
    native = False  # whether products may be computed by `ops.native` or `ops.products`
    shared_input: SharedInput | None = None  # layers that are called with the same tensor

    def take_over(self, base: nn.Linear) -> None:
        super().take_over(base)
        self.output_is_changed = type(base).__name__ == "FalconLinear"  # Falcon adds the attention to it in place
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The stored tensors of the frozen weight, the arguments of `to_matrix`."""
        return (self.weight,)

    @property
    def to_matrix(self) -> ToMatrix:
        """The function that turns `stored` into W (out, in)."""
        return _cast

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if self.can_share_input():
            if not self.layer_group.observer.done:
                self.layer_group.observer.observe(self, x, optimizer_steps())
            if self.shared_input is not None and (out := self.shared_input.output(self, x)) is not None:
                return out
        x = as_autocast(x)
        with without_autocast(x):
            return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """Compute the layer's output in the dtype of x."""
        wide = x.to(self.compute_dtype or x.dtype)
        stored, to_matrix, bias, A, B, *once = self.call(wide)
        dropout = self.dropout if self.training else 0.0
        out = adapted_linear(wide, stored, to_matrix, bias, A, B, self.scaling, dropout, *once)
        return self.own_output(out.to(x.dtype))

    def call(self, x: Tensor) -> LinearCall:
        """Return what a call with x, in the compute dtype, needs beside x."""
        prepared = self.prepared(x.dtype)
        gain = weight = None
        if self.magnitude is not None and (prepared is None or prepared.gain is None):
            # the norm and the product share W, so that a quantised weight is dequantised once
            if self.norm_group() is None and self.norm_is_stale() and not torch.compiler.is_compiling():
                weight = self.to_matrix(*self.stored, dtype=x.dtype)
            gain = self.gain(weight)
        if weight is None:
            weight = self.fused_product(x)
        parts = self.lora_A, self.lora_B, self.magnitude, gain, weight, prepared
        return LinearCall(self.stored, with_native_products(self, self.to_matrix), self.bias, *parts)

    def own_output(self, out: Tensor) -> Tensor:
        """Return the output, copied where the model changes it in place and backward needs it."""
        keeps_output = self.magnitude is not None and self.bias is None  # for the gradient of the magnitude
        return out.clone() if self.output_is_changed and keeps_output else out

    def can_share_input(self) -> bool:
        """Return whether this call may be computed together with those of other layers."""
        if not (self.training and torch.is_grad_enabled()) or self.dropout or torch.compiler.is_compiling():
            return False
        return self.magnitude is None or self.norm_group() is not None  # without norm group, W is shared with the norm

    def input_key(self) -> tuple[object, ...]:
        """Return a key, equal for layers that one function can compute."""
        return self.in_features, self.scaling, self.lora_A.dtype, self.lora_A.device, self.compute_dtype

    def fused_product(self, x: Tensor) -> Product | None:
        """Return a function of x and b that computes x Wᵀ + b without W in memory; None where this does not pay."""
        return None

    def norm_group(self) -> tuple[object, ...] | None:
        A, device = self.lora_A, self.lora_A.device
        if isinstance(A, DTensor) or any(isinstance(t, DTensor) for t in self.stored):
            return None
        if len(self.stored) > 1 and device.type == "cpu":
            return None  # dequantising takes longer than launches: share W in `compute`
        return A.shape, self.lora_B.shape, A.dtype, self.frozen_dtype(), device, self.squares.dtype, self.scaling

    def plain(self, matrix: Tensor) -> nn.Module:
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = nn.Parameter(matrix, requires_grad=False), self.bias
        return layer


class AdaptedConv1D(AdaptedLinear):
    """Conv1D of transformers (GPT-2) with an adapter: a linear layer that stores its weight as (in, out)."""

    def take_over(self, base: Conv1D) -> None:
        AdaptedLayer.take_over(self, base)
        self.in_features, self.out_features = base.nx, base.nf

    def matrix(self) -> Tensor:
        return self.weight.T

    @property
    def to_matrix(self) -> ToMatrix:
        return _cast_transposed

    def plain(self, matrix: Tensor) -> Conv1D:
        with torch.device("meta"):
            layer = Conv1D(self.out_features, self.in_features)
        layer.weight, layer.bias = nn.Parameter(matrix.T.contiguous(), requires_grad=False), self.bias
        return layer


class AdaptedQuantisedLinear(AdaptedLinear):
    """Quantised linear layer with an adapter. Merging gives the original layer type with a dequantised weight."""

    def take_over(self, base: QuantisedLinear) -> None:
        self.bias, base.bias = base.bias, None
        self.base = base  # a sub-module, so that its buffers move with this layer
        self.in_features, self.out_features = base.in_features, base.out_features

    def frozen(self) -> Iterator[Tensor]:
        return iter(self.base.held())

    def matrix(self) -> Tensor:
        return self.base.weight

    weight = property(matrix)

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of the product; None for the dtype of the input."""
        return self.base.compute_dtype

    def frozen_dtype(self) -> torch.dtype:
        return self.base.compute_dtype or self.base.dtype

    @property
    def stored(self) -> tuple[Tensor, ...]:
        return self.base.stored

    @property
    def to_matrix(self) -> ToMatrix:
        return self.base.to_matrix

    def fused_product(self, x: Tensor) -> Product | None:
        return self.base.fused_product(x)

    def plain(self, matrix: Tensor) -> nn.Module:
        layer = self.base.plain(matrix)
        layer.bias = self.bias
        return layer


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype)


def _cast_transposed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.T.to(dtype)
