"""Frozen linear layer with an eight-bit weight: LLM.int8() with the operators of bitsandbytes (GPU and CPU).

Each row of W shares one fp32 `absmax`: W = absmax / 127 times whole numbers from -127 to 127. The input is quantised
row by row too, and the product is one of whole numbers. Columns of the input in which a number reaches the threshold
are multiplied in the compute dtype instead (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 3).
Backward dequantises W, as if the input had not been quantised (straight-through).

Codes, outputs and gradients are those of bitsandbytes' `Linear8bitLt`, which also saves the input for backward; this
layer saves nothing. All tensors are plain buffers, so they are counted, moved and traced like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.linear4bit import bitsandbytes
from litpeft.adapters.quantised_linear import QuantisedLinear, matrix_of, replaced_conv1d
from litpeft.ops.without_values import has_values

THRESHOLD = 6.0  # of the paper, section 3.2, and of transformers


class Linear8bit(QuantisedLinear):
    """y = x Wᵀ + b with W stored in eight bits and products of whole numbers.

    Args:
        weight: (out, in), in the dtype to dequantise to; quantised on its own device, from fp16 as in bitsandbytes.
        bias: (out) or None.
        threshold: columns of the input with a number of at least this size are not quantised; 0: all are quantised.
        transposed: whether the layer replaces a Conv1D, which stores its weight as (in, out).
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, threshold: float = THRESHOLD, transposed: bool = False
    ) -> None:
        super().__init__()
        bitsandbytes()  # registers the operators
        if weight.is_meta:
            codes = weight.new_empty(weight.shape, dtype=torch.int8)
            absmax = weight.new_empty(len(weight), dtype=torch.float32)
        else:
            half = weight.detach().contiguous().to(torch.float16)
            codes, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(half)
            codes = codes.masked_fill(absmax[:, None] == 0, 0)  # a row of zeros was divided by zero
        self._store(codes, absmax, bias, weight.dtype, threshold, transposed)

    @classmethod
    def from_linear(cls, layer: nn.Linear | Conv1D, **options: Any) -> Linear8bit:
        """Return the quantised copy of a linear layer of torch or transformers."""
        weight, transposed = matrix_of(layer)
        return cls(weight, layer.bias, transposed=transposed, **options)

    @classmethod
    def from_bitsandbytes(cls, layer: nn.Module, dtype: torch.dtype) -> Linear8bit:
        """Convert a `Linear8bitLt` of bitsandbytes, with the same codes and constants; `dtype` is that of the model."""
        bitsandbytes()
        state, weight = layer.state, layer.weight
        codes = next(held for held in (weight.CB, state.CB, weight.data) if held is not None)
        absmax = next(held for held in (weight.SCB, state.SCB) if held is not None)
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._store(codes, absmax, layer.bias, dtype, state.threshold, replaced_conv1d(layer))
        return new

    def _store(
        self,
        codes: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        threshold: float,
        transposed: bool,
    ) -> None:
        self.out_features, self.in_features = codes.shape
        self.dtype, self.threshold, self.transposed = dtype, threshold, transposed
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.bias = bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear8bit:
        """Move the buffers to other devices, but do not cast the constants when the model is cast to another dtype."""
        absmax = self.absmax
        super()._apply(fn, recurse)
        self.absmax = absmax.to(self.codes.device)
        return self

    @property
    def kind(self) -> str:
        return "int8"

    @property
    def stored(self) -> tuple[Tensor, ...]:
        return self.codes, self.absmax

    @property
    def to_matrix(self) -> Int8Matrix:
        return Int8Matrix(self.threshold)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8, threshold={self.threshold:g}"


@dataclass(frozen=True)
class Int8Matrix:
    """Dequantises codes (out, in) and absmax (out), and multiplies with them without dequantising."""

    threshold: float

    def __call__(self, codes: Tensor, absmax: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Return the weight (out, in) in `dtype`, rounded once."""
        return codes.to(dtype).mul_(absmax[:, None] * (1 / 127))

    def product(self, x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b of shape (N, out) in the dtype of x; x is (N, in)."""
        kernels = torch.ops.bitsandbytes
        if not x.numel():
            return x.new_zeros(len(x), len(codes))
        # no outliers in estimates: meta and fake tensors have no values
        threshold = self.threshold if has_values(x) else 0.0
        half = x.to(torch.float16, copy=threshold > 0)  # the kernel sets outliers to zero for a moment
        whole, row_absmax, outliers = kernels.int8_vectorwise_quant(half, threshold)
        # as int8_mixed_scaled_mm, in steps that memory tracker and estimate see: the sums take four bytes
        sums = kernels.int8_linear_matmul(whole, codes)
        first = torch.float16 if x.is_meta else x.dtype  # estimates for GPUs: the CUDA kernel writes fp16 and casts
        out = kernels.int8_mm_dequant(sums, row_absmax, absmax, dtype=first, bias=bias).to(x.dtype)
        if outliers is not None and outliers.numel():
            columns = kernels.int8_vectorwise_dequant(codes[:, outliers].contiguous(), absmax).to(x.dtype)
            out.addmm_(x[:, outliers], columns.T)
        return out
