"""Equal weights for all rows where batches have different numbers of rows (`data.batch_tokens`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def share_of_mean_batch(rows: int, trainer: Any, device: torch.device) -> Tensor | float | None:
    """Return the rows of all ranks' batches as a share of the mean batch; None if all batches have as many."""
    if (mean := mean_rows(trainer)) is None:
        return None
    if processes.world_size() == 1:
        return rows / mean
    return processes.sum_over_ranks(torch.tensor(float(rows), dtype=torch.float64, device=device)) / mean
