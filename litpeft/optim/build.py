"""Build the optimizer and the learning-rate scheduler from factories that the command line creates."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from litpeft.errors import UserError


def build_optimizer(
    factory: Callable[..., Optimizer] | None, groups: list[dict[str, Any]], default_lr: float
) -> Optimizer:
    """Return the optimizer of these parameter groups; AdamW at `default_lr` if `factory` is None.

    The learning rate of a group with `lr_scale` is multiplied by `lr_scale` (LoRA+).

    Raises:
        UserError: the optimizer does not accept its arguments.
    """
    scales = [group.pop("lr_scale", 1.0) for group in groups]
    if factory is None:
        optimizer: Optimizer = torch.optim.AdamW(groups, lr=default_lr, weight_decay=0.01, fused=True)
    else:
        try:
            optimizer = factory(groups)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer cannot be created: {error}.") from error
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        if scale != 1.0 and group["lr"] is None:
            raise UserError(
                "model.optimizer chooses its own learning rate, so model.adapter.lora_plus_ratio cannot scale it; "
                "leave lora_plus_ratio out."
            )
        group["lr"] = group["lr"] if scale == 1.0 else group["lr"] * scale
    return optimizer


def build_scheduler(
    factory: Callable[..., Any] | None, optimizer: Optimizer, total_steps: int | None
) -> dict[str, Any] | None:
    """Return Lightning's `lr_scheduler` dict; None if `factory` is None.

    `total_steps`, the optimizer steps of the whole run, replaces `total_steps: null` and torch's `T_max: -1`.

    Raises:
        UserError: the scheduler does not accept its arguments, or needs a number of steps that is not known.
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
        raise UserError(f"model.scheduler cannot be created: {error}.") from error
    if len(set(before)) > 1 and len({group["lr"] for group in optimizer.param_groups}) == 1:
        raise UserError(
            "model.scheduler sets one learning rate for all parameters and would undo model.adapter.lora_plus_ratio; "
            "choose another scheduler."
        )
    options = {"scheduler": scheduler, "interval": "step"}
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        # Lightning's sub-class names a metric; for torch's class it follows from the mode
        metric = getattr(scheduler, "monitor", "val_loss" if scheduler.mode == "min" else "val_accuracy")
        options |= {"monitor": metric, "interval": "epoch", "strict": True}
    return options


def fast_forward(scheduler: Any, optimizer: Optimizer, fresh: tuple[Optimizer, Any], steps: int) -> None:
    """Move a scheduler and its optimizer to where a new scheduler is after `steps` steps.

    For a run that is resumed with another number of steps: the checkpoint has the state of the shorter schedule.

    Args:
        scheduler: the scheduler of the run.
        optimizer: the optimizer of the run; its state is kept, its hyper-parameters are replaced.
        fresh: a new optimizer and its new scheduler, created with the new number of steps.
        steps: optimizer steps so far.

    Raises:
        UserError: the new schedule is shorter than `steps`.
    """
    new_optimizer, new_scheduler = fresh
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # no optimizer steps are needed
            for _ in range(steps):
                new_scheduler.step()
    except ValueError as error:
        raise UserError(f"model.scheduler cannot continue after step {steps}: {error}.") from error
    for group, new_group in zip(optimizer.param_groups, new_optimizer.param_groups, strict=True):
        group.update({name: value for name, value in new_group.items() if name != "params"})
    scheduler.load_state_dict(new_scheduler.state_dict())


def optimizer_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each parameter group as the optimizer uses them, for the run record."""
    return [
        {"params": sum(p.numel() for p in group["params"])}
        | {
            k: v
            for k, v in group.items()
            if k != "params" and isinstance(v, (int, float, str, bool, tuple, list, type(None)))
        }
        for group in optimizer.param_groups
    ]
