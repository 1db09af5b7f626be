"""Track the bytes of all live tensors, and split their peak by purpose.

A dispatch mode sees the storage of every input and output of an operation; a weak reference notices when a storage is
freed. A purpose may be known late (a gradient is a temporary at first), so the peak is split at the end.

With several processes, a storage that a collective fills has the purpose `communication`, and the bytes that each
collective sends are added up. Shards are DTensors, which run their operations on the plain tensors inside.

Not tracked: scratch memory inside kernels and collectives, and tensors that are created and freed in other threads.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from litpeft.profiling.memory.collectives import COLLECTIVES, filled_buffers, sent_bytes, whole_gradients
from litpeft.profiling.memory.stored_tensors import dense, nested_tensors
from litpeft.profiling.memory.streams import MAIN, Streams

CATEGORIES = {
    "base_weights": "parameters and buffers that the adapter did not add; in full fine-tuning, all of them",
    "quantisation_constants": "scales and offsets of quantised weights",
    "adapter_weights": "trainable tensors of the adapter, including a new head",
    "gradients": "gradients of parameters",
    "optimizer_state": "state that the optimizer keeps between steps",
    "activations": "tensors that forward saves for backward",
    "communication": "buffers of several processes: DDP's buckets, FSDP2's gathered blocks and what it sends",
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
    stream: int = MAIN
    died: int | None = None  # number of the last operation before the storage was freed


class MemoryTracker(TorchDispatchMode):
    """Track all storages on one device inside the with block. Costs time, not memory.

    Args:
        device: device to track.
        streams: tells the stream in which a tensor is created; by default all are created in one.

    Example:
        >>> weight = torch.ones(10, requires_grad=True)
        >>> tracker = MemoryTracker(torch.device("cpu"))
        >>> tracker.label([weight], "base_weights")
        >>> with tracker:
        ...     loss = (2 * weight).sum()
        >>> tracker.peak().split["base_weights"], tracker.peak().split["temporaries"]
        (40, 44)
    """

    def __init__(self, device: torch.device, streams: Streams | None = None) -> None:
        super().__init__()
        self.device, self._streams = device, streams or Streams()
        self.operations = 0
        self.sent: list[tuple[int, float]] = []  # (operation, bytes that this process sends), one per collective
        self._alive: dict[int, tuple[weakref.ref, _Storage]] = {}  # by address
        self._seen: list[_Storage] = []
        self._hooks = ExitStack()
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its operations on the shards come here one by one
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        self.operations += 1
        self._see(nested_tensors((*args, *kwargs.values())), "other")
        result = func(*args, **kwargs)
        self._see(nested_tensors((result,)), "temporaries")
        if (sent := sent_bytes(func, args)) is not None:
            self.sent.append((self.operations, sent))
        if func.namespace in COLLECTIVES:
            self._know_late(filled_buffers(func, args, kwargs), "communication")
            self._know_late(whole_gradients(func, args), "gradients")
        return result

    def __enter__(self) -> MemoryTracker:
        self._hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._on_saved, lambda saved: saved))
        self._hooks.enter_context(patch.object(torch.UntypedStorage, "resize_", self._resizing()))
        # DTensor finds the shape of a result by an operation on fake tensors of whole size, which hold no memory
        self._hooks.enter_context(patch.object(ShardingPropagator, "_fake_mode_lock", _Pause(self), create=True))
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

    def alive(self, category: str) -> list[weakref.ref]:
        """Return references to the storages of a category that exist now, for `adopt` of another tracker."""
        return [reference for reference, storage in self._alive.values() if storage.category == category]

    def adopt(self, storages: Iterable[weakref.ref], category: str) -> None:
        """Set the category of storages, if they still exist; no Python object has the tensors of DDP's buckets."""
        for reference in storages:
            if (held := reference()) is not None:
                self._add(held, held.nbytes(), category)

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

    def sent_between(self, first: int, last: int) -> int:
        """Return the bytes sent to other processes from operation `first` to operation `last`, both included."""
        return round(sum(size for operation, size in self.sent if first <= operation <= last))

    def events(self) -> Iterator[tuple[int, int, int]]:
        """Yield (operation, storage number, bytes) in order: first when a storage appears, then when it is freed."""
        births = ((storage.born, 0, number, storage.bytes) for number, storage in enumerate(self._seen))
        deaths = ((s.died, 1, number, s.bytes) for number, s in enumerate(self._seen) if s.died is not None)
        for operation, _, number, size in sorted([*births, *deaths]):
            yield operation, number, size

    def streams(self) -> list[int]:
        """Return the number of the stream of each storage, by storage number."""
        return [storage.stream for storage in self._seen]

    def _label_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.label([parameter.grad], "gradients")

    def _on_saved(self, tensor: Tensor) -> Tensor:
        for storage in self._see([tensor], "other"):
            if storage.category == "temporaries":
                storage.category = "activations"
        return tensor

    def _know_late(self, tensors: Iterable[Tensor], category: str) -> None:
        """Set the category of tensors that have none so far; DDP's buckets existed before they were first seen."""
        for storage in self._see(tensors, category):
            if storage.category == "other":
                storage.born = 0
            if storage.category in ("temporaries", "other"):
                storage.category = category

    def _resizing(self) -> Callable[[torch.UntypedStorage, int], Any]:
        """Return a `UntypedStorage.resize_` that notes the new size: FSDP2 empties and refills gathered blocks."""
        resize = torch.UntypedStorage.resize_

        def resized(held: torch.UntypedStorage, size: int) -> Any:
            result = resize(held, size)
            reference, storage = self._alive.get(held._cdata, (None, None))
            known = storage is not None and reference() is not None
            if known or held.device.type == self.device.type:
                self.operations += 1
                if known:
                    storage.died = self.operations - 1
                self._add(held, size, storage.category if known else "temporaries")
            return result

        return resized

    def _see(self, tensors: Iterable[Tensor], category: str) -> list[_Storage]:
        """Return the storages of tensors; new storages get this category."""
        storages = []
        for tensor in dense(tensors):
            if tensor.device.type != self.device.type:
                continue
            held = tensor.untyped_storage()
            address = held._cdata
            reference, storage = self._alive.get(address, (None, None))
            # another thread may free a storage, and this one get its address, before `_on_freed` has removed the entry
            if storage is None or reference() is None:
                storage = self._add(held, held.nbytes(), category)
            storages.append(storage)
        return storages

    def _add(self, held: torch.UntypedStorage, size: int, category: str) -> _Storage:
        address, storage = held._cdata, _Storage(size, category, self.operations, self._streams.current)
        self._alive[address] = weakref.ref(held, self._on_freed(address, storage)), storage
        self._seen.append(storage)
        return storage

    def _on_freed(self, address: int, storage: _Storage) -> Any:
        def note(reference: weakref.ref) -> None:
            storage.died = self.operations
            if self._alive.get(address, (None,))[0] is reference:
                del self._alive[address]

        return note


class _Pause:
    """Let a tracker see nothing inside the with block."""

    def __init__(self, tracker: MemoryTracker) -> None:
        self.tracker = tracker

    def __enter__(self) -> None:
        self.tracker._paused = True

    def __exit__(self, *exception: Any) -> None:
        self.tracker._paused = False


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all tensors in the state of an optimizer."""
    return [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)]
