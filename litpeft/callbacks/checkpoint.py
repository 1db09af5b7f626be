"""Checkpoints: the trainable tensors and the loop's state, in folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from safetensors.torch import load_file, save_file

from litpeft.errors import UserError
from litpeft.records import named
from litpeft.run_folder import CHECKPOINTS, STEP

TENSORS, LOOP = "trainable.safetensors", "loop.pt"


class FolderCheckpointIO(TorchCheckpointIO):
    """A checkpoint is a folder: `trainable.safetensors`, and `loop.pt`, the state of loops, optimizer and callbacks.

    It is written under another name, flushed to the disk and renamed: a killed process leaves no half of one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            rest = dict(checkpoint)
            tensors = {name: tensor.contiguous() for name, tensor in rest.pop("state_dict").items()}
            save_file(tensors, str(scratch / TENSORS), metadata={"format": "pt"})
            torch.save(rest, scratch / LOOP)
            for file in (scratch / TENSORS, scratch / LOOP):
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():  # the same step again; `newest_checkpoint` puts it back if we are killed between renames
                path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(path)
        if not (path / TENSORS).is_file() or not (path / LOOP).is_file():
            raise UserError(f"{path} is no checkpoint: it lacks {TENSORS} or {LOOP}.")
        try:
            rest = torch.load(path / LOOP, map_location=map_location or "cpu", weights_only=True)
            return rest | {"state_dict": load_file(path / TENSORS)}
        except Exception as error:  # what damaged bytes raise is of many kinds
            raise UserError(f"the checkpoint {path} cannot be read, it may be damaged: {error}.") from error

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


class Checkpoint(LightningCheckpoint):
    """Save after each validation, at the end, and every n optimizer steps if asked.

    Args:
        every_n_steps: also save every so many optimizer steps.
        keep: the weights that the run stands for. `last`: those after the last step. `best`: those with the best
            validation metric of the task; beside them the newest are kept to resume from.
    """

    def __init__(self, every_n_steps: int | None = None, keep: Literal["last", "best"] = "last") -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.last: str | None = None  # names within the run folder
        self.best: str | None = None
        self.best_metrics: dict[str, float] = {}
        self.val_step: int | None = None
        self._monitor: tuple[str, str] = ("val_loss", "min")
        self._due = False  # a validation lay within accumulated batches; saved when the optimizer has stepped
        self._rng: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._monitor = pl_module.monitor

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.keep == "best" and not trainer.enable_validation:
            raise UserError("checkpoint.keep best needs a validation; leave it out, or trainer.limit_val_batches 0.")
        if trainer.global_step:
            self.last = _name(trainer.global_step)  # a resumed run holds this step already

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._rng is not None:  # not earlier: making the loader's iterator draws random numbers
            _set_rng_states(self._rng)
            self._rng = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        asked = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if self._at_border(trainer) and (self._due or (asked and not self._validates_next(trainer))):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.val_step = trainer.global_step
        if self.keep == "best" and not self._at_border(trainer):
            raise UserError(
                "checkpoint.keep best: trainer.val_check_interval must be a multiple of accumulate_grad_batches."
            )
        metric, mode = self._monitor
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        if self.keep == "best" and metric in metrics:
            sign = 1 if mode == "max" else -1
            if not self.best_metrics or sign * metrics[metric] > sign * self.best_metrics[metric]:
                self.best, self.best_metrics = _name(self.val_step), metrics | {"val_step": self.val_step}
        self._due = not self._at_border(trainer)
        if not self._due:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last != _name(trainer.global_step):
            self._save(trainer)

    @staticmethod
    def _validates_next(trainer: Trainer) -> bool:
        """Whether a validation follows, after which is saved: a run resumed before it would go on without it."""
        loop = trainer.fit_loop
        last = trainer.global_step == trainer.max_steps  # the task asks for a stop only after this hook
        return trainer.enable_validation and (last or loop.epoch_loop._should_check_val_fx(loop._data_fetcher))

    @staticmethod
    def _at_border(trainer: Trainer) -> bool:
        """Whether no gradient is accumulated: it is not saved, and a run resumed there would lose it."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return progress.is_last_batch or progress.current.ready % trainer.accumulate_grad_batches == 0

    def _save(self, trainer: Trainer) -> None:
        """Save, and only then remove what is neither this one nor the best."""
        self.last, self._due = _name(trainer.global_step), False
        root = Path(trainer.default_root_dir)
        trainer.save_checkpoint(root / self.last)
        if trainer.is_global_zero:
            for old in (root / CHECKPOINTS).iterdir():
                if STEP.fullmatch(old.name) and f"{CHECKPOINTS}/{old.name}" not in (self.last, self.best):
                    shutil.rmtree(old, ignore_errors=True)

    def measured(self) -> dict[str, Any]:
        """Figures for the record: with `keep: best`, those of the best weights replace those of the last."""
        if self.keep == "best" and self.best:
            return {"checkpoint": self.best, "selection": f"best {self._monitor[0]}"} | named(self.best_metrics)
        return {"checkpoint": self.last, "selection": "last", "val_step": self.val_step}

    def state_dict(self) -> dict[str, Any]:
        states = _collect_rng_states(include_cuda=torch.cuda.is_available())
        name, keys, *rest = states["numpy"]
        states["numpy"] = [name, torch.from_numpy(keys.astype("int64")), *rest]  # weights_only reads no arrays
        return {"best": self.best, "best_metrics": self.best_metrics, "val_step": self.val_step, "rng": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_metrics = state_dict["best"], state_dict["best_metrics"]
        self.val_step = state_dict["val_step"]
        name, keys, *rest = state_dict["rng"]["numpy"]
        self._rng = state_dict["rng"] | {"numpy": (name, keys.numpy().astype("uint32"), *rest)}


def _name(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:06d}"
