"""What an adapter leaves out although it holds weights: experts, the vision part, layers of unknown types."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from litpeft.adapters.experts import PARAMETERS
from litpeft.adapters.layers import ADAPTED, AdaptedLayer
from litpeft.adapters.targets import layer_type, text_modules


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
            kind = ("experts" if _is_expert(leaf, weight) else type(module).__name__) if inside else OUTSIDE
            found = kinds.setdefault(
                kind, {"params": 0, "bytes": 0, "dtype": _name(weight), "example": f"{name}.{leaf}"}
            )
            found["params"] += weight.numel()
            found["bytes"] += weight.nbytes
    return kinds


OUTSIDE = "outside the text part"


def _is_expert(leaf: str, weight: Tensor) -> bool:
    return weight.ndim == 3 and leaf in PARAMETERS


def _name(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")
