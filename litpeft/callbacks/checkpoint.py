"""When a run is saved, which checkpoints are kept, and which state a resumed run restores."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import Timer

from litpeft.callbacks.stop_signals import StopSignals
from litpeft.errors import UserError
from litpeft.runs.atomic_write import remove_folder
from litpeft.runs.folder import CHECKPOINTS, checkpoints
from litpeft.runs.record import by_field
from litpeft.training import processes
from litpeft.training.outlets import send

SPARE = 2  # newest checkpoints kept during a run, so that one damaged checkpoint does not lose the run


class Checkpoint(LightningCheckpoint):
    """Save after each validation, at the end, on a stop signal, and optionally every n optimizer steps or minutes.

    During the run at least the two newest checkpoints are kept.

    Args:
        every_n_steps: also save every n optimizer steps.
        keep: what stays after the run. `last`: the weights after the last step. `best`: those with the best validation
            metric of the task, which the record then names, and the last ones, to resume from. `all`, or a number N:
            all checkpoints, or the N newest; the record names the last one.
        every_n_minutes: also save once this many minutes have passed since the last checkpoint.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        keep: Literal["last", "best", "all"] | int = "last",
        every_n_minutes: float | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}.")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise UserError(f"checkpoint.every_n_minutes must be more than 0, got {every_n_minutes}.")
        if isinstance(keep, int) and keep < 1:
            raise UserError(f"checkpoint.keep must be last, best, all or at least 1, got {keep}.")
        self.every_n_steps, self.every_n_minutes, self.keep = every_n_steps, every_n_minutes, keep
        self.last: str | None = None  # paths relative to the run folder
        self.best: str | None = None
        self.best_metrics: dict[str, float] = {}
        self.val_step: int | None = None
        self.validation_due, self.epoch_due = False, False  # read by litpeft.training.loop
        self.stop = StopSignals()
        self._monitor: tuple[str, str] = ("val_loss", "min")
        self._due = False  # a validation has run since the last checkpoint
        self._rng: dict[str, Any] | None = None  # random states of the resumed run
        self._metrics: dict[str, torch.Tensor] = {}
        self._saved_at = 0.0  # seconds of the clock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._monitor = pl_module.monitor  # known after the task's own setup
        if self.keep == "best" and not trainer.enable_validation:
            raise UserError("checkpoint.keep best needs validation; leave out trainer.limit_val_batches 0.")
        if trainer.global_step:
            self.last = _name(trainer.global_step)  # this checkpoint already exists
        trainer.callback_metrics.update(self._metrics)
        self._saved_at = time.monotonic()
        self.stop.listen()
        if trainer.received_sigterm:  # received during loading; Lightning would stop in the middle of the first step
            self.stop.received = signal.SIGTERM
            raise self.stop.exception()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """On a stop signal, save and stop at once; the validation is repeated after the resume."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.stop.agree(trainer.strategy.root_device)
        if self.stop.received and not trainer.fit_loop.epoch_loop._should_accumulate():
            self.validation_due = True
            self._save(trainer)
            raise self.stop.exception()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.val_step, self._due = trainer.global_step, True
        if self.keep == "best" and trainer.fit_loop.epoch_loop._should_accumulate():
            raise UserError(
                "checkpoint.keep best: trainer.val_check_interval must be a multiple of accumulate_grad_batches."
            )
        metric, mode = self._monitor
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        if self.keep == "best" and metric in metrics:
            sign = 1 if mode == "max" else -1
            best = self.best_metrics.get(metric, math.nan)
            if math.isnan(best) or sign * metrics[metric] > sign * best:  # a correlation of equal values is NaN
                self.best, self.best_metrics = _name(self.val_step), metrics | {"val_step": self.val_step}

    def between_steps(self, trainer: Trainer) -> None:
        """Save if a checkpoint is due and stop on a signal; litpeft.training.loop calls this after each step."""
        self.stop.agree(trainer.strategy.root_device)
        requested = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early  # not before min_epochs and min_steps
        if self._due or requested or self._minutes_passed(trainer) or stops or self.stop.received:
            self._save(trainer)
        if self.stop.received:
            raise self.stop.exception()

    def _minutes_passed(self, trainer: Trainer) -> bool:
        """Return whether a checkpoint is due by the clock of any process."""
        if self.every_n_minutes is None:
            return False
        due = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return bool(processes.max_over_ranks(int(due), trainer.strategy.root_device))

    def restore(self) -> None:
        """Restore the random states just before the first batch, because setup code may draw random numbers."""
        if self._rng is not None:
            _set_rng_states(self._rng)
            self._rng = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.forget()
        if self.last != _name(trainer.global_step):
            self._save(trainer)
        self._remove(trainer, least=1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop.forget()

    def _save(self, trainer: Trainer) -> None:
        """Save, then remove old checkpoints."""
        send(trainer.loggers, "flush")  # a resumed run does not log earlier steps again
        before, self.last, self._due = self.last, _name(trainer.global_step), False
        try:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / self.last)
        except BaseException:  # the disk is full: the record must not name a missing checkpoint
            self.last = before
            raise
        for callback in trainer.callbacks:
            if hasattr(callback, "on_saved"):
                callback.on_saved(trainer)
        self._saved_at = time.monotonic()
        self._remove(trainer, SPARE)

    def _remove(self, trainer: Trainer, least: int) -> None:
        """Remove all checkpoints but the newest ones, at least `least`, and the best one."""
        root = Path(trainer.default_root_dir)
        kept = max(least, self.keep) if isinstance(self.keep, int) else least
        if trainer.is_global_zero and self.keep != "all":
            for old in checkpoints(root)[:-kept]:
                if f"{CHECKPOINTS}/{old.name}" not in (self.last, self.best):
                    remove_folder(old)

    def measured(self) -> dict[str, Any]:
        """Return record fields; with `keep: best`, the metrics of the best weights replace the last ones."""
        if self.keep == "best" and self.best:
            return {"checkpoint": self.best, "selection": f"best {self._monitor[0]}"} | by_field(self.best_metrics)
        return {"checkpoint": self.last, "selection": "last", "val_step": self.val_step}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the metrics: schedules, early stopping and the record read metrics of earlier validations."""
        checkpoint["metrics"] = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        checkpoint["stopping"] = _limits(trainer) if trainer.should_stop else None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._metrics = checkpoint["metrics"]
        stopping = checkpoint["stopping"]  # checkpoints of older versions lack max_time
        if stopping and stopping == _limits(trainer)[: len(stopping)]:  # the limits were not raised
            trainer.should_stop = self.epoch_due = True

    def state_dict(self) -> dict[str, Any]:
        states = _collect_rng_states(include_cuda=torch.cuda.is_available())
        name, keys, *rest = states["numpy"]
        states["numpy"] = [
            name,
            torch.from_numpy(keys.astype("int64")),
            *rest,
        ]  # torch.load(weights_only=True) cannot read NumPy arrays
        own = ("best", "best_metrics", "val_step", "validation_due")
        return processes.state_of_all_ranks({name: getattr(self, name) for name in own} | {"rng": states})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = processes.state_of_this_rank(state_dict)
        states = state_dict.pop("rng")
        name, keys, *rest = states["numpy"]
        self._rng = states | {"numpy": (name, keys.numpy().astype("uint32"), *rest)}
        vars(self).update(state_dict)


def _name(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:06d}"


def _limits(trainer: Trainer) -> list[float | None]:
    """Return the limits on the length of a run: epochs, steps and seconds."""
    times = [timer._duration for timer in trainer.callbacks if isinstance(timer, Timer)]
    return [trainer.max_epochs, trainer.max_steps, min((time for time in times if time is not None), default=None)]
