"""Base class of the frozen linear layers whose weight is held in fewer bits than the compute dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.functional import Product, ToMatrix, frozen_linear, with_native_products
from litpeft.ops.autocast import as_autocast, without_autocast


class QuantisedLinear(nn.Linear):
    """y = x Wᵀ + b with a quantised frozen W; W is dequantised for each product and never saved.

    To add one: set `in_features`, `out_features`, `bias`, `dtype`, `compute_dtype` and `transposed`, and implement
    `stored` and `to_matrix`. A sub-class of nn.Linear, so that the methods of PEFT accept the layer.

    Attributes:
        dtype: dtype that `weight` is dequantised to.
        compute_dtype: dtype of the product; None for the dtype of the input. The output has the dtype of the input.
        transposed: whether the layer replaces a Conv1D, which stores its weight as (in, out).
    """

    dtype: torch.dtype
    compute_dtype: torch.dtype | None = None
    transposed = False
    native = False  # whether products may be computed by `ops.native` or `ops.products`

    def __init__(self) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would create a weight

    @property
    def kind(self) -> str:
        """How the weight is held, as in `model.base`."""
        raise NotImplementedError

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The tensors of the quantised weight, the arguments of `to_matrix`."""
        raise NotImplementedError

    @property
    def to_matrix(self) -> ToMatrix:
        """The function that dequantises `stored` to the weight (out, in)."""
        raise NotImplementedError

    def held(self) -> list[Tensor]:
        """Return all tensors that hold the quantised weight, codes first, then the quantisation constants."""
        return list(self._buffers.values())

    def constants(self) -> list[Tensor]:
        """Return the quantisation constants: scales, offsets and tables."""
        return list(self.stored[1:])

    @property
    def weight(self) -> Tensor:
        """The dequantised weight (out, in), computed at each access (T5 and PEFT read the weight's dtype)."""
        return self.to_matrix(*self.stored, dtype=self.dtype)

    @property
    def numbers(self) -> int:
        """Numbers in the weight."""
        return self.in_features * self.out_features

    @property
    def stored_bytes(self) -> int:
        """Bytes of the quantised weight: codes and constants."""
        return sum(tensor.nbytes for tensor in self.held())

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        x = as_autocast(x)
        with without_autocast(x):
            wide = x.to(self.compute_dtype or x.dtype)
            if product := self.fused_product(wide):
                return product(wide, self.bias).to(x.dtype)
            to_matrix = with_native_products(self, self.to_matrix)
            return frozen_linear(wide, self.stored, to_matrix, self.bias).to(x.dtype)

    def fused_product(self, x: Tensor) -> Product | None:
        """Return a function of x and b that computes x Wᵀ + b from the stored form of W, where one pays; else None."""
        return None

    def plain(self, matrix: Tensor | None = None) -> nn.Linear | Conv1D:
        """Return an unquantised layer with the weight `matrix` (out, in), by default the dequantised weight."""
        matrix = self.weight if matrix is None else matrix
        sizes = self.in_features, self.out_features
        with torch.device("meta"):
            layer = Conv1D(*reversed(sizes)) if self.transposed else nn.Linear(*sizes)
        layer.weight = nn.Parameter(matrix.T.contiguous() if self.transposed else matrix, requires_grad=False)
        layer.bias = self.bias
        return layer

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}"


def matrix_of(layer: nn.Linear | Conv1D) -> tuple[Tensor, bool]:
    """Return the weight of a layer as (out, in), and whether the layer stores it transposed."""
    transposed = isinstance(layer, Conv1D)
    return (layer.weight.T if transposed else layer.weight), transposed


def replaced_conv1d(layer: Any) -> bool:
    """Return whether transformers put this layer of bitsandbytes in place of a Conv1D."""
    return getattr(layer, "source_cls", None) is Conv1D
