"""Lightning's loops with a hook for checkpoints after an optimizer step is complete, where a resumed run continues.

Lightning's own hooks run too early: `on_train_batch_end` before the step is logged and counted, the hook after
validation before ReduceLROnPlateau sees the metric, the hook after an epoch before its means are logged. A checkpoint
saved there lacks this state, and fixed rules cannot say what a resumed run must repeat (seen with Lightning 2.6.6).
"""

from __future__ import annotations

from typing import Any, Protocol

from lightning import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from litpeft.training.host_memory import kept_from_step_to_step


class StepSaver(Protocol):
    """A callback that saves checkpoints between optimizer steps."""

    validation_due: bool  # the checkpoint was saved before the validation that follows its last step
    epoch_due: bool  # the run stopped after its last step, perhaps in the middle of an epoch

    def between_steps(self, trainer: Trainer) -> None:
        """Called when an optimizer step (and its epoch, after the last batch) is complete; no gradient is pending."""

    def restore(self) -> None:
        """Called before the next batch is requested."""


def save_between_steps(trainer: Trainer, saver: StepSaver) -> None:
    """Replace the loops of a trainer that has not started, so that they call `saver`."""
    old = trainer.fit_loop
    trainer.fit_loop = Epochs(trainer, min_epochs=old.min_epochs, max_epochs=old.max_epochs)
    trainer.fit_loop.epoch_loop = Steps(trainer, min_steps=old.min_steps, max_steps=old.max_steps)
    trainer.fit_loop.saver = trainer.fit_loop.epoch_loop.saver = saver


class Steps(_TrainingEpochLoop):
    """The batches of one epoch."""

    saver: StepSaver
    _stops = False  # whether the run ends after the step whose batches are being accumulated

    def reset(self) -> None:
        if self._num_ready_batches_reached() and not self.saver.validation_due:
            self.restarting = False  # saved after an epoch: without max_epochs, Lightning would end that epoch twice
        super().reset()

    @property
    def done(self) -> bool:
        return not self.saver.validation_due and super().done

    def advance(self, data_fetcher: Any) -> None:
        self.restarting = False  # the saved step is complete
        self.saver.restore()
        if self.saver.validation_due:  # only the validation after the saved step is missing
            self.saver.validation_due = False
            progress = self.val_loop.batch_progress  # its batches are validated and counted again
            for name, count in vars(progress.current).items():
                setattr(progress.total, name, getattr(progress.total, name) - count)
            return
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        self._postpone_stop()  # asked for in the batch, for example by max_time
        super().on_advance_end(data_fetcher)
        self._postpone_stop()  # in the validation, for example by early stopping
        if not self._num_ready_batches_reached() and not self._should_accumulate():
            self.saver.between_steps(self.trainer)

    def _postpone_stop(self) -> None:
        """End the run after an optimizer step, not between its batches: a checkpoint there lacks their gradients."""
        self._stops |= self.trainer.should_stop
        self.trainer.should_stop = self._stops and not self._should_accumulate()
        self._stops &= self._should_accumulate()


class Epochs(_FitLoop):
    """The epochs of a run."""

    saver: StepSaver

    @property
    def done(self) -> bool:
        within_epoch = self.saver.epoch_due and not self.epoch_loop._num_ready_batches_reached()
        return not (within_epoch or self.saver.validation_due) and super().done

    def run(self) -> None:
        """Train; or only validate, if the task's adapter trains nothing."""
        if getattr(getattr(self.trainer.lightning_module, "adapter", None), "trains", True):
            with kept_from_step_to_step(self.trainer.strategy.root_device.type):
                super().run()
            return
        self.setup_data()
        self.reset()
        self.on_run_start()
        if self.trainer.enable_validation:
            self.trainer.validating = True
            self.epoch_loop.val_loop.run()
            self.trainer.training = True
        self.on_run_end()

    def _load_combined_loader_states(self) -> None:
        """Load the state also when a run was saved after an epoch: workers request batches before `set_epoch`."""
        if self._combined_loader is not None and self._combined_loader_states_to_load:
            for loader, limit in zip(self._combined_loader.flattened, self._combined_loader.limits, strict=True):
                if hasattr(loader, "epoch_limit"):  # litpeft's loader
                    loader.epoch_limit = limit
            self._combined_loader._load_state_dicts(self._combined_loader_states_to_load)
            self._combined_loader_states_to_load = []

    def on_advance_end(self) -> None:
        self.saver.epoch_due = False
        self._restarting = False  # or Lightning would skip ReduceLROnPlateau for this epoch
        super().on_advance_end()
        if self.epoch_loop._num_ready_batches_reached():
            self.saver.between_steps(self.trainer)
