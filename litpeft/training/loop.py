"""Lightning's loops, with a place where all of a step is done: there a checkpoint is saved, and a resumed run goes on.

Lightning's own hooks come in the midst of it: `on_train_batch_end` before the step is logged and counted, the one after
validation before a plateau's schedule has seen it, the one after an epoch before its means are logged. What is saved
there lacks them, and rules about what a resumed run repeats cannot tell them all apart (as seen with Lightning 2.6.6).
"""

from __future__ import annotations

from typing import Any, Protocol

from lightning import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


class Keeper(Protocol):
    """Who saves between the steps."""

    validation_due: bool  # what was saved lies before the validation of its last step
    epoch_due: bool  # the run was to stop after its last step, whose epoch may not have been ended

    def between_steps(self, trainer: Trainer) -> None:
        """All of an optimizer step is done, and of its epoch if it was the last; nothing is accumulated."""

    def restore(self) -> None:
        """The next batch is about to be asked for."""


def save_between_steps(trainer: Trainer, keeper: Keeper) -> None:
    """Give a trainer that has not begun these loops."""
    old = trainer.fit_loop
    trainer.fit_loop = Epochs(trainer, min_epochs=old.min_epochs, max_epochs=old.max_epochs)
    trainer.fit_loop.epoch_loop = Steps(trainer, min_steps=old.min_steps, max_steps=old.max_steps)
    trainer.fit_loop.keeper = trainer.fit_loop.epoch_loop.keeper = keeper


class Steps(_TrainingEpochLoop):
    """The batches of an epoch."""

    keeper: Keeper

    def reset(self) -> None:
        if self._num_ready_batches_reached() and not self.keeper.validation_due:
            self.restarting = False  # saved after an epoch: without a limit of epochs it would be ended once more
        super().reset()

    @property
    def done(self) -> bool:
        return not self.keeper.validation_due and super().done

    def advance(self, data_fetcher: Any) -> None:
        self.restarting = False  # of the last step nothing is left to do
        self.keeper.restore()
        if self.keeper.validation_due:  # but this, which follows
            self.keeper.validation_due = False
            begun = self.val_loop.batch_progress  # batches of it that count again
            for name, count in vars(begun.current).items():
                setattr(begun.total, name, getattr(begun.total, name) - count)
            return
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        super().on_advance_end(data_fetcher)
        if not self._num_ready_batches_reached() and not self._should_accumulate():
            self.keeper.between_steps(self.trainer)


class Epochs(_FitLoop):
    """The epochs of a run."""

    keeper: Keeper

    @property
    def done(self) -> bool:
        within_epoch = self.keeper.epoch_due and not self.epoch_loop._num_ready_batches_reached()
        return not (within_epoch or self.keeper.validation_due) and super().done

    def _load_combined_loader_states(self) -> None:
        """Also of a run saved after an epoch: workers ask for batches before they are told which epoch it is."""
        if self._combined_loader is not None and self._combined_loader_states_to_load:
            self._combined_loader._load_state_dicts(self._combined_loader_states_to_load)
            self._combined_loader_states_to_load = []

    def on_advance_end(self) -> None:
        self.keeper.epoch_due = False
        self._restarting = False  # the epoch is as any other, also for a plateau's schedule
        super().on_advance_end()
        if self.epoch_loop._num_ready_batches_reached():
            self.keeper.between_steps(self.trainer)
