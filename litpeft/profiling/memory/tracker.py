"""Track the bytes of all live tensors, and split their peak by purpose.

A dispatch mode sees the storage of every input and output of an operation; a weak reference notices when a storage is
freed. A purpose may be known late (a gradient is a temporary at first), so the peak is split at the end.

Not tracked: scratch memory inside kernels, and tensors that are created and freed in other threads.
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
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves

CATEGORIES = {
    "base_weights": "parameters and buffers that the adapter did not add; in full fine-tuning, all of them",
    "quantisation_constants": "scales and offsets of quantised weights",
    "adapter_weights": "trainable tensors of the adapter, including a new head",
    "gradients": "gradients of parameters",
    "optimizer_state": "state that the optimizer keeps between steps",
    "activations": "tensors that forward saves for backward",
    "temporaries": "all other tensors created while tracking",
    "other": "tensors that existed before: the batch, metrics",
}


@dataclass
class Peak:
    """The moment with the most live bytes.

    Attributes:
        bytes: live bytes.
        split: bytes by category (`CATEGORIES`), which add up to `bytes`.
    """

    bytes: int = 0
    split: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))


@dataclass
class _Storage:
    bytes: int
    category: str
    born: int  # number of the operation that first used the storage
    died: int | None = None  # number of the last operation before the storage was freed


class MemoryTracker(TorchDispatchMode):
    """Track all storages on one device inside the with block. Costs time, not memory.

    Args:
        device: device to track.

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
        self._hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._on_saved, lambda saved: saved))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.close()

    def follow(self, model: nn.Module, roles: Mapping[str, Iterable[Tensor]]) -> None:
        """Label the tensors of a model and, while tracking, the gradients of its parameters.

        Args:
            model: the model.
            roles: tensors of the model by category, see `Adapter.roles`.
        """
        for category, tensors in roles.items():
            self.label(tensors, category)
        for parameter in model.parameters():
            if parameter.requires_grad:
                self._label_gradient(parameter)
                handle = parameter.register_post_accumulate_grad_hook(self._label_gradient)
                self._hooks.callback(handle.remove)

    def label(self, tensors: Iterable[Tensor], category: str) -> None:
        """Set the category of tensors, also of tensors that already have one."""
        for tensor in tensors:
            for storage in self._see([tensor], category):
                storage.category = category

    def peak(self, first: int = 0, last: int | None = None) -> Peak:
        """Return the peak from operation `first` to operation `last`, both included (default: all)."""
        if not self._seen:
            return Peak()
        changes = np.zeros(self.operations + 2, dtype=np.int64)
        for storage in self._seen:
            changes[storage.born] += storage.bytes
            if storage.died is not None:  # still alive during its last operation
                changes[storage.died + 1] -= storage.bytes
        totals = np.cumsum(changes[:-1])
        moment = first + int(totals[first : None if last is None else last + 1].argmax())
        found = Peak(int(totals[moment]))
        for storage in self._seen:
            if storage.born <= moment and (storage.died is None or moment <= storage.died):
                found.split[storage.category] += storage.bytes
        return found

    def events(self) -> Iterator[tuple[int, int, int]]:
        """Yield (operation, storage number, bytes) in order: first when a storage appears, then when it is freed."""
        births = ((storage.born, 0, number, storage.bytes) for number, storage in enumerate(self._seen))
        deaths = ((s.died, 1, number, s.bytes) for number, s in enumerate(self._seen) if s.died is not None)
        for operation, _, number, size in sorted([*births, *deaths]):
            yield operation, number, size

    def _label_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.label([parameter.grad], "gradients")

    def _on_saved(self, tensor: Tensor) -> Tensor:
        for storage in self._see([tensor], "other"):
            if storage.category == "temporaries":
                storage.category = "activations"
        return tensor

    def _see(self, tensors: Iterable[Tensor], category: str) -> list[_Storage]:
        """Return the storages of tensors; new storages get this category."""
        storages = []
        for tensor in _dense(tensors):
            if tensor.device.type != self.device.type:
                continue
            held = tensor.untyped_storage()
            address = held._cdata
            reference, storage = self._alive.get(address, (None, None))
            # another thread may free a storage, and this one get its address, before `_on_freed` has removed the entry
            if storage is None or reference() is None:
                storage = _Storage(held.nbytes(), category, self.operations)
                self._alive[address] = weakref.ref(held, self._on_freed(address, storage)), storage
                self._seen.append(storage)
            storages.append(storage)
        return storages

    def _on_freed(self, address: int, storage: _Storage) -> Any:
        def note(reference: weakref.ref) -> None:
            storage.died = self.operations
            if self._alive.get(address, (None,))[0] is reference:
                del self._alive[address]

        return note


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all tensors in the state of an optimizer."""
    return [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)]


def _dense(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors; sparse and wrapped tensors have no storage of their own, so yield the tensors inside."""
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "fake_mode"):  # weights of torchao, quanto
            with _disable_current_modes():
                inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
            yield from _dense(inner)
        elif tensor.layout == torch.strided:
            yield tensor
        else:
            with _disable_current_modes():  # reading the parts is no operation of the model
                parts = _sparse_parts(tensor)
            yield from parts


def _sparse_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout == torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout == torch.sparse_csc:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    raise NotImplementedError(f"the memory of a tensor of layout {tensor.layout} cannot be tracked")


def _tensors(things: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists; faster than pytree."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, (tuple, list)):
            yield from _tensors(thing)
