"""Frozen layers with a low-rank adapter, one class per layer type; `ADAPTED` maps a layer type to its adapted class.

To add a layer type: derive from `AdaptedLayer` in a new file, implement `matrix` (the weight as a matrix), `forward`
and `plain`, and add the class to `ADAPTED`.

An adapted layer keeps the names `weight` and `bias` of the layer that it replaces, and adds `lora_A`, `lora_B` and, for
DoRA, `magnitude`; these are fp32 and cast when used. Before training, its output equals that of the replaced layer.
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.experts import StackedLinear, StackedLinear4bit
from litpeft.adapters.layers.base import AdaptedLayer, LowRank
from litpeft.adapters.layers.convolution import AdaptedConv1d, AdaptedConv2d, AdaptedConvolution
from litpeft.adapters.layers.embedding import AdaptedEmbedding
from litpeft.adapters.layers.linear import AdaptedConv1D, AdaptedLinear, AdaptedQuantisedLinear
from litpeft.adapters.layers.stacked import AdaptedStackedLinear, AdaptedStackedLinear4bit
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.adapters.linear8bit import Linear8bit
from litpeft.adapters.packaged_linear import PackagedLinear

__all__ = [
    "ADAPTED",
    "LINEAR",
    "AdaptedConv1D",
    "AdaptedConv1d",
    "AdaptedConv2d",
    "AdaptedConvolution",
    "AdaptedEmbedding",
    "AdaptedLayer",
    "AdaptedLinear",
    "AdaptedQuantisedLinear",
    "AdaptedStackedLinear",
    "AdaptedStackedLinear4bit",
    "LowRank",
    "adapted_layers",
]

ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {  # layer type -> adapted layer; add new types here
    nn.Linear: AdaptedLinear,
    Conv1D: AdaptedConv1D,
    Linear4bit: AdaptedQuantisedLinear,
    Linear8bit: AdaptedQuantisedLinear,
    PackagedLinear: AdaptedQuantisedLinear,
    StackedLinear: AdaptedStackedLinear,
    StackedLinear4bit: AdaptedStackedLinear4bit,
    nn.Embedding: AdaptedEmbedding,
    nn.Conv1d: AdaptedConv1d,
    nn.Conv2d: AdaptedConv2d,
}
# the types that `all-linear` selects
LINEAR = (nn.Linear, Conv1D, Linear4bit, Linear8bit, PackagedLinear, StackedLinear, StackedLinear4bit)


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """Return the layers that an adapter has replaced, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}
