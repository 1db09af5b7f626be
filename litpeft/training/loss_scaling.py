"""Dynamic loss scaling for fp16, whose smallest numbers would lose small gradients (Micikevicius et al. 2018,
https://arxiv.org/abs/1710.03740, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import Precision
from torch import Tensor
from torch.optim import Optimizer


class LossScaling(Precision):
    """Multiply the loss by a scale before backward, and divide the gradients by it before clipping.

    A step whose gradients have an infinity or NaN is skipped, and the scale is halved; after 2,000 steps without one
    the scale is doubled. Lightning's plugin for fp16 would also turn on autocast, and refuse clipping with fused
    optimizers.

    Args:
        device: device type.
        first_scale: scale of the first step.
    """

    def __init__(self, device: str, first_scale: float) -> None:
        self.scaler = torch.amp.GradScaler(device, init_scale=first_scale)
        self._skipped: Tensor | int = 0  # on the device: reading it would wait for the GPU

    @property
    def skipped_steps(self) -> int:
        """The number of skipped optimizer steps of the run."""
        return int(self._skipped)

    def pre_backward(self, tensor: Tensor, module: LightningModule) -> Tensor:
        return super().pre_backward(self.scaler.scale(tensor), module)

    def optimizer_step(
        self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **options: Any
    ) -> Any:
        closure()
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)  # hooks and clipping see unscaled gradients
        before = self.scaler._get_scale_async().clone()
        result = self.scaler.step(optimizer, **options)  # a fused optimizer skips on the GPU, others read one number
        self.scaler.update()
        self._skipped = self._skipped + (self.scaler._get_scale_async() < before)
        return result

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict() | {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipped = state_dict["skipped_steps"]
        self.scaler.load_state_dict({name: value for name, value in state_dict.items() if name != "skipped_steps"})
