"""FSDP2: each process holds a share of every parameter, its gradient and its states; whole again in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave this process its share of each parameter, along the first dimension; a block is whole while it computes.

    Buffers stay whole in each process: four-bit weights are such, which are bytes and can be no shares of a matrix.

    Args:
        model: on its device.
        mesh: the processes, in one dimension.
    """
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """What stands in lists, but for lists within: the blocks of a transformer."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def rest(model: nn.Module) -> None:
    """Give up what is whole still, as after a validation: parameters are shares again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether its parameters are shares."""
    return isinstance(model, FSDPModule)


def whole(value: Any) -> Any:
    """A nest of dicts and lists in which shares have become whole tensors. All processes have to ask."""
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor() if isinstance(value, DTensor) else value


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, where `like` is one of a tensor of that shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
