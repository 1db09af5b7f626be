"""Mean losses of training and of evaluations, and the first training batch with a NaN or infinite loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from litpeft.errors import UserError
from litpeft.training import processes


def mean_over_ranks(loss: Tensor, weight: int) -> tuple[Tensor, Tensor | int]:
    """Return the mean loss over all ranks and the sum of their weights.

    Args:
        loss: mean loss of this rank, a scalar.
        weight: weight of this rank.
    """
    if processes.world_size() == 1:
        return loss, weight
    rank_weight = torch.full_like(loss, weight, dtype=torch.float64)
    loss_sum, total_weight = processes.sum_over_ranks(torch.stack([loss * rank_weight, rank_weight]))
    return (loss_sum / total_weight.clamp(min=1)).float(), total_weight


def new_mean_loss() -> MeanMetric:
    """Return the weighted mean of an evaluation's losses; NaN if the loss of a batch is NaN."""
    return MeanMetric(nan_strategy=math.nan)  # by default, torchmetrics would leave such batches out


class TrainLoss:
    """Weighted mean of the training loss, saved in checkpoints so that a resumed epoch averages all its batches.

    Updates stay on the device: only `mean` and `first_non_finite` wait for the GPU.
    """

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Start a new epoch's mean; keep the first NaN or infinite loss."""
        zero = torch.zeros((), dtype=torch.float64)
        first = {name: self.state.get(name, torch.tensor(value)) for name, value in (("batch", -1), ("loss", 0.0))}
        self.state = first | {"sum": zero, "weight": zero}

    def update(self, loss: Tensor, weight: Tensor | int, batch: int) -> None:
        """Add a batch.

        Args:
            loss: mean loss of the batch, a scalar.
            weight: weight of the batch in the epoch's mean: its number of rows or tokens.
            batch: number of the batch in the run, from 0.
        """
        loss = loss.detach()
        state = {name: value.to(loss.device) for name, value in self.state.items()}
        first = ~torch.isfinite(loss) & (state["batch"] < 0)
        self.state = {
            "batch": torch.where(first, batch, state["batch"]),
            "loss": torch.where(first, loss.float(), state["loss"]),
            "sum": state["sum"] + loss.double() * weight,
            "weight": state["weight"] + weight,
        }

    def mean(self) -> Tensor:
        """Return the mean loss of the epoch so far, an fp32 scalar."""
        return (self.state["sum"] / self.state["weight"]).float()

    def first_non_finite(self) -> tuple[int, float] | None:
        """Return the first batch (numbered from 0 in the run) with a NaN or infinite loss, and that loss; else None."""
        batch = int(self.state["batch"])
        return None if batch < 0 else (batch, float(self.state["loss"]))

    def state_dict(self) -> dict[str, Any]:
        return {name: value.cpu() for name, value in self.state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def non_finite_loss(losses: TrainLoss, trainer: Trainer, fp16: bool = False) -> UserError:
    """Return the error about the first NaN or infinite loss: its step and batch, and what to try.

    Args:
        losses: training losses, with a NaN or infinite loss among them.
        trainer: the trainer of the run, at the step.
        fp16: whether the compute dtype is fp16.
    """
    number, loss = losses.first_non_finite()
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    place = f"in batch {number} of the run (learning rate {lr})"
    if math.isfinite(batches := trainer.num_training_batches):  # infinite: a dataloader without a length
        epoch, batch = divmod(number, batches)
        accumulated = trainer.accumulate_grad_batches
        step = epoch * math.ceil(batches / accumulated) + batch // accumulated
        place = f"at step {step} (batch {batch} of epoch {epoch}, learning rate {lr})"
    wider = "fp16 ends at 65,504: give --model.dtype bf16 or fp32, or " if fp16 else ""
    return UserError(
        f"the training loss is {loss} {place}; "
        f"{wider}try a smaller model.optimizer.lr, a longer warm-up, or trainer.gradient_clip_val 1.0."
    )
