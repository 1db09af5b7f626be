"""Processes that train together: which of them this is, and what they tell each other. One alone has nobody to ask."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

PLACES = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # set by torchrun, srun and Lightning's own launcher


def started_first() -> bool:
    """Whether this process is the first of those that were started together; also before they have met."""
    return all(os.environ.get(place, "0") == "0" for place in PLACES)


def count() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, counted from 0."""
    return dist.get_rank() if count() > 1 else 0


def total(values: Tensor) -> Tensor:
    """The sum over all of them; the tensor itself where there is one. All have to ask."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def most(value: int, device: torch.device) -> int:
    """The greatest over all of them. All have to ask."""
    if count() == 1:
        return value
    told = torch.tensor(value, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def kept(state: dict[str, Any]) -> dict[str, Any]:
    """A callback's state for a checkpoint, which the first process writes: the others' are in it. All have to ask."""
    return state if count() == 1 else state | {"others": gathered(state)[1:]}


def own(state: dict[str, Any]) -> dict[str, Any]:
    """Of what `kept` gave, this process's; the first one's where there were fewer."""
    others = state.get("others", [])
    chosen = others[rank() - 1] if 0 < rank() <= len(others) else state
    return {name: value for name, value in chosen.items() if name != "others"}


def gathered(value: Any) -> list[Any]:
    """What each of them has, in order of their ranks; plain values and tensors of the host. All have to ask."""
    if count() == 1:
        return [value]
    told: list[Any] = [None] * count()
    dist.all_gather_object(told, value)
    return told
