"""What an adapter leaves out although it holds weights: experts, the vision part, layers of unknown types."""

from __future__ import annotations

from typing import Any

from torch import nn

from litpeft.adapters.experts import PARAMETERS
from litpeft.adapters.layers import ADAPTED, AdaptedLayer
from litpeft.adapters.targets import layer_type, text_modules

OUTSIDE = "outside the text part"


def not_adapted(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the frozen weights that stay as they are, by kind: `experts`, `outside the text part`, or a class name.

    Layers that `model.adapter.targets` can select are not listed, except experts, which hold most of a mixture.
    Neither are norms and biases (1-D) and quantised layers.

    Returns:
        For each kind: `params`, `bytes`, `dtype` of the first weight and its name, `example`.
    """
    text, kinds = text_modules(model), {}
    for name, module in model.named_modules():
        inside = f"{name}.".startswith(text) or any(part.startswith(f"{name}.") for part in text)
        if inside and (isinstance(module, AdaptedLayer) or layer_type(module) in ADAPTED):
            continue
        for leaf, weight in module._parameters.items():
            if weight is None or weight.requires_grad or (inside and weight.ndim < 2):
                continue
            is_expert = weight.ndim == 3 and leaf in PARAMETERS
            kind = ("experts" if is_expert else type(module).__name__) if inside else OUTSIDE
            dtype = str(weight.dtype).removeprefix("torch.")
            found = kinds.setdefault(kind, {"params": 0, "bytes": 0, "dtype": dtype, "example": f"{name}.{leaf}"})
            found["params"] += weight.numel()
            found["bytes"] += weight.nbytes
    return kinds
