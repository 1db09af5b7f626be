"""Trace a training step of one of several devices: the code of DDP and FSDP2, with collectives that move no data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group, _fsdp_state
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.testing._internal.distributed.fake_pg import FakeStore

from litpeft.errors import UserError
from litpeft.profiling.memory.streams import Streams
from litpeft.training.sharding import shard

BUCKET = 25 * 2**20  # bytes of gradients that DDP averages together, https://pytorch.org/docs/stable/notes/ddp.html
FIRST_BUCKET = 2**20  # bytes; the first bucket is small, so that its all-reduce starts early


@dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
        count: devices of all machines together, each with a process of its own.
        strategy: `one_device`, `ddp` (each device holds the whole model and the gradients are averaged) or `fsdp2`
            (each holds a shard of every parameter, with its gradient and optimizer state).
    """

    count: int = 1
    strategy: str = "one_device"


ONE = Devices()


@contextmanager
def first_of(devices: Devices, streams: Streams) -> Iterator[DeviceMesh | None]:
    """Be the first process of `devices.count` processes inside the with block; the others do not exist.

    All processes hold equally many bytes: FSDP2 pads the shards, and with DDP every process holds the whole model.

    Args:
        devices: the devices of the run.
        streams: streams for FSDP2, which tell in which one a tensor is created.

    Yields:
        The mesh of the processes; None on one device.

    Raises:
        UserError: this process trains together with others.
    """
    if devices.strategy == "one_device":
        yield None
        return
    if dist.is_initialized():
        raise UserError("estimate: this process belongs to a run on several devices; estimate in a process of its own.")
    hook = sys.excepthook  # the process group would put "[rank0]" before each line of an error
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices.count)
    sys.excepthook = hook
    try:
        with ExitStack() as patches:
            for module in (_fsdp_collectives, _fsdp_param_group, _fsdp_state):
                patches.enter_context(patch.object(module, "_get_device_handle", lambda _: streams))
            patches.enter_context(patch.object(FSDPParamGroup, "_validate_no_meta_params", lambda _: None))
            patches.enter_context(warnings.catch_warnings())  # the product of the output layer is a view in a trace
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            yield init_device_mesh("cpu", (devices.count,))
    finally:
        dist.destroy_process_group()


def shard_model(model: nn.Module, mesh: DeviceMesh, place: torch.device) -> None:
    """Shard a model without data over the processes of `first_of`, as FSDP2 does in a run.

    Args:
        model: the model with its adapter.
        mesh: the processes.
        place: device of the model's tensors: `cpu` for fake tensors, or `meta`.
    """
    shard(model, mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                group.device = place  # where gathered parameters are created


def buckets(model: nn.Module) -> list[Tensor]:
    """Return DDP's buckets: one copy of all gradients, in the order of backward, which DDP averages in place."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad][::-1]
    groups, _ = dist._compute_bucket_assignment_by_size(trained, [FIRST_BUCKET, BUCKET])
    return [_bucket([trained[i] for i in group]) for group in groups]


def _bucket(gradients: list[Any]) -> Tensor:
    return gradients[0].new_empty(sum(gradient.numel() for gradient in gradients))
