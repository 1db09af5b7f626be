"""Adapted layers that are called with the same tensor, such as query, key and value: one function computes them all.

Which layers share an input is observed during the first optimizer step, so it holds for any architecture. From the
second step, the first of these layers that is called computes the outputs of all, and the others return theirs. The
input is read once for all A, and the gradients by the input are summed inside of products.

A checkpoint holds what was observed: sums are in another order, so a resumed run must share the same inputs from its
first step to stay bit-identical.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor, nn

from litpeft.adapters.shared_linears import adapted_linears
from litpeft.ops.autocast import as_autocast, without_autocast


class SharedInput:
    """Layers that are called with the same tensor, in the order of their calls.

    Args:
        layers: two or more adapted linear layers with the same input size, scaling and compute dtype.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self._members = [weakref.ref(layer) for layer in layers]
        self._input: tuple[Tensor, int] | None = None  # the last input, and its version
        self._outputs: dict[int, Tensor] = {}  # id of a layer -> its output, until it is called

    @classmethod
    def join(cls, layers: list[nn.Module]) -> None:
        """Let the layers share their input."""
        shared = cls(layers)
        for layer in layers:
            layer.shared_input = shared

    def layers(self) -> list[nn.Module] | None:
        """Return the layers; None if one no longer exists or has left."""
        layers = [member() for member in self._members]
        return layers if all(getattr(layer, "shared_input", None) is self for layer in layers) else None

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """Return this layer's output; None if it has to be computed alone."""
        if self._input is not None and self._input[0] is x and self._input[1] == x._version:
            out = self._outputs.pop(id(layer), None)
            if not self._outputs:
                self.forget()
            if out is not None:
                return out
        layers = self.layers()
        if layers is None or not all(each.can_share_input() for each in layers):
            return None
        wide = as_autocast(x)
        with without_autocast(wide):
            outs = self._compute(layers, wide)
        self._input, self._outputs = (x, x._version), {id(each): out for each, out in zip(layers, outs, strict=True)}
        return self._outputs.pop(id(layer))

    def _compute(self, layers: list[nn.Module], x: Tensor) -> list[Tensor]:
        wide = x.to(layers[0].compute_dtype or x.dtype)
        outs = adapted_linears(wide, [layer.call(wide) for layer in layers], layers[0].scaling, self.forget)
        return [layer.own_output(out.to(x.dtype)) for layer, out in zip(layers, outs, strict=True)]

    def forget(self) -> None:
        """Drop the input, and outputs that no layer has asked for; after backward, their graph is gone."""
        self._input, self._outputs = None, {}


class InputObserver:
    """Finds the layers of a model that share their input, from their calls during one optimizer step."""

    def __init__(self) -> None:
        self.done = False
        self._step: int | None = None  # optimizer steps that had been made when observation started
        self._last: tuple[weakref.ref[Tensor], int] | None = None  # the last input, and its version
        self._calls: list[list[nn.Module]] = []  # layers that were called with the same tensor, in turn

    def observe(self, layer: nn.Module, x: Tensor, steps: int) -> None:
        """Note a call in training. The first call after an optimizer step ends the observation.

        Args:
            layer: the layer that is called.
            x: its input.
            steps: number of optimizer steps so far.
        """
        self.finish_after_step(steps)
        if self.done:
            return
        self._step = steps
        if self._last is None or self._last[0]() is not x or self._last[1] != x._version:
            self._calls.append([])
            self._last = weakref.ref(x), x._version
        self._calls[-1].append(layer)

    def finish_after_step(self, steps: int) -> None:
        """End the observation, and join the layers that share their input, if an optimizer step has been made."""
        if not self.done and self._step not in (None, steps):
            found = self._found()
            self.finish()
            for layers in found:
                SharedInput.join(layers)

    def finish(self) -> None:
        """End the observation."""
        self.done, self._calls, self._last = True, [], None

    def _found(self) -> list[list[nn.Module]]:
        distinct = {tuple(map(id, layers)): layers for layers in self._calls}
        calls = Counter(key for keys in distinct for key in keys)
        return [
            layers
            for keys, layers in distinct.items()
            if len(layers) > 1 and all(calls[key] == 1 for key in keys) and _fit(layers)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return InputObserver, ()  # copied layers observe for themselves


def shared_inputs(layers: dict[str, nn.Module], steps: int) -> list[list[str]] | None:
    """Return the names of the layers that share their input, input by input; None before an optimizer step.

    Those of an input are in the order of their calls, in which sums are made, and not in that of the model.

    Args:
        layers: adapted layers of one model, by name.
        steps: number of optimizer steps so far.
    """
    observer = next(iter(layers.values())).layer_group.observer
    observer.finish_after_step(steps)
    if not observer.done:
        return None
    names = {id(layer): name for name, layer in layers.items()}
    shared = dict.fromkeys(layer.shared_input for layer in layers.values() if layer.shared_input is not None)
    return [[names[id(each)] for each in members] for same in shared if (members := same.layers())]


def share_inputs(layers: dict[str, nn.Module], names: list[list[str]] | None) -> None:
    """Let layers share their inputs, as `shared_inputs` returned them; with None, observe again."""
    if names is None:
        return
    next(iter(layers.values())).layer_group.observer.finish()
    for same in names:
        SharedInput.join([layers[name] for name in same])


def _fit(layers: list[nn.Module]) -> bool:
    """Return whether one function can compute the layers."""
    return len({each.input_key() for each in layers}) == 1 and all(each.dropout == 0 for each in layers)
