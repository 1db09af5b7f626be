"""The batch that `litpeft estimate` traces after the first step, which has the longest batch of the data."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from litpeft.data.sampler import LengthGroupedBatches


def later_batch(loader: Any, trainer: Any) -> dict[str, Tensor] | None:
    """Return the longest batch after the first optimizer step; None if that is the longest batch of the data.

    Each epoch starts with its longest batch. In a run of one epoch, that batch meets no state of the optimizer, because
    the first step makes it.

    Args:
        loader: loader of the training batches.
        trainer: options of the trainer.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, LengthGroupedBatches):  # lengths unknown
        return None
    batches, accumulated, limit = len(loader), trainer.accumulate_grad_batches, trainer.limit_train_batches
    if limit is not None:
        batches = int(limit * batches) if isinstance(limit, float) else min(limit, batches)
    steps = trainer.max_steps if trainer.max_steps >= 0 else math.inf
    if trainer.max_epochs != 1 and steps > math.ceil(batches / accumulated):
        return None
    longest = sampler.longest_later(batches, steps, accumulated)
    return None if longest is None else loader.dataset[list(sampler)[longest]]
