"""Evaluate and save other weights than the training continues from: averages of the training weights.

Validations, benchmarks and checkpoints use the evaluation weights. Checkpoints also store the training weights under
`training_weights`, so that a resumed run continues exactly. Training is the same however often the run is validated.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from litpeft.adapters.base import trainable
from litpeft.optim.build import is_schedule_free
from litpeft.training.sharding import full_tensors, reshard

TRAINING_WEIGHTS = "training_weights"


class EvaluationWeights(Callback):
    """Base class: exchanges the trainable tensors of the task during evaluations. Sub-classes say for which tensors."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] | None = None  # the training weights, while the task has the evaluation weights
        self._evaluations = 0  # evaluations in progress: the final benchmarks run inside of another evaluation

    def has_weights(self, trainer: Trainer) -> bool:
        """Return whether there are evaluation weights that differ from the training weights."""
        raise NotImplementedError

    def use(self, trainer: Trainer, parameters: dict[str, Tensor]) -> None:
        """Write the evaluation weights into the trainable parameters."""
        raise NotImplementedError

    def stop_using(self, trainer: Trainer) -> None:
        """Called before the training weights are written back."""

    @torch.no_grad()
    def enter(self, trainer: Trainer, task: LightningModule) -> None:
        """Give the task the evaluation weights."""
        self._evaluations += 1
        if self._kept is None and self.has_weights(trainer):
            reshard(task.backbone)
            parameters = trainable(task.backbone)
            self._kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            self.use(trainer, parameters)

    @torch.no_grad()
    def leave(self, trainer: Trainer, task: LightningModule) -> None:
        """Give the task the training weights back, bit by bit, after the outermost evaluation."""
        self._evaluations -= 1
        if self._kept is not None and self._evaluations == 0:
            reshard(task.backbone)
            self.stop_using(trainer)
            for name, parameter in trainable(task.backbone).items():
                parameter.copy_(self._kept[name])
            self._kept = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.enter(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.leave(trainer, pl_module)

    def on_benchmark_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.enter(trainer, pl_module)

    def on_benchmark_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.leave(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the evaluation weights in the task: the final benchmarks follow."""
        self.enter(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the evaluation weights as the trained tensors, and the training weights beside them."""
        if trainer.state.fn != "fit" or not self.has_weights(trainer):
            return
        if self._kept is not None:  # within a validation, or after the last step
            # with what else the adapter saves, such as the importance of the ranks of AdaLoRA
            checkpoint[TRAINING_WEIGHTS] = checkpoint["state_dict"] | full_tensors(self._kept)
            return
        checkpoint[TRAINING_WEIGHTS] = checkpoint["state_dict"]  # these are the parameters themselves, not copies
        self.enter(trainer, pl_module)
        weights = pl_module.state_dict()
        checkpoint["state_dict"] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
        self.leave(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and TRAINING_WEIGHTS in checkpoint:
            pl_module.load_state_dict(checkpoint[TRAINING_WEIGHTS])


class ScheduleFreeWeights(EvaluationWeights):
    """The evaluation weights of schedule-free optimizers, which `optimizer.eval()` writes into the parameters.

    Does nothing with other optimizers. `optimizer.train()` writes the training weights back, but rounded, so that an
    additional validation or checkpoint would change the run; therefore this class keeps the exact training weights.
    """

    def has_weights(self, trainer: Trainer) -> bool:
        return bool(trainer.optimizers) and is_schedule_free(trainer.optimizers[0])

    def use(self, trainer: Trainer, parameters: dict[str, Tensor]) -> None:
        trainer.optimizers[0].eval()

    def stop_using(self, trainer: Trainer) -> None:
        trainer.optimizers[0].train()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return to the training mode without a change of the weights: the checkpoint may be of a finished run."""
        if self.has_weights(trainer):
            self._kept, self._evaluations = {n: p.clone() for n, p in trainable(pl_module.backbone).items()}, 1
            self.leave(trainer, pl_module)
