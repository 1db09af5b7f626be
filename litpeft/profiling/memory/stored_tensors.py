"""Find the tensors that have storage: inside nested arguments, sparse tensors and tensor sub-classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass


def dense(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors; sparse and wrapped tensors have no storage of their own, so yield the tensors inside."""
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "fake_mode"):  # weights of torchao, quanto
            with _disable_current_modes():
                inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
            yield from dense(part for part in inner if isinstance(part, Tensor))  # a DTensor also has its mesh
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


def nested_tensors(things: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists; faster than pytree."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, (tuple, list)):
            yield from nested_tensors(thing)
