"""FSDP2: each process holds a shard of every parameter, gradient and optimizer state; checkpoints hold full tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, mesh: DeviceMesh, device: torch.device | None = None) -> None:
    """Shard each parameter along dimension 0 in place; each block is gathered while it computes.

    Buffers are not sharded. Four-bit weights are buffers of packed bytes, which cannot be split like a matrix.

    Args:
        model: the model.
        mesh: one-dimensional mesh of the processes.
        device: where the shards shall be, if the model is elsewhere. Blocks are moved one by one, each just before it
            is sharded, because a device need not hold the whole model.
    """
    for block in _blocks(model):
        fully_shard(block if device is None else block.to(device), mesh=mesh)
    if device is not None:
        _move_rest(model, device)
    fully_shard(model, mesh=mesh)


def _move_rest(model: nn.Module, device: torch.device) -> None:
    """Move the modules beside the blocks; `fully_shard` moves the tensors of modules that contain blocks."""
    for child in model.children():
        if any(isinstance(module, nn.ModuleList) for module in child.modules()):
            if not isinstance(child, nn.ModuleList):
                _move_rest(child, device)
        else:
            child.to(device)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the transformer blocks: the items of each outermost ModuleList."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def reshard(model: nn.Module) -> None:
    """Free parameters that are still gathered, for example after a validation."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` was applied to the model."""
    return isinstance(model, FSDPModule)


def full_tensors(value: Any) -> Any:
    """Return nested dicts and lists with full tensors for shards. Collective: every process must call it."""
    if isinstance(value, dict):
        return {name: full_tensors(item) for name, item in value.items()}
    if isinstance(value, list):
        return [full_tensors(item) for item in value]
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor, sharded as `like` is; other tensors are returned unchanged."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
