"""A frozen linear layer held in four bits a number: NF4 or FP4 by bitsandbytes' own kernels, on GPUs and CPUs alike.

Blocks of 64 numbers share one fp32 `absmax`; each number is one of 16 codes times it (Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314, section 3). Double quantisation holds the `absmax` in eight bits, 256 of them sharing
an fp32 of their own. So a number costs 4 + 32/64 = 4.5 bits, or 4 + 8/64 + 32/(64 * 256) = 4.127.

All that is held are plain buffers, unlike in bitsandbytes' own layer, whose weight is a tensor of another class with
its statistics hidden in an attribute: buffers are counted, moved and traced like any other.
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

from litpeft.adapters.functional import Open, frozen_linear
from litpeft.errors import UserError
from litpeft.ops.autocast import as_autocast, without_autocast

BLOCK, NESTED_BLOCK = 64, 256


class Linear4bit(nn.Module):
    """y = x Wᵀ + b with W held in four bits; dequantised for each product and never kept.

    Args:
        weight: (out, in), of the dtype that it is to be computed in; quantised on the device where it is.
        bias: (out) or None.
        quant_type: `nf4` (codes at the quantiles of a normal distribution) or `fp4` (sign, two bits of exponent, one
            of mantissa).
        double_quant: whether the blocks' maxima are quantised too.
        compute_dtype: what products are computed in; the input's dtype where it is None. The output has the input's.
        transposed: whether it stands for a Conv1D, whose own weight is (in, out).
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
        self._hold(codes, state, bias, compute_dtype)

    @classmethod
    def of(cls, layer: nn.Linear | Conv1D, **options: Any) -> Linear4bit:
        """A linear layer of torch or transformers, quantised; Conv1D holds its weight as (in, out)."""
        transposed = isinstance(layer, Conv1D)
        return cls(layer.weight.T if transposed else layer.weight, layer.bias, transposed=transposed, **options)

    @classmethod
    def adopt(cls, layer: nn.Module) -> Linear4bit:
        """bitsandbytes' own layer, taken over bit by bit.

        Raises:
            UserError: it has packed its weight for evaluation on a CPU, which some processors make it do.
        """
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise UserError("a 4-bit layer of bitsandbytes was packed for evaluation; load the model anew to adapt it.")
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.transposed = False
        new._hold(layer.weight.data, layer.weight.quant_state, layer.bias, layer.compute_dtype)
        return new

    def _hold(self, codes: Tensor, state: Any, bias: Tensor | None, compute_dtype: torch.dtype | None) -> None:
        self.out_features, self.in_features = state.shape
        self.quant_type, self.dtype, self.compute_dtype = state.quant_type, state.dtype, compute_dtype
        self.register_buffer("codes", codes.view(-1, 1))  # two numbers a byte
        self.register_buffer("absmax", state.absmax)
        self.double_quant = state.nested
        if state.nested:
            self.register_buffer("nested_absmax", state.state2.absmax)
            self.register_buffer("offset", state.offset)
        self._table = _nested_codes(codes.device)  # one for all layers, and no buffer of this one
        self.bias = bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear4bit:
        """Moves go through; a cast of the model to another dtype leaves the statistics as they are."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            setattr(self, name, tensor.to(self.codes.device))
        self._table = _nested_codes(self.codes.device)
        return self

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The tensors that the weight is made of again."""
        nested = (self.nested_absmax, self.offset, self._table) if self.double_quant else ()
        return (self.codes, self.absmax, *nested)

    @property
    def open(self) -> Open:
        """From `held` to the weight (out, in)."""
        return partial(dequantise, shape=(self.out_features, self.in_features), quant_type=self.quant_type)

    @property
    def weight(self) -> Tensor:
        """The weight dequantised, made anew each time (T5 asks its layers for their weight's dtype)."""
        return self.open(*self.held, dtype=self.dtype)

    @property
    def held_bytes(self) -> int:
        """What the weight takes: codes, maxima and their own maxima."""
        return sum(tensor.nbytes for tensor in self.buffers())

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        x = as_autocast(x)
        with without_autocast(x):
            return frozen_linear(x.to(self.compute_dtype or x.dtype), self.held, self.open, self.bias).to(x.dtype)

    def plain(self, matrix: Tensor | None = None) -> nn.Linear | Conv1D:
        """The layer that it was made of, with this weight (out, in); its own, dequantised, where that is None."""
        matrix = self.weight if matrix is None else matrix
        sizes = self.in_features, self.out_features
        with torch.device("meta"):
            layer = Conv1D(*reversed(sizes)) if self.transposed else nn.Linear(*sizes)
        layer.weight = nn.Parameter(matrix.T.contiguous() if self.transposed else matrix, requires_grad=False)
        layer.bias = self.bias
        return layer

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
    """The weight (out, in) in `dtype`.

    As one row: bitsandbytes 0.50 on a CPU takes the wrong maximum where a block runs over the end of a row.
    """
    kernels = torch.ops.bitsandbytes
    if nested_absmax is not None:
        absmax = kernels.dequantize_blockwise(absmax, nested_absmax, table, NESTED_BLOCK, torch.float32) + offset
    return kernels.dequantize_4bit(codes, absmax, BLOCK, quant_type, (1, shape[0] * shape[1]), dtype).view(shape)


def _shapes(weight: Tensor, quant_type: str, double_quant: bool) -> tuple[Tensor, SimpleNamespace]:
    """What bitsandbytes would make of a weight on the meta device, which it must not see: it remembers a device."""
    bitsandbytes()  # whose operations are computed with
    blocks = -(-weight.numel() // BLOCK)
    absmax = weight.new_empty(blocks, dtype=torch.uint8 if double_quant else torch.float32)
    nested = SimpleNamespace(absmax=weight.new_empty(-(-blocks // NESTED_BLOCK), dtype=torch.float32))
    offset = weight.new_empty((), dtype=torch.float32)
    state = SimpleNamespace(shape=weight.shape, quant_type=quant_type, dtype=weight.dtype, absmax=absmax)
    state.nested, state.state2, state.offset = double_quant, nested, offset
    return weight.new_empty((-(-weight.numel() // 2), 1), dtype=torch.uint8), state


@cache
def _nested_codes(device: torch.device) -> Tensor:
    """The 256 codes of eight-bit maxima: one table for all layers."""
    if device.type == "meta":
        return torch.empty(256, device=device)
    with torch.inference_mode(False):
        return bitsandbytes().functional.create_dynamic_map().to(device)


@cache
def bitsandbytes() -> Any:
    """The library, imported when first needed: it is slow, and its optimizers' names clash with torch's in YAML."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that nobody has installed
    import bitsandbytes as library

    return library


def cannot_quantise(device: torch.device) -> str | None:
    """Why bitsandbytes does not work on this device; None where it does."""
    if device.type == "meta":  # shapes alone
        return None
    try:
        probe = Linear4bit(torch.ones(BLOCK, BLOCK, device=device), None)
        return None if bool((probe.weight == 1).all()) else "what it quantised came back as another number"
    except Exception as error:  # a missing library, kernel or driver: of any kind
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__
