"""What PEFT has added to a model: the names, the hash of the tensors that are not trained, and PEFT's own wrapper."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from litpeft.adapters.peft_prompts import VirtualTokens

KEY = "_peft"  # in the `__dict__` of a model: as an attribute, the wrapper would become a module of its own model


@dataclass
class Injected:
    """What PEFT has added to a model.

    Attributes:
        wrapper: PEFT's model around the model; not one of its modules.
        added: names of the parameters and buffers that PEFT has added.
        in_full: names of the parameters that are trained in full, such as those of a head.
        left_out: the result of `not_adapted`.
        constants: SHA-256 of the tensors that PEFT computes and that are not trained; None for meta tensors.
        initial: the adapter's tensors before training by their names in PEFT's file; only where an export needs them.
        tokens: the virtual tokens of a prompt method.
    """

    wrapper: nn.Module
    added: set[str]
    in_full: list[str]
    left_out: dict[str, Any]
    constants: Tensor | None = None
    initial: dict[str, Tensor] = field(default_factory=dict)
    tokens: VirtualTokens | None = None


def injected_in(model: nn.Module) -> Injected | None:
    """Return what PEFT has added to this model; None if it has added nothing."""
    return model.__dict__.get(KEY)


@contextmanager
def without_adapter(injected: Injected, model: nn.Module) -> Iterator[None]:
    """Switch off what PEFT has added inside the with block."""
    if injected.tokens is not None:
        injected.tokens.enabled = False
        try:
            yield
        finally:
            injected.tokens.enabled = True
        return
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    injected.wrapper.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        injected.wrapper.base_model.enable_adapter_layers()  # makes constants trainable, too
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def freeze_constants(model: nn.Module) -> None:
    """Freeze the parameters that PEFT lists as not trained: in a bf16 base it makes them trainable by mistake.

    Seen with PEFT 0.21.2: `_move_adapter_to_device_of_base_layer` casts AdaLoRA's `ranknum` into a new parameter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in set(layer.other_param_names) - set(layer.adapter_layer_names):
                held = getattr(layer, name, None)
                if isinstance(held, (nn.Module, nn.Parameter)):
                    held.requires_grad_(False)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a model by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def hash_of_constants(model: nn.Module, injected: Injected, with_base: bool) -> Tensor:
    """Return the SHA-256 of the tensors that PEFT computes and that no checkpoint holds, (32) uint8.

    Args:
        model: the model with the adapter.
        injected: what PEFT has added to the model.
        with_base: whether PEFT has changed the weights of adapted layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [
        (name, tensor) for name, tensor in tensors_of(model) if name in injected.added and not tensor.requires_grad
    ]
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            plain = {
                key: held for key, held in vars(layer).items() if isinstance(held, dict) and not key.startswith("_")
            }
            held = ((f"{name}.{key}.{k}", t) for key, of in plain.items() for k, t in of.items())
            found += [(key, tensor) for key, tensor in held if isinstance(tensor, Tensor)]
            found += [(f"{name}.weight", layer.get_base_layer().weight)] if with_base else []
    total = hashlib.sha256()
    for name, tensor in sorted(found, key=lambda pair: pair[0]):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return torch.frombuffer(bytearray(total.digest()), dtype=torch.uint8)


def untie(layers: list[nn.Module], model: nn.Module) -> None:
    """Give adapted layers a weight of their own where another layer shares it: merging must not change that layer."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for layer in layers:
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and owners[id(weight)] > 1:
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
