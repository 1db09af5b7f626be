"""From the factories that the command line injects to an optimizer and a schedule stepped once an optimizer step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from litpeft.errors import UserError


def build_optimizer(
    factory: Callable[..., Optimizer] | None, groups: list[dict[str, Any]], default_lr: float
) -> Optimizer:
    """The optimizer over these groups; AdamW at `default_lr` where none is named.

    A group's `lr_scale` becomes a factor on the learning rate that the optimizer was given (LoRA+).

    Raises:
        UserError: the optimizer refuses its arguments.
    """
    scales = [group.pop("lr_scale", 1.0) for group in groups]
    if factory is None:
        optimizer: Optimizer = torch.optim.AdamW(groups, lr=default_lr, weight_decay=0.01, fused=True)
    else:
        try:
            optimizer = factory(groups)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer cannot be made: {error}.") from error
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        if scale != 1.0 and group["lr"] is None:
            raise UserError("model.optimizer finds its own learning rate, of which lora_plus_ratio can be no multiple.")
        group["lr"] = group["lr"] if scale == 1.0 else group["lr"] * scale
    return optimizer


def build_scheduler(
    factory: Callable[..., Any] | None, optimizer: Optimizer, total_steps: int | None
) -> dict[str, Any] | None:
    """What Lightning is told of the schedule, with the run's steps filled in where they are taken and were not given.

    That is `total_steps` where it is none, and the `T_max` of torch's cosine, which must be a number, where it is -1.

    Raises:
        UserError: the schedule refuses its arguments, or needs a number of steps that is not known.
    """
    if factory is None:
        return None
    given = getattr(factory, "keywords", None)  # the command line injects a partial that holds every argument
    if given is None:
        parameters = inspect.signature(factory).parameters
        given = {"total_steps": None} if "total_steps" in parameters else {}
    open_ended = {"total_steps": None, "T_max": -1}
    fill = {name: total_steps for name, unset in open_ended.items() if name in given and given[name] == unset}
    before = [group["lr"] for group in optimizer.param_groups]
    try:
        scheduler = factory(optimizer, **fill)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.scheduler cannot be made: {error}.") from error
    if len(set(before)) > 1 and len({group["lr"] for group in optimizer.param_groups}) == 1:
        raise UserError("model.scheduler gives all parameters one rate, and would undo the adapter's lora_plus_ratio.")
    told = {"scheduler": scheduler, "interval": "step"}
    if hasattr(scheduler, "monitor"):  # Lightning's ReduceLROnPlateau: there is a metric only after validation
        told |= {"monitor": scheduler.monitor, "interval": "epoch", "strict": True}
    return told


def live_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What the optimizer really runs with, group by group: for the record, since configurations can leak."""
    return [
        {"params": sum(p.numel() for p in group["params"])}
        | {
            k: v
            for k, v in group.items()
            if k != "params" and isinstance(v, (int, float, str, bool, tuple, list, type(None)))
        }
        for group in optimizer.param_groups
    ]
