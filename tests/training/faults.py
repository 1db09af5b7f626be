"""Callbacks that cause a fault in one of several processes."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer

from tests.faults import Poison, Signal


class SignalTo(Signal):
    """Like `Signal`, but only in the process of this rank."""

    def __init__(self, rank: int, number: int, batch: int, where: str = "train") -> None:
        super().__init__(number, batch, where)
        self.rank = rank

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        if trainer.global_rank == self.rank:
            super().on_train_batch_end(trainer, *others)

    def on_validation_start(self, trainer: Trainer, *others: Any) -> None:
        if trainer.global_rank == self.rank:
            super().on_validation_start(trainer, *others)


class PoisonIn(Poison):
    """Like `Poison`, but only in the process of this rank."""

    def __init__(self, rank: int, batch: int) -> None:
        super().__init__(batch)
        self.rank = rank

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == self.rank:
            super().on_fit_start(trainer, pl_module)


class FailIn(SignalTo):
    """Run out of memory in the process of this rank only."""

    def __init__(self, rank: int, batch: int) -> None:
        super().__init__(rank, 0, batch)

    def _send(self) -> None:
        raise MemoryError("no memory is left")
