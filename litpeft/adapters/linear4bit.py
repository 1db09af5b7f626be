"""Frozen linear layer with a quantised (4-bit) weight: NF4 or FP4, with the kernels of bitsandbytes (GPU and CPU).

A block of 64 numbers shares one fp32 `absmax`, and each number is `absmax` times one of 16 codes (Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314, section 3). Double quantisation stores `absmax` in eight bits; 256 of them share an
fp32 constant. So a number takes 4 + 32/64 = 4.5 bits, or 4 + 8/64 + 32/(64 * 256) = 4.127 bits.

All tensors are plain buffers, so they are counted, moved and traced like any other. In bitsandbytes' own layer the
weight is a tensor sub-class with its constants in an attribute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.functional import Product, ToMatrix
from litpeft.adapters.quantised_linear import QuantisedLinear, matrix_of, replaced_conv1d
from litpeft.errors import UserError

BLOCK, NESTED_BLOCK = 64, 256
FUSED = ("cuda",)  # devices on which bitsandbytes' fused product pays


class Linear4bit(QuantisedLinear):
    """y = x Wᵀ + b with W stored in four bits; W is dequantised for each product and never saved.

    Args:
        weight: (out, in), in the dtype to dequantise to; quantised on its own device.
        bias: (out) or None.
        quant_type: `nf4` (codes at the quantiles of a normal distribution) or `fp4` (one sign bit, two exponent bits,
            one mantissa bit).
        double_quant: whether the constants of the blocks (`absmax`) are quantised too.
        compute_dtype: dtype of the product; None for the dtype of the input. The output has the dtype of the input.
        transposed: whether the layer replaces a Conv1D, which stores its weight as (in, out).
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        quant_type: str = "nf4",
        double_quant: bool = True,
        compute_dtype: torch.dtype | None = None,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.transposed = transposed
        if weight.is_meta:
            codes, state = _shapes(weight, quant_type, double_quant)
        else:
            codes, state = bitsandbytes().functional.quantize_4bit(
                weight.detach().contiguous(), blocksize=BLOCK, quant_type=quant_type, compress_statistics=double_quant
            )
        self._store(codes, state, bias, compute_dtype)

    @classmethod
    def from_linear(cls, layer: nn.Linear | Conv1D, **options: Any) -> Linear4bit:
        """Return the quantised copy of a linear layer of torch or transformers."""
        weight, transposed = matrix_of(layer)
        return cls(weight, layer.bias, transposed=transposed, **options)

    @classmethod
    def from_bitsandbytes(cls, layer: nn.Module) -> Linear4bit:
        """Convert a layer of bitsandbytes, with the same codes and constants.

        Raises:
            UserError: the weight was repacked for CPU inference, which bitsandbytes does on some processors.
        """
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise UserError("a 4-bit layer of bitsandbytes was repacked for inference; load the model again.")
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.transposed = replaced_conv1d(layer)
        new._store(layer.weight.data, layer.weight.quant_state, layer.bias, layer.compute_dtype)
        return new

    def _store(self, codes: Tensor, state: Any, bias: Tensor | None, compute_dtype: torch.dtype | None) -> None:
        self.out_features, self.in_features = state.shape
        self.quant_type, self.dtype, self.compute_dtype = state.quant_type, state.dtype, compute_dtype
        self.register_buffer("codes", codes.view(-1, 1))  # two numbers per byte
        self.register_buffer("absmax", state.absmax)
        self.double_quant = state.nested
        if state.nested:
            self.register_buffer("nested_absmax", state.state2.absmax)
            self.register_buffer("offset", state.offset)
        self._table = _nested_codes(codes.device)  # shared by all layers, so not a buffer
        self.bias = bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear4bit:
        """Move the buffers to other devices, but do not cast them when the model is cast to another dtype."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            setattr(self, name, tensor.to(self.codes.device))
        self._table = _nested_codes(self.codes.device)
        return self

    @property
    def kind(self) -> str:
        return self.quant_type

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The tensors of the quantised weight, the arguments of `to_matrix`."""
        nested = (self.nested_absmax, self.offset, self._table) if self.double_quant else ()
        return (self.codes, self.absmax, *nested)

    @property
    def to_matrix(self) -> ToMatrix:
        """The function that dequantises `stored` to the weight (out, in)."""
        return partial(dequantise, shape=(self.out_features, self.in_features), quant_type=self.quant_type)

    def fused_product(self, x: Tensor) -> Product | None:
        """Return bitsandbytes' product x Wᵀ + b, as a function of x and b, for evaluation on a GPU; else None.

        For few rows it reads the four-bit weight once and never writes W; for many rows it dequantises W first. Not in
        training, where forward and backward must use the same rounding of W, also if a checkpoint repeats forward.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type not in FUSED:
            return None
        kernel = getattr(torch.ops.bitsandbytes, "gemm_4bit", None)  # bitsandbytes 0.50
        return None if kernel is None or self.in_features % BLOCK else partial(self._product, kernel.default)

    def _product(self, kernel: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        shape, bias = [self.out_features, self.in_features], None if bias is None else bias.to(x.dtype)
        if not self.double_quant:
            return kernel(x, self.codes, shape, self.absmax, BLOCK, self.quant_type, bias)
        nested = self.absmax, self._table, self.offset
        return kernel(x, self.codes, shape, self.nested_absmax, BLOCK, self.quant_type, bias, *nested)

    def extra_repr(self) -> str:
        nested = ", double_quant" if self.double_quant else ""
        return f"in={self.in_features}, out={self.out_features}, {self.quant_type}{nested}"


def dequantise(
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None = None,
    offset: Tensor | None = None,
    table: Tensor | None = None,
    *,
    shape: tuple[int, int],
    quant_type: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return the weight (out, in) in `dtype`."""
    # as one row: on a CPU, bitsandbytes 0.50 uses a wrong constant where a block continues over the end of a row
    kernels = torch.ops.bitsandbytes
    if nested_absmax is not None:
        absmax = kernels.dequantize_blockwise(absmax, nested_absmax, table, NESTED_BLOCK, torch.float32) + offset
    return kernels.dequantize_4bit(codes, absmax, BLOCK, quant_type, (1, shape[0] * shape[1]), dtype).view(shape)


