"""The number of optimizer steps of a run, for learning-rate schedules."""

from __future__ import annotations

import math

from lightning import Trainer


def total_steps(trainer: Trainer) -> int | None:
    """Return the number of optimizer steps of the whole run; None if the run has no end."""
    # trainer.estimated_stepping_batches would build the loader before a resumed run restores it (Lightning #20550)
    if trainer.max_steps > 0 and (trainer.max_epochs or -1) < 0:
        return trainer.max_steps
    batches = trainer.datamodule.num_train_batches
    limit = trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or -1)
    if steps < 0:
        return None
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
