"""Learning-rate schedules, stepped after each optimizer step.

They are classes because the command line can pass arguments only to classes. Warm-up starts at 1/(warm-up steps + 1) of
the learning rate, not at zero, so that the first step has an effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from litpeft.errors import UserError

_run_steps: ContextVar[int | None] = ContextVar("_run_steps", default=None)


@contextmanager
def run_of(total_steps: int | None) -> Iterator[None]:
    """Context manager: schedules created inside the with block, also by a lambda, have this length by default.

    Args:
        total_steps: optimizer steps of the whole run; None if the run has no end.
    """
    token = _run_steps.set(total_steps)
    try:
        yield
    finally:
        _run_steps.reset(token)


class Warmup(LambdaLR):
    """Linear warm-up, then the decay of the sub-class; all groups get the same factor, so their ratios stay.

    Args:
        optimizer: set by the task.
        warmup: warm-up steps; below 1, a share of all steps.
        floor: final learning rate, as a share of the learning rate.
        total_steps: optimizer steps of the whole run; set by the task.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.06, floor: float = 0.0, total_steps: int | None = None
    ) -> None:
        name = f"model.scheduler {type(self).__name__}"
        total_steps = _run_steps.get() if total_steps is None else total_steps
        if total_steps is None:
            raise UserError(f"{name}: the run has no end; give model.scheduler.total_steps, or trainer.max_epochs.")
        if warmup < 0 or not 0 <= floor <= 1:
            raise UserError(
                f"{name}: warmup must not be negative and floor must be in [0, 1], got warmup {warmup}, floor {floor}."
            )
        self.warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
        self.floor, self.total_steps = floor, total_steps
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        left = max(1, self.total_steps - self.warmup_steps)
        share = min(1.0, (step - self.warmup_steps) / left)  # 0 at the end of warm-up; 1 after the last step
        return self.floor + (1 - self.floor) * self.decay(share)

    def state_dict(self) -> dict[str, Any]:
        """Return the position without the length, so that a resumed run may have another number of steps."""
        return {k: v for k, v in super().state_dict().items() if k not in ("warmup_steps", "floor", "total_steps")}

    def decay(self, share: float) -> float:
        """Return the factor, from 1 down to 0, at this share of the steps after warm-up."""
        raise NotImplementedError


class Constant(Warmup):
    """Constant learning rate, after an optional linear warm-up.

    Args:
        optimizer: set by the task.
        warmup: warm-up steps; below 1, a share of all steps.
        total_steps: optimizer steps of the whole run; set by the task.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(optimizer, warmup, 1.0, total_steps)

    def decay(self, share: float) -> float:
        return 1.0


class WarmupInverseSqrt(Warmup):
    """Linear warm-up, then inverse square root decay (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 3).

    After W warm-up steps (at least 1), the factor at step t is √(W / t), and at least `floor`.
    """

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return super()._factor(step)
        warmup = max(1, self.warmup_steps)
        return max(self.floor, math.sqrt(warmup / (warmup + step - self.warmup_steps)))


class WarmupLinear(Warmup):
    """Linear warm-up, then linear decay to `floor`."""

    def decay(self, share: float) -> float:
        return 1 - share


class WarmupCosine(Warmup):
    """Linear warm-up, then cosine decay to `floor` (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983)."""

    def decay(self, share: float) -> float:
        return (1 + math.cos(math.pi * share)) / 2
