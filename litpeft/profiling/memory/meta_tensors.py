"""Tensors without numbers: what a computation asks of their values is answered by what is known of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import masking_utils

aten = torch.ops.aten
SELECTING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Dataless(TorchDispatchMode):
    """Within, tensors on the meta device and fake ones can be computed with where their values would matter.

    Args:
        answer: to what is asked of all of a tensor: models of transformers ask whether a batch has no padding.
        selected: how many are chosen where a mask of bools picks positions: those that carry a label.
    """

    def __init__(self, answer: bool = True, selected: int = 1) -> None:
        super().__init__()
        self.answer, self.selected = answer, selected

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and _without_numbers(args[0]):
            return self.answer if args[0].dtype == torch.bool else 1  # a count of steps, say
        if func in SELECTING:
            args = (args[0], [place for index in args[1] for place in self._places(index)], *args[2:])
        return func(*args, **(kwargs or {}))

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        """A mask as indices, one tensor a dimension, as its kernel would make them."""
        if index is None or index.dtype != torch.bool or not _without_numbers(index):
            return [index]
        return [torch.empty(self.selected, dtype=torch.int64, device=index.device) for _ in range(index.dim())]


def _without_numbers(tensor: Tensor) -> bool:
    return tensor.is_meta or hasattr(tensor, "fake_mode")


@contextmanager
def pretending(dataless: Dataless, fake: FakeTensorMode | None = None) -> Iterator[None]:
    """Within, a model on the meta device can be built and trained.

    Args:
        dataless: how values are answered for.
        fake: for a model that is materialised: the CPU's kernels are chosen as they would be.
    """
    # transformers takes fake tensors for a trace that is to hold for any batch, and then masks what has no padding
    with patch.object(masking_utils, "is_tracing", lambda *_: False), fake or nullcontext(), dataless:
        yield


def materialise(model: nn.Module, fake: FakeTensorMode) -> None:
    """Put fake tensors on the CPU in place of a model's on the meta device; what was one tensor stays one."""
    made: dict[int, Tensor] = {}

    def of(tensor: Tensor) -> Tensor:
        if tensor.is_meta and id(tensor) not in made:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = new
        return made.get(id(tensor), tensor)

    with fake:
        for module in model.modules():
            for held in (module._parameters, module._buffers, vars(module)):
                held.update(tree_map_only(Tensor, of, {k: v for k, v in held.items() if isinstance(v, Tensor)}))
