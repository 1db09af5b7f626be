"""Equal weights for all rows of an effective batch, and of all batches with `data.batch_tokens`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from litpeft.training import processes


def mean_rows(trainer: Any) -> float | None:
    """Return the rows of a training batch of all processes, on average; None if all batches have as many."""
    return getattr(getattr(getattr(trainer, "train_dataloader", None), "sampler", None), "mean_rows", None)


def row_weighted(loss: Tensor, rows: int, all_rows: Tensor | int, trainer: Any) -> Tensor:
    """Scale a batch's mean loss so that the average over ranks gives each row of all ranks the same weight.

    With different numbers of rows per batch, each row also has the same weight as those of other batches: a batch with
    twice as many rows as the mean batch counts twice.

    Args:
        loss: mean loss of this rank's batch, a scalar.
        rows: rows of this rank's batch.
        all_rows: rows of the batches of all ranks.
        trainer: the trainer.
    """
    mean = mean_rows(trainer)
    if mean is None and processes.world_size() == 1:
        return loss
    return loss * (rows * processes.world_size() / (mean or all_rows))


class EffectiveBatch:
    """Gives the rows of accumulated batches the same weight: the last batch of an epoch may have fewer rows.

    Lightning divides each batch's mean loss by the number of accumulated batches, also in the last step of an epoch,
    which may have fewer batches. Does nothing with `data.batch_tokens`, where a step counts by its rows.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor | int] = []  # of each batch so far

    def weighted(self, loss: Tensor, rows: int, all_rows: Tensor | int, batch_idx: int, trainer: Any) -> Tensor:
        """Scale a batch's mean loss by its number of rows, as a share of those of the first accumulated batch.

        Args:
            loss: mean loss of this rank's batch, a scalar; see `row_weighted`.
            rows: rows of this rank's batch.
            all_rows: rows of the batches of all ranks.
            batch_idx: number of the batch in the epoch.
            trainer: the trainer.
        """
        loss, accumulated = row_weighted(loss, rows, all_rows, trainer), getattr(trainer, "accumulate_grad_batches", 1)
        if accumulated == 1 or mean_rows(trainer) is not None:
            return loss
        if batch_idx % accumulated == 0:
            self._rows.clear()
        self._rows.append(all_rows)
        return loss * (all_rows / self._rows[0])

    def scale(self, parameters: Iterable[nn.Parameter], trainer: Any) -> None:
        """Turn the accumulated gradients into those of the mean loss over the rows of the effective batch."""
        if not self._rows:
            return
        factor = float(trainer.accumulate_grad_batches * self._rows[0] / sum(self._rows))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, factor)
        self._rows.clear()


def share_of_mean_batch(rows: int, trainer: Any, device: torch.device) -> Tensor | float | None:
    """Return the rows of all ranks' batches as a share of the mean batch; None if all batches have as many."""
    if (mean := mean_rows(trainer)) is None:
        return None
    if processes.world_size() == 1:
        return rows / mean
    return processes.sum_over_ranks(torch.tensor(float(rows), dtype=torch.float64, device=device)) / mean
