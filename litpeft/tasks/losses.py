"""The training loss of an epoch so far, and the first batch in which it was no number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TrainLoss:
    """A weighted mean that is saved with the run, so that the mean of a resumed epoch is that of all its batches.

    Nothing asks the device for a number before `mean` or `first_bad` are read.
    """

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """An epoch begins. What was bad stays bad."""
        zero = torch.zeros((), dtype=torch.float64)
        bad = {name: self.state.get(name, torch.tensor(value)) for name, value in (("batch", -1), ("loss", 0.0))}
        self.state = bad | {"sum": zero, "weight": zero}

    def update(self, loss: Tensor, weight: Tensor | int, batch: int) -> None:
        """Add a batch.

        Args:
            loss: the mean over it.
            weight: by which that counts.
            batch: its place in the run, counted from 0.
        """
        loss = loss.detach()
        told = {name: value.to(loss.device) for name, value in self.state.items()}
        first = ~torch.isfinite(loss) & (told["batch"] < 0)
        self.state = {
            "batch": torch.where(first, batch, told["batch"]),
            "loss": torch.where(first, loss.float(), told["loss"]),
            "sum": told["sum"] + loss.double() * weight,
            "weight": told["weight"] + weight,
        }

    def mean(self) -> Tensor:
        """Over the epoch so far."""
        return (self.state["sum"] / self.state["weight"]).float()

    def first_bad(self) -> tuple[int, float] | None:
        """The first batch, counted from 0 in the run, whose loss was no finite number, and the loss."""
        batch = int(self.state["batch"])
        return None if batch < 0 else (batch, float(self.state["loss"]))

    def state_dict(self) -> dict[str, Any]:
        return {name: value.cpu() for name, value in self.state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)
