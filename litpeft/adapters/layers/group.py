"""What the adapted layers of a model compute together, once per optimizer step, in a few operations.

    casts   A and B in the compute dtype, where it differs from that of the parameters
    norms   DoRA's ‖W + s BA‖, of all layers with equal shapes at once
    gains   DoRA's m / ‖W + s BA‖

The first layer that is called after a step computes these tensors for all layers. Layers alone, sharded parameters
(FSDP2) and compiled calls compute the same values at use.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from litpeft.adapters.gain import norm_from_cross
from litpeft.adapters.layers.shared_input import InputObserver

AT_ONCE = 1 << 24  # numbers of A and B that are stacked at once for norms: 64 MiB in fp32


class LayerGroup:
    """The adapted layers of one model, as weak references: a layer that is copied or removed takes no other with it."""

    def __init__(self) -> None:
        self._members: list[weakref.ref[nn.Module]] = []
        self.observer = InputObserver()
        self._sharded = False  # whether parameters are sharded: each is whole only while its own block computes

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerGroup, ()  # copied layers add themselves to the copy

    @classmethod
    def join(cls, layers: Iterable[nn.Module]) -> None:
        """Put the layers into one new group."""
        group = cls()
        for layer in layers:
            layer.layer_group = group
            group.add(layer)

    def add(self, layer: nn.Module) -> None:
        """Add a layer."""
        self._members.append(weakref.ref(layer))

    def layers(self) -> list[nn.Module]:
        """Return the layers that still exist, in the order in which they were added."""
        return [layer for member in self._members if (layer := member()) is not None]

    @torch.no_grad()
    def prepare(self, layer: nn.Module, dtype: torch.dtype) -> None:
        """Update casts and gains of all layers whose values have changed; does nothing for sharded parameters.

        Args:
            layer: the layer that is called.
            dtype: its compute dtype, which layers that were never called get too.
        """
        if self._sharded:
            return
        layers = [each for each in self.layers() if each.prepares]
        if any(isinstance(each.lora_A, DTensor) for each in layers):
            self._sharded = True
            return
        targets, sources, scaled = [], [], []
        for each in layers:
            known = each._prepared
            wanted = dtype if known is None or each is layer else known.key[0]
            if each.is_prepared(wanted):
                continue
            known = each.allocate(wanted)
            if known.A is not None:
                targets += [known.A, known.B]
                sources += [each.lora_A, each.lora_B]
            if known.gain is not None:
                scaled.append(each)
        if targets:
            torch._foreach_copy_(targets, sources)
        if scaled:
            norms, gains = [each.norm() for each in scaled], [each._prepared.gain for each in scaled]
            torch._foreach_copy_(gains, [each.magnitude for each in scaled])
            torch._foreach_div_(gains, norms)

    def update_norms(self) -> None:
        """Update the norms of all layers that can share operations with another layer."""
        if len(self._members) == 1:
            return
        groups: dict[tuple[object, ...], list[nn.Module]] = {}
        for layer in self.layers():
            key = None if layer.magnitude is None else layer.norm_group()
            if key is not None:
                groups.setdefault(key, []).append(layer)
        # all or none of the layers of a key: sums may depend on how many matrices one operation multiplies
        for same in groups.values():
            if len(same) > 1 and any(layer.norm_is_stale() for layer in same):
                for part in _parts(same):
                    for layer, norm in zip(part, _norms(part), strict=True):
                        layer.keep_norm(norm)


def _parts(layers: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Yield the layers in parts of bounded memory; they have the same shapes."""
    most = max(1, AT_ONCE // (layers[0].lora_A.numel() + layers[0].lora_B.numel()))
    for first in range(0, len(layers), most):
        yield layers[first : first + most]


def _norms(layers: list[nn.Module]) -> tuple[Tensor, ...]:
    """Return the row norms (out) of each of n layers with the same shapes."""
    A, B = torch.stack([each.lora_A for each in layers]), torch.stack([each.lora_B for each in layers])
    cross = None  # W Aᵀ (n, out, r)
    for number, each in enumerate(layers):
        dtype = each.frozen_dtype()
        w, known = each.to_matrix(*each.stored, dtype=dtype), each._prepared
        ready = known is not None and known.A is not None and known.A.dtype == dtype and each.is_prepared(dtype)
        cross = w.new_empty(B.shape) if cross is None else cross
        torch.mm(w, (known.A if ready else each.lora_A.to(dtype)).T, out=cross[number])
    squares = torch.cat([each.squares for each in layers])
    return norm_from_cross(squares, cross, A, B, layers[0].scaling).view(len(layers), -1).unbind()
