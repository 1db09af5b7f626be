"""Which tensors a collective operation of torch.distributed fills, and how many bytes a process sends for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed.fsdp  # defines the operations of `torch.ops.fsdp`
from torch import Tensor

from litpeft.profiling.memory.stored_tensors import nested_tensors
from litpeft.training.processes import world_size

c10d, functional, fsdp = torch.ops.c10d, torch.ops._c10d_functional, torch.ops.fsdp
COLLECTIVES = ("c10d", "fsdp")  # namespaces of operations whose arguments are buffers
# operation -> how often (processes - 1) / processes of its bytes leave each process, in a ring or a tree
RINGS = {
    c10d.allreduce_.default: 2,  # reduce-scatter, then all-gather
    functional.all_reduce.default: 2,
    functional.all_reduce_.default: 2,
    c10d._allgather_base_.default: 1,
    functional.all_gather_into_tensor.default: 1,
    c10d._reduce_scatter_base_.default: 1,
    functional.reduce_scatter_tensor.default: 1,
}


def sent_bytes(func: Any, args: Sequence[Any]) -> float | None:
    """Return the bytes that this process sends in a collective; None if `func` is no collective that moves gradients.

    A ring of W processes sends (W - 1) / W of the whole tensor in an all-gather or reduce-scatter, and twice that in an
    all-reduce, the least that is possible (Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002).

    Args:
        func: the operation.
        args: its arguments by position.
    """
    if func not in RINGS:
        return None
    processes = world_size()
    if func is c10d._reduce_scatter_base_.default:
        whole = args[1].nbytes
    elif func is functional.all_gather_into_tensor.default:
        whole = args[0].nbytes * processes
    else:
        whole = sum(tensor.nbytes for tensor in nested_tensors(args[:1]))
    return RINGS[func] * whole * (processes - 1) / processes


def filled_buffers(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a collective that exist only because there are several processes.

    These are the arguments of collectives, and of FSDP2's copies into and out of them: the gathered parameters.
    """
    if func is fsdp.all_gather_copy_in.default:
        yield args[1]
    elif func in (fsdp.split_with_sizes_copy.default, fsdp.chunk_cat.default):
        yield from nested_tensors([kwargs["out"]])
    elif func.namespace == "c10d":
        yield from nested_tensors(args)


def whole_gradients(func: Any, args: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the whole gradients of a block that FSDP2 copies together, before the processes add them."""
    if func is fsdp.chunk_cat.default:
        yield from nested_tensors(args[:1])
