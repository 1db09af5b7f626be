"""Which bytes of tensors are alive at once, and what each of them is for.

A dispatch mode sees the storage of every tensor that an operation takes or gives; a weak reference tells when it goes.
A role may show late (what becomes a gradient was a temporary before): bytes are sorted by role when all has been seen.

Not seen: what a kernel takes and frees within itself, and tensors that are made and freed in other threads.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CATEGORIES = {
    "base_weights": "parameters and buffers of the model that the adapter did not add; with full fine-tuning, all",
    "quantisation_constants": "scales and offsets of a base held in a few bits",
    "adapter_weights": "tensors that the adapter trains, a new head included",
    "gradients": "what became the gradient of a parameter",
    "optimizer_state": "what the optimizer keeps from step to step",
    "activations": "kept by forward for backward",
    "temporaries": "all else that was made within",
    "other": "what was there before: the batch, metrics",
}


@dataclass
class Peak:
    """The moment at which most bytes were alive.

    Attributes:
        bytes: how many.
        split: how many of each of `CATEGORIES`; they add up.
    """

    bytes: int = 0
    split: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))


@dataclass
class _Storage:
    bytes: int
    category: str
    born: int  # the operation that it was first seen at
    died: int | None = None  # the last operation before it went


class MemoryTracker(TorchDispatchMode):
    """Within it, storages on one device are followed. It costs time, not memory.

    Args:
        device: whose storages.

    Example:
        >>> weight = torch.ones(10, requires_grad=True)
        >>> tracker = MemoryTracker(torch.device("cpu"))
        >>> tracker.label([weight], "base_weights")
        >>> with tracker:
        ...     loss = (2 * weight).sum()
        >>> tracker.peak().split["base_weights"], tracker.peak().split["temporaries"]
        (40, 44)
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.operations = 0
        self._alive: dict[int, tuple[weakref.ref, _Storage]] = {}  # by address
        self._seen: list[_Storage] = []
        self._hooks = ExitStack()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        self._see(_tensors((*args, *kwargs.values())), "other")
        result = func(*args, **kwargs)
        self._see(_tensors((result,)), "temporaries")
        return result

    def __enter__(self) -> MemoryTracker:
        self._hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.close()

    def follow(self, model: nn.Module, roles: Mapping[str, Iterable[Tensor]]) -> None:
        """Label the tensors of a model, and the gradients that it has and gets while the mode is on.

        Args:
            model: whose parameters get gradients.
            roles: its tensors by category, see `Adapter.roles`.
        """
        for category, tensors in roles.items():
            self.label(tensors, category)
        for parameter in model.parameters():
            if parameter.requires_grad:
                self._label_gradient(parameter)
                handle = parameter.register_post_accumulate_grad_hook(self._label_gradient)
                self._hooks.callback(handle.remove)

    def label(self, tensors: Iterable[Tensor], category: str) -> None:
        """Say what these tensors are for; also of those that were seen as something else."""
        for tensor in tensors:
            for storage in self._see([tensor], category):
                storage.category = category

    def peak(self, first: int = 0, last: int | None = None) -> Peak:
        """The peak from one operation to another, both included; by default of all that was seen."""
        if not self._seen:
            return Peak()
        changes = np.zeros(self.operations + 2, dtype=np.int64)
        for storage in self._seen:
            changes[storage.born] += storage.bytes
            if storage.died is not None:  # it was there while the last operation ran
                changes[storage.died + 1] -= storage.bytes
        totals = np.cumsum(changes[:-1])
        moment = first + int(totals[first : None if last is None else last + 1].argmax())
        found = Peak(int(totals[moment]))
        for storage in self._seen:
            if storage.born <= moment and (storage.died is None or moment <= storage.died):
                found.split[storage.category] += storage.bytes
        return found

    def events(self) -> Iterator[tuple[int, int, int]]:
        """(operation, number, bytes) in order: a storage came to be with it, or was gone after it."""
        births = ((storage.born, 0, number, storage.bytes) for number, storage in enumerate(self._seen))
        deaths = ((s.died, 1, number, s.bytes) for number, s in enumerate(self._seen) if s.died is not None)
        for operation, _, number, size in sorted([*births, *deaths]):
            yield operation, number, size

    def _label_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.label([parameter.grad], "gradients")

    def _keep(self, tensor: Tensor) -> Tensor:
        for storage in self._see([tensor], "other"):
            if storage.category == "temporaries":
                storage.category = "activations"
        return tensor

    def _see(self, tensors: Iterable[Tensor], category: str) -> list[_Storage]:
        """What these tensors are held in; what is new is of this category."""
        found = []
        for tensor in tensors:
            if tensor.device.type != self.device.type:
                continue
            held = tensor.untyped_storage()
            address = held._cdata
            reference, storage = self._alive.get(address, (None, None))
            if storage is None or reference() is None:
                storage = _Storage(held.nbytes(), category, self.operations)
                self._alive[address] = weakref.ref(held, self._gone(address, storage)), storage
                self._seen.append(storage)
            found.append(storage)
        return found

    def _gone(self, address: int, storage: _Storage) -> Any:
        def note(reference: weakref.ref) -> None:
            storage.died = self.operations
            if self._alive.get(address, (None,))[0] is reference:
                del self._alive[address]

        return note


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer keeps from step to step."""
    return [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)]


def _tensors(things: Iterable[Any]) -> Iterator[Tensor]:
    """Those among an operation's arguments or results, which are nested in lists at most; a pytree takes longer."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, (tuple, list)):
            yield from _tensors(thing)
