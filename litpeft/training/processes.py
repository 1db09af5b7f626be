"""The distributed process group: rank, world size and the collectives that runs need. All work with one process too."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

RANK_VARIABLES = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # set by torchrun, srun and Lightning's launcher


def is_first_process() -> bool:
    """Return whether this process will have rank 0, from the environment: works before the process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum over all processes. Collective: every process must call it."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the maximum over all processes. Collective: every process must call it."""
    if world_size() == 1:
        return value
    maximum = torch.tensor(value, device=device)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


def gather_from_ranks(value: Any) -> list[Any]:
    """Return every process's value (plain or CPU tensor) by rank. Collective: every process must call it."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def state_of_all_ranks(state: dict[str, Any]) -> dict[str, Any]:
    """Return rank 0's state with the other ranks' in `others`. Collective: every process must call it."""
    return state if world_size() == 1 else state | {"others": gather_from_ranks(state)[1:]}


def state_of_this_rank(state: dict[str, Any]) -> dict[str, Any]:
    """Return this rank's part of a `state_of_all_ranks` result, or rank 0's if the run had fewer processes."""
    others = state.get("others", [])
    chosen = others[rank() - 1] if 0 < rank() <= len(others) else state
    return {name: value for name, value in chosen.items() if name != "others"}
