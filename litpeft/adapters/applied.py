"""What a model remembers of the adapter that was applied to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from litpeft.adapters.frozen_statistics import unfreeze_statistics
from litpeft.adapters.layers import adapted_layers
from litpeft.errors import UserError

KEY = "_litpeft_adapter"  # in the `__dict__` of a model


@dataclass(frozen=True)
class Applied:
    """An adapter on a model.

    Attributes:
        adapter: the adapter.
        head: names of the modules that the adapter trains in full.
        new: names of the newly initialised parameters that it trains.
        trained: names of all parameters that it trains.
    """

    adapter: Any
    head: tuple[str, ...]
    new: tuple[str, ...]
    trained: tuple[str, ...]


def applied_to(model: nn.Module) -> Applied | None:
    """Return the adapter that was applied to this model; None without one, or after it was merged."""
    return model.__dict__.get(KEY)


def remember(model: nn.Module, adapter: Any, head: Iterable[str], new: Iterable[str]) -> None:
    """Note that an adapter was applied to a model."""
    trained = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    model.__dict__[KEY] = Applied(adapter, tuple(head), tuple(new), trained)


def forget(model: nn.Module) -> None:
    """Note that the adapter of a model was merged; its batch norms are trained again."""
    model.__dict__.pop(KEY, None)
    unfreeze_statistics(model)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give layers that replace others inside the with block the mode, training or evaluation, of those layers."""
    modes = {name: module.training for name, module in model.named_modules()}
    yield
    for name, module in model.named_modules():
        while name not in modes:  # a new module has the mode of the module around it
            name = name.rpartition(".")[0]
        module.training = modes[name]


def call_layers(model: nn.Module) -> None:
    """Make torch's `nn.TransformerEncoderLayer` call the layers that an adapter has replaced, also in evaluation.

    In evaluation torch computes such a block in one fused function, which reads only the weights of its linear layers.
    A hook in the block turns the function off; an `nn.TransformerEncoder` must then not nest padded rows for it.
    """
    changed = {
        block: layers
        for block in model.modules()
        if isinstance(block, nn.TransformerEncoderLayer)
        if (layers := [layer for layer in (block.linear1, block.linear2) if type(layer) is not nn.Linear])
    }
    for layers in changed.values():
        for layer in layers:
            layer.register_forward_pre_hook(_do_nothing)
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and not changed.keys().isdisjoint(encoder.layers):
            encoder.use_nested_tensor = False


def _do_nothing(*_: Any) -> None:
    """Do nothing: a hook that can be copied and pickled."""


def check_unadapted(model: nn.Module, kind: str) -> None:
    """Raise a UserError if the model has an adapter already, of litpeft or of PEFT.

    Args:
        model: the model.
        kind: class of the adapter to apply, for the message.
    """
    advice = "merge that adapter first, or load the model again."
    if existing := adapted_layers(model):
        raise UserError(f"model.adapter {kind}: {next(iter(existing))} already has an adapter; {advice}")
    if (found := applied_to(model)) is not None:
        name = type(found.adapter).__name__
        raise UserError(f"model.adapter {kind}: {type(model).__name__} already has the adapter {name}; {advice}")
    if hasattr(model, "peft_config"):
        raise UserError(f"model.adapter {kind}: {type(model).__name__} already has an adapter of PEFT; {advice}")
