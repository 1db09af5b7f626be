"""Meta tensors: answer questions about tensor values with facts about the batch, so that models run without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import masking_utils

from litpeft.ops.without_values import has_values

aten = torch.ops.aten
SELECTING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# comparisons of a random number with a rate -> the answer that keeps a layer: the most memory that a step can need
KEEPS_LAYER = {aten.gt.Scalar: True, aten.gt.Tensor: True, aten.lt.Scalar: False, aten.lt.Tensor: False}


class MetaValues(TorchDispatchMode):
    """Let operations that depend on values run on meta and fake tensors inside the with block.

    Args:
        answer: value of a boolean tensor that is read, such as transformers' check for a batch without padding.
        selected: number of positions that a boolean mask selects, such as positions with a label.
    """

    def __init__(self, answer: bool = True, selected: int = 1) -> None:
        super().__init__()
        self.answer, self.selected = answer, selected

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a shard runs its operations on the tensor inside
        if func is aten._local_scalar_dense.default and not has_values(args[0]):
            if hasattr(args[0], "keeps_layer"):
                return args[0].keeps_layer
            return self.answer if args[0].dtype == torch.bool else 1  # for example a step count
        if func in SELECTING:
            args = (args[0], [place for index in args[1] for place in self._places(index)], *args[2:])
        result = func(*args, **(kwargs or {}))
        if func is aten.rand.default:
            result.is_draw = True
        elif func in KEEPS_LAYER and hasattr(args[0], "is_draw"):  # methods of PEFT and models with layer drop
            result.keeps_layer = KEEPS_LAYER[func]
        return result

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        """Return a boolean mask as index tensors, one per dimension, as the indexing kernel does."""
        if index is None or index.dtype != torch.bool or has_values(index):
            return [index]
        return [torch.empty(self.selected, dtype=torch.int64, device=index.device) for _ in range(index.dim())]


@contextmanager
def meta_execution(values: MetaValues, fake: FakeTensorMode | None = None) -> Iterator[None]:
    """Build and train a model on the meta device inside the with block.

    Args:
        values: answers to questions about tensor values.
        fake: mode of fake CPU tensors, which makes torch choose the CPU kernels.
    """
    # otherwise transformers assumes a trace for any batch and creates masks for batches without padding too
    with patch.object(masking_utils, "is_tracing", lambda *_: False), fake or nullcontext(), values:
        yield


def materialise(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace the meta tensors of a model by fake CPU tensors; shared tensors stay shared."""
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
