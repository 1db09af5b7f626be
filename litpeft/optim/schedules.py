"""Learning-rate schedules, stepped once an optimizer step.

Classes, since the command line can give arguments to a class and not to a function. Each starts at
1/(warm-up + 1) of the learning rate, not at zero, so that the first step is not wasted.
"""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from litpeft.errors import UserError


class Warmup(LambdaLR):
    """A factor on every group's learning rate, so ratios between groups stay: a rise, then what `after` says.

    Args:
        optimizer: given by the task.
        warmup: below 1 a share of all steps, otherwise a number of steps.
        floor: share of the learning rate at which it ends.
        total_steps: optimizer steps of the whole run; filled in by the task.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.06, floor: float = 0.0, total_steps: int | None = None
    ) -> None:
        name = f"model.scheduler {type(self).__name__}"
        if total_steps is None:
            raise UserError(f"{name}: the run has no end; give model.scheduler.total_steps, or trainer.max_epochs.")
        if warmup < 0 or not 0 <= floor <= 1:
            raise UserError(
                f"{name}: warmup must not be negative and floor be in [0, 1], got warmup {warmup}, floor {floor}."
            )
        self.warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
        self.floor, self.total_steps = floor, total_steps
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        left = max(1, self.total_steps - self.warmup_steps)
        share = min(1.0, (step - self.warmup_steps) / left)  # 0 at the end of warm-up; 1 after the last step
        return self.floor + (1 - self.floor) * self.after(share)

    def state_dict(self) -> dict[str, Any]:
        """Where it is, not how long it is: a run that is resumed to go on longer has the new length."""
        return {k: v for k, v in super().state_dict().items() if k not in ("warmup_steps", "floor", "total_steps")}

    def after(self, share: float) -> float:
        """The factor, from 1 down to 0, at this share of the steps after warm-up."""
        raise NotImplementedError


class Constant(Warmup):
    """Stays as it is, after a rise where one is asked for.

    Args:
        optimizer: given by the task.
        warmup: below 1 a share of all steps, otherwise a number of steps.
        total_steps: optimizer steps of the whole run; filled in by the task.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(optimizer, warmup, 1.0, total_steps)

    def after(self, share: float) -> float:
        return 1.0


class WarmupInverseSqrt(Warmup):
    """Rises, then falls with the root of the step (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 3).

    At step t from `warmup` W on the factor is the root of W / t, but no less than `floor`; without a warm-up it is that
    of one step.
    """

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return super()._factor(step)
        rise = max(1, self.warmup_steps)
        return max(self.floor, math.sqrt(rise / (rise + step - self.warmup_steps)))


class WarmupLinear(Warmup):
    """Rises, then falls in a straight line to `floor`."""

    def after(self, share: float) -> float:
        return 1 - share


class WarmupCosine(Warmup):
    """Rises, then falls along half a cosine to `floor` (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983)."""

    def after(self, share: float) -> float:
        return (1 + math.cos(math.pi * share)) / 2