def _shapes(weight: Tensor, quant_type: str, double_quant: bool) -> tuple[Tensor, SimpleNamespace]:
    """Return codes and state for a meta weight, without calling bitsandbytes, which would cache the meta device."""
    bitsandbytes()  # registers the operators that a traced forward calls
    blocks = -(-weight.numel() // BLOCK)
    absmax = weight.new_empty(blocks, dtype=torch.uint8 if double_quant else torch.float32)
    nested = SimpleNamespace(absmax=weight.new_empty(-(-blocks // NESTED_BLOCK), dtype=torch.float32))
    offset = weight.new_empty((), dtype=torch.float32)
    state = SimpleNamespace(shape=weight.shape, quant_type=quant_type, dtype=weight.dtype, absmax=absmax)
    state.nested, state.state2, state.offset = double_quant, nested, offset
    return weight.new_empty((-(-weight.numel() // 2), 1), dtype=torch.uint8), state


@cache
def _nested_codes(device: torch.device) -> Tensor:
    """Return the 256 codes of quantised constants; one table per device, shared by all layers."""
    if device.type == "meta":
        return torch.empty(256, device=device)
    with torch.inference_mode(False):
        return bitsandbytes().functional.create_dynamic_map().to(device)


@cache
def bitsandbytes() -> Any:
    """Import bitsandbytes at first use: the import is slow, and its optimizer names clash with torch's in YAML."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # silence warnings about optional kernels
    import bitsandbytes as library

    return library


def quantisation_failure(device: torch.device) -> str | None:
    """Return why bitsandbytes cannot quantise on this device; None if it can."""
    if device.type == "meta":
        return None
    try:
        probe = Linear4bit(torch.ones(BLOCK, BLOCK, device=device), None)
        return None if bool((probe.weight == 1).all()) else "a matrix of ones did not survive quantisation"
    except Exception as error:  # a missing library, kernel or driver raises many kinds of errors
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__
