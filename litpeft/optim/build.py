"""Build the optimizer and the learning-rate scheduler from factories that the command line creates."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from litpeft.errors import UserError
from litpeft.optim.muon import MuonAndAdamW, by_rule
from litpeft.optim.schedules import run_of

SCHEDULED = ("lr", "momentum", "betas")  # hyper-parameters of optimizers that torch's schedulers change


def build_optimizer(
    factory: Callable[..., Optimizer] | None,
    groups: list[dict[str, Any]],
    default_lr: float,
    model: nn.Module | None = None,
    head: Iterable[str] = (),
) -> Optimizer:
    """Return the optimizer of these parameter groups; AdamW at `default_lr` if `factory` is None.

    The learning rate of a group with `lr_scale` is multiplied by `lr_scale` (LoRA+). torch's Muon becomes
    `MuonAndAdamW`. A schedule-free optimizer is returned in its training mode.

    Args:
        factory: called with the parameter groups.
        groups: the parameter groups.
        default_lr: learning rate of AdamW.
        model: the model, where Muon finds the embeddings; without it, Muon gets all parameters.
        head: names of the head modules of `model`.

    Raises:
        UserError: the optimizer does not accept its arguments.
    """
    if is_muon := model is not None and _is_muon(factory):
        groups = by_rule(groups, model, head)
    scales = [group.pop("lr_scale", 1.0) for group in groups]
    if factory is None:
        optimizer: Optimizer = torch.optim.AdamW(groups, lr=default_lr, weight_decay=0.01, fused=True)
    else:
        try:
            optimizer = MuonAndAdamW(factory, groups, default_lr) if is_muon else factory(groups)
        except (TypeError, ValueError, AssertionError) as error:  # torchao asserts that there is a GPU
            raise UserError(f"model.optimizer cannot be created: {error}.") from error
    keep_state_dtypes(optimizer)
    if is_schedule_free(optimizer):
        optimizer.train()
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        if scale != 1.0 and group["lr"] is None:
            raise UserError(
                "model.optimizer chooses its own learning rate, so model.adapter.lora_plus_ratio cannot scale it; "
                "leave lora_plus_ratio out."
            )
        group["lr"] = group["lr"] if scale == 1.0 else group["lr"] * scale
    return optimizer


def keep_state_dtypes(optimizer: Optimizer) -> None:
    """Let `load_state_dict` restore each tensor of the state in the dtype that it was saved in.

    torch casts them to the dtype of the parameters, which would round the fp32 averages of some optimizers of bf16
    parameters: a resumed run would not go on as it was.
    """
    loaded: list[dict[str, Any]] = []

    def note(_: Optimizer, state: dict[str, Any]) -> None:
        loaded[:] = [state]

    def restore(optimizer: Optimizer) -> None:
        saved = loaded.pop()
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            held = optimizer.state.get(parameter, {})
            for name, tensor in saved["state"].get(number, {}).items():
                now = held.get(name)
                if isinstance(tensor, Tensor) and isinstance(now, Tensor) and tensor.dtype != now.dtype:
                    held[name] = tensor.to(now.device, copy=True)

    if hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks"):  # not where a class does without torch's constructor
        optimizer.register_load_state_dict_pre_hook(note)
        optimizer.register_load_state_dict_post_hook(restore)


def _is_muon(factory: Any) -> bool:
    """Return whether a factory is torch's Muon, a partial of Muon, or what the command line makes of it."""
    kinds = (factory, getattr(factory, "func", None), *getattr(factory, "args", ()))
    muon = getattr(torch.optim, "Muon", None)  # torch 2.9 and later
    return muon is not None and any(isinstance(kind, type) and issubclass(kind, muon) for kind in kinds)


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has a mode for training and a mode for evaluation, which have other weights.

    See `schedulefree` (Defazio et al. 2024, https://arxiv.org/abs/2405.15682).
    """
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def build_scheduler(
    factory: Callable[..., Any] | None,
    optimizer: Optimizer,
    total_steps: int | None,
    monitor: tuple[str, str] = ("val_loss", "min"),
) -> dict[str, Any] | None:
    """Return Lightning's `lr_scheduler` dict; None if `factory` is None.

    Args:
        factory: creates the scheduler from the optimizer.
        optimizer: the optimizer.
        total_steps: optimizer steps of the whole run, in place of `total_steps: null` and torch's `T_max: -1`.
        monitor: main metric of the task and its mode, for ReduceLROnPlateau.

    Raises:
        UserError: the scheduler does not accept its arguments, needs a number of steps that is not known, or ends
            before the run.
    """
    if factory is None:
        return None
    given = dict(getattr(factory, "keywords", None) or {})  # a partial: that of the command line holds every argument
    open_ended: dict[str, int | None] = {"T_max": -1}
    if not given.get("steps_per_epoch"):  # OneCycleLR would ignore them beside total_steps
        open_ended["total_steps"] = None
        if "total_steps" in inspect.signature(factory).parameters:
            given.setdefault("total_steps", None)
    fill = {name: total_steps for name, unset in open_ended.items() if name in given and given[name] == unset}
    before = [group["lr"] for group in optimizer.param_groups]
    try:
        with run_of(total_steps):
            scheduler = factory(optimizer, **fill)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.scheduler cannot be created: {error}.") from error
    ends = scheduler.total_steps if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR) else None
    if ends is not None and total_steps is not None and ends < total_steps:
        raise UserError(
            f"model.scheduler OneCycleLR ends after {ends} steps, and the run has {total_steps}; leave out "
            "total_steps, epochs and steps_per_epoch."
        )
    if len(set(before)) > 1 and len({group["lr"] for group in optimizer.param_groups}) == 1:
        raise UserError(
            "model.scheduler sets one learning rate for all parameters, which would undo model.adapter.lora_plus_ratio "
            "or the learning rate of Muon's AdamW; choose another scheduler."
        )
    options = {"scheduler": scheduler, "interval": "step"}
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        # Lightning's sub-class names a metric; for torch's class it follows from the mode
        highest = monitor[0] if monitor[1] == "max" else "val_accuracy"
        metric = getattr(scheduler, "monitor", "val_loss" if scheduler.mode == "min" else highest)
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
        # other entries may be state, such as the step counter of schedule-free optimizers
        moved = {name for name in new_group if name not in optimizer.defaults or name in SCHEDULED} - {"params"}
        group.update({name: new_group[name] for name in moved})
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
