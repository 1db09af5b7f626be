"""Frozen layers with a low-rank adapter beside, one class for each kind of layer; `ADAPTED` says which for which.

To add a kind: derive from `AdaptedLayer` in a file of its own, say how to read the weight as a matrix and how to
compute, and enter it in `ADAPTED`.

An adapted layer takes over weight and bias of the one that it replaces, under the same names, and adds `lora_A`,
`lora_B` and, for DoRA, `magnitude`, all fp32 and cast when used. It equals the one that it replaces
until it is trained.
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.layers.base import AdaptedLayer, LowRank
from litpeft.adapters.layers.conv2d import AdaptedConv2d
from litpeft.adapters.layers.embedding import AdaptedEmbedding
from litpeft.adapters.layers.linear import AdaptedConv1D, AdaptedLinear, AdaptedLinear4bit
from litpeft.adapters.linear4bit import Linear4bit

__all__ = [
    "ADAPTED",
    "LINEAR",
    "AdaptedConv1D",
    "AdaptedConv2d",
    "AdaptedEmbedding",
    "AdaptedLayer",
    "AdaptedLinear",
    "AdaptedLinear4bit",
    "LowRank",
    "adapted_layers",
]

ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {  # layer type -> adapted layer: the place to add a kind of layer
    nn.Linear: AdaptedLinear,
    Conv1D: AdaptedConv1D,
    Linear4bit: AdaptedLinear4bit,
    nn.Embedding: AdaptedEmbedding,
    nn.Conv2d: AdaptedConv2d,
}
LINEAR = (nn.Linear, Conv1D, Linear4bit)  # what `all-linear` means


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers that an adapter has replaced, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}
