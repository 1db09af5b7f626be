"""Frozen linear layers that other packages have quantised: HQQ, torchao, quanto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from litpeft.adapters.functional import ToMatrix
from litpeft.adapters.quantised_linear import QuantisedLinear, replaced_conv1d

DEQUANTISES = ("torchao.", "optimum.quanto.")  # packages whose weights are tensor sub-classes with `dequantize`


class PackagedLinear(QuantisedLinear):
    """y = x Wᵀ + b with W as another package holds it; the package dequantises W for each product.

    The product is computed here, in forward and in backward, so that a gradient passes through every kind of weight;
    the package's kernels for inference are not used.

    Args:
        layer: the package's layer, for which `dequantiser` returns a function; without a bias.
        dtype: dtype of the model.
        bias: (out) or None.
        transposed: whether the layer replaces a Conv1D, which stores its weight as (in, out).
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype, bias: nn.Parameter | None, transposed: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype, self.bias, self.transposed = dtype, bias, transposed
        self.__dict__["layer"] = layer  # not a module of the model: no adapter's target

    @classmethod
    def from_package(cls, layer: nn.Module, dtype: torch.dtype) -> PackagedLinear:
        """Take over a layer that another package has quantised."""
        bias, layer.bias = layer.bias, None
        return cls(layer, dtype, bias, replaced_conv1d(layer))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackagedLinear:
        """Move the package's layer to other devices, but do not cast it when the model is cast to another dtype."""
        super()._apply(fn, recurse)
        here = self.held()[0].device
        if (device := fn(torch.empty(0, device=here)).device) != here:
            self.layer.to(device)
        return self

    @property
    def kind(self) -> str:
        kind = type(self.layer) if type(self.layer).__name__ == "HQQLinear" else type(self.layer.weight)
        return kind.__module__.removeprefix("optimum.").partition(".")[0]

    @property
    def stored(self) -> tuple[Tensor, ...]:
        return ()  # the package's layer holds them

    @property
    def to_matrix(self) -> ToMatrix:
        function = dequantiser(self.layer)

        def to_matrix(*, dtype: torch.dtype) -> Tensor:
            with torch.no_grad():
                return function().to(dtype)

        return to_matrix

    def held(self) -> list[Tensor]:
        """Return the plain tensors that hold the weight, the largest (the codes) first."""
        tensors = [*self.layer.parameters(), *self.layer.buffers(), *_tensors_in(getattr(self.layer, "meta", None))]
        found = {id(plain): plain for tensor in tensors for plain in plain_tensors(tensor)}
        return sorted(found.values(), key=lambda tensor: tensor.nbytes, reverse=True)

    def constants(self) -> list[Tensor]:
        return self.held()[1:]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {type(self.layer).__module__.partition('.')[0]}"


def dequantiser(layer: nn.Module) -> Callable[[], Tensor] | None:
    """Return the function that dequantises the layer's weight to (out, in); None if the layer is of another kind."""
    weight = getattr(layer, "weight", None)
    if type(weight).__module__.startswith(DEQUANTISES):
        return weight.dequantize
    return layer.dequantize if type(layer).__name__ == "HQQLinear" else None


def quantises_inputs(layer: nn.Module) -> bool:
    """Return whether the package quantises the input of this layer too, which `PackagedLinear` does not."""
    kwargs = getattr(getattr(layer, "weight", None), "act_quant_kwargs", None)  # torchao
    return kwargs is not None or getattr(layer, "activation_qtype", None) is not None  # quanto


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor sub-class consists of; a plain tensor itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(tensor, name))


def _tensors_in(held: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries, where HQQ keeps its scales and zero points."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for item in held.values():
            yield from _tensors_in(item)
