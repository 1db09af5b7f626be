"""Lightning's weight averaging callbacks, applied to the trainable tensors only.

Lightning copies the whole task and averages all parameters and buffers, so it would copy the frozen base, round it, and
destroy 4-bit weights. (`StochasticWeightAveraging` even copies the task before `configure_model` has built the model,
and then averages nothing; seen with Lightning 2.6.6.)
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from litpeft.adapters.base import trainable
from litpeft.callbacks.evaluation_weights import TRAINING_WEIGHTS, EvaluationWeights
from litpeft.errors import UserError
from litpeft.optim.build import is_schedule_free
from litpeft.training.sharding import reshard, shard_like
from litpeft.training.strategies import FSDP2


class TrainableTensors(L.LightningModule):
    """The trainable parameters of a task, shared and not copied, as a module that Lightning's callbacks accept."""

    def __init__(self, task: LightningModule) -> None:
        super().__init__()
        parameters = trainable(task.backbone)
        self.names, self.tensors = list(parameters), nn.ParameterList(parameters.values())

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.tensors, strict=True))


class AveragedWeights(EvaluationWeights):
    """Averages the trainable tensors at the steps and with the formula of one of Lightning's averaging callbacks.

    From the first average on, validations, benchmarks and checkpoints use the averaged weights; before, and if the run
    ends before, they use the weights in training. Three differences from Lightning: the average that `WeightAveraging`
    makes at the end of an epoch is made before the validation of that epoch, so that validation and checkpoint agree;
    `StochasticWeightAveraging` also validates its average; and a resumed run continues its schedule exactly.
    As in Lightning, `StochasticWeightAveraging` averages the weights at the start of each epoch from
    `swa_epoch_start` on, so the weights after the last epoch are not part of the average.

    Args:
        rule: Lightning's callback, or a sub-class.
    """

    def __init__(self, rule: WeightAveraging | StochasticWeightAveraging) -> None:
        super().__init__()
        self.rule = rule
        self._by_epoch = isinstance(rule, StochasticWeightAveraging)
        self._tensors: TrainableTensors | None = None
        self._average: AveragedModel | TrainableTensors | None = None

    @property
    def state_key(self) -> str:
        """Return a key that differs between Lightning's callbacks, because a resumed run may have another one."""
        return f"{type(self).__name__} of {type(self.rule).__name__}"

    def _prepare(self, task: LightningModule) -> None:
        """Copy the trainable tensors, once; the copy becomes the average."""
        if self._average is None:
            reshard(task.backbone)
            self._tensors = TrainableTensors(task)
            own = {} if self._by_epoch else self.rule._kwargs
            self._average = copy.deepcopy(self._tensors) if self._by_epoch else AveragedModel(self._tensors, **own)

    def _averages(self) -> dict[str, Tensor]:
        return (self._average if self._by_epoch else self._average.module).by_name()

    def has_weights(self, trainer: Trainer) -> bool:
        return self._average is not None and self._count() > 0

    def _count(self) -> int:
        """Return how many weights were averaged."""
        if not self._by_epoch:
            return 0 if self._average is None else int(self._average.n_averaged)
        return self.rule._init_n_averaged if self.rule.n_averaged is None else int(self.rule.n_averaged)

    def use(self, trainer: Trainer, parameters: dict[str, Tensor]) -> None:
        for name, average in self._averages().items():
            parameters[name].copy_(average)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = f"trainer.callbacks {type(self.rule).__name__}"
        if isinstance(trainer.strategy, FSDP2) and self._by_epoch:
            raise UserError(
                f"{name} does not average sharded weights (trainer.strategy fsdp2); give WeightAveraging, or ddp."
            )
        if any(isinstance(module, _BatchNorm) for module in pl_module.modules()):
            raise UserError(
                f"{name}: the model has batch normalisation, and checkpoints hold no statistics of averaged weights; "
                "leave the callback out."
            )
        if is_schedule_free(trainer.optimizers[0]):
            raise UserError(f"{name}: model.optimizer already averages the weights; leave the callback out.")
        self._prepare(pl_module)
        self._average.to(self.rule._device or trainer.strategy.root_device)
        self.rule._average_model = self._average
        if self._by_epoch:
            self.rule.on_fit_start(trainer, self._tensors)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the schedule of `StochasticWeightAveraging` again in a run that is resumed within its epochs."""
        if self._by_epoch and self.rule._scheduler_state is not None:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._by_epoch:
            with warnings.catch_warnings():  # the schedule that is replaced may be stepped after each optimizer step
                warnings.filterwarnings("ignore", "SWA is currently only supported every epoch")
                self.rule.on_train_epoch_start(trainer, self._tensors)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._by_epoch:
            return
        self.rule.on_train_batch_end(trainer, self._tensors, outputs, batch, batch_idx)
        if trainer.is_last_batch:  # the validation of this epoch follows
            self.rule.on_train_epoch_end(trainer, self._tensors)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.has_weights(trainer) and trainer.is_global_zero:
            name = type(self.rule).__name__
            print(f"litpeft: warning: {name} has averaged nothing; the last weights are saved.", file=sys.stderr)
        super().on_train_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn == "fit" and TRAINING_WEIGHTS in checkpoint:
            self._prepare(pl_module)
            with torch.no_grad():
                for name, average in self._averages().items():
                    average.copy_(shard_like(checkpoint["state_dict"][name], average))

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule has counted; the averages are in the checkpoint's trained tensors."""
        if self._by_epoch:
            scheduler = self.rule._swa_scheduler
            return {
                "n_averaged": self._count(),
                "latest_update_epoch": self.rule._latest_update_epoch,
                "scheduler_state": None if scheduler is None else scheduler.state_dict(),
                "swa_epoch_start": self.rule._swa_epoch_start,  # a share of max_epochs is now an epoch
            }
        return {
            "n_averaged": self._count(),
            "latest_update_step": self.rule._latest_update_step,
            "latest_update_epoch": self.rule._latest_update_epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._by_epoch:
            self.rule._init_n_averaged = state_dict["n_averaged"]
            self.rule._scheduler_state = state_dict["scheduler_state"]
            self.rule._swa_epoch_start = state_dict["swa_epoch_start"]
        else:
            if self._average is not None:
                self._average.n_averaged.fill_(state_dict["n_averaged"])
            self.rule._latest_update_step = state_dict["latest_update_step"]
        self.rule._latest_update_epoch = state_dict["latest_update_epoch"]


def on_trainable_tensors(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks, with Lightning's weight averaging replaced by `AveragedWeights`.

    Raises:
        UserError: two callbacks average weights.
    """
    kinds = (WeightAveraging, StochasticWeightAveraging)
    found = [AveragedWeights(each) if isinstance(each, kinds) else each for each in callbacks]
    names = [type(each.rule).__name__ for each in found if isinstance(each, AveragedWeights)]
    if len(names) > 1:
        raise UserError(f"trainer.callbacks: {' and '.join(names)} both average the weights; leave one out.")
    return found
