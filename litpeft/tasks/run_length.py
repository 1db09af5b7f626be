"""The number of optimizer steps of a run, and its learning-rate schedule if the run is resumed with another number."""

from __future__ import annotations

import math
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim import Optimizer

from litpeft.errors import UserError
from litpeft.optim import build_scheduler, fast_forward


def total_steps(trainer: Trainer) -> int | None:
    """Return the number of optimizer steps of the whole run; None if the run has no end."""
    # trainer.estimated_stepping_batches would build the loader before a resumed run restores it (Lightning #20550)
    if trainer.max_steps > 0 and (trainer.max_epochs or -1) < 0:
        return trainer.max_steps
    batches = getattr(getattr(trainer, "datamodule", None), "num_train_batches", None)
    if batches is None:  # dataloaders
        steps = trainer.estimated_stepping_batches
        return int(steps) if math.isfinite(steps) else None
    limit = trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if (epochs := trainer.max_epochs or -1) < 0:
        return None
    changes = [each for each in getattr(trainer, "callbacks", ()) if isinstance(each, GradientAccumulationScheduler)]
    if changes:  # its numbers of batches per step, by epoch
        steps = sum(math.ceil(batches / changes[0].get_accumulate_grad_batches(epoch)) for epoch in range(epochs))
    else:
        steps = math.ceil(batches / trainer.accumulate_grad_batches) * epochs
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def new_schedule(task: Any, optimizer: Optimizer) -> dict[str, Any] | None:
    """Return Lightning's `lr_scheduler` dict of a task's scheduler; None without one.

    Raises:
        UserError: the scheduler does not suit the run.
    """
    schedule, trainer = build_scheduler(task.scheduler, optimizer, task.total_steps(), task.monitor), task.trainer
    if schedule and schedule.get("monitor", "").startswith("val_"):
        if not trainer.enable_validation:
            raise UserError(
                f"model.scheduler {type(schedule['scheduler']).__name__} needs {schedule['monitor']}, and the run is "
                "not validated; leave out trainer.limit_val_batches 0, or give another scheduler."
            )
        schedule["frequency"] = trainer.check_val_every_n_epoch or 1  # the same value must not count in other epochs
    return schedule


def continue_schedule(task: Any, saved_total_steps: int | None) -> None:
    """Continue the schedule of a run resumed with another length as if it had had this length from the start.

    Args:
        task: the task, in a trainer that has restored its checkpoint.
        saved_total_steps: number of optimizer steps of the run that saved the checkpoint; None if unknown.
    """
    schedules, total = task.trainer.lr_scheduler_configs, task.total_steps()
    if not schedules or schedules[0].interval != "step" or saved_total_steps in (None, total):
        return
    fresh = task.configure_optimizers()
    pair = fresh["optimizer"], fresh["lr_scheduler"]["scheduler"]
    fast_forward(schedules[0].scheduler, task.trainer.optimizers[0], pair, task.trainer.global_step)
