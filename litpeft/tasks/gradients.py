"""Gradient checkpointing, compiled blocks, and the check that every tensor of an adapter gets a gradient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import nn

from litpeft.errors import UserError

Kind = Literal["none", "non_reentrant", "reentrant"]


def enable_gradient_checkpointing(model: nn.Module, kind: Kind) -> None:
    """Turn on gradient checkpointing of this kind in a transformers model.

    Raises:
        UserError: the model does not support it.
    """
    if kind == "none":
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"model.gradient_checkpointing: {type(model).__name__} does not support it; leave it out.")
    reentrant = kind == "reentrant"
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    # the reentrant variant needs inputs with requires_grad, which frozen embeddings lack; the other does not
    (model.enable_input_require_grads if reentrant else model.disable_input_require_grads)()


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a model in place."""
    for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for block in blocks:
            block.compile(dynamic=True)  # the sequence length differs from batch to batch


def check_gradients(added: Mapping[str, nn.Parameter], kind: Kind) -> None:
    """Check that the tensors that an adapter added have gradients; otherwise B would stay zero unnoticed.

    One block with a gradient is enough, since a mixture of experts does not use every expert in each step.

    Raises:
        UserError: the tensors of a layer have no gradient in any block.
    """
    no_gradient: dict[str, list[str]] = {}  # name with "#" for numbers -> tensors without gradient, "" for others
    for name, parameter in added.items():
        no_gradient.setdefault(re.sub(r"\d+", "#", name), []).append("" if parameter.grad is not None else name)
    unused = [names for names in no_gradient.values() if all(names)]
    if unused:
        advice = "the model does not use these layers: leave them out with model.adapter.exclude"
        if kind != "none":
            advice = f"model.gradient_checkpointing {kind} may be the cause: try the other kind"
        n = sum(map(len, unused))
        raise UserError(f"{n} tensors of the adapter got no gradient ({unused[0][0]}, ...); {advice}.")
