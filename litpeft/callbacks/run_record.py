"""Writing the run folder: the resolved configuration and the record, which the loggers get too."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from litpeft.callbacks.across_processes import PEAKS, combine, most
from litpeft.callbacks.benchmark import BenchmarkEvaluation
from litpeft.callbacks.event_files import curve_sizes, cut_curves, event_file, remove_event_file
from litpeft.callbacks.run_description import describe_model, describe_setup, print_notices, tell_if_not_validated
from litpeft.callbacks.sent_figures import send_figures, send_files, send_settings
from litpeft.errors import UserError
from litpeft.runs import curve_file
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.folder import CONFIG, TRACEBACK, newest_checkpoint, reached_limit
from litpeft.runs.record import as_json, by_field, new_record, with_metrics, write_record
from litpeft.training import failure_messages, processes


class RunRecorder(Checkpoint):  # Lightning calls callbacks of this class last, so Checkpoint has already saved
    """Write `config.yaml` and `record.json` into `trainer.default_root_dir`, also when the run fails or is interrupted.

    Args:
        config: the resolved configuration; saved in the record.
        experiment: name under which runs are grouped.
        run_name: name that says what this run varies.
        stale: files of an earlier run in the folder; removed once the new run has loaded everything and trains.
        resumed: record of the run that is resumed or tested; nothing is written before the run is loaded.
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        stale: Iterable[Path] = (),
        resumed: dict[str, Any] | None = None,
    ) -> None:
        self.record = resumed or new_record() | {"experiment": experiment, "run_name": run_name}
        self.record = self.record | {"config": config, "status": "interrupted", "error": None}
        self._stale, self._resumed = list(stale), resumed
        self._was_finished = False
        self._curves: dict[str, int] = {}  # sizes of the files with curves at the checkpoint that is resumed
        self._started_at = time.perf_counter()
        self._owns_folder = False  # whether this run may write into the folder

    def announce(self, trainer: Trainer) -> None:
        """Write the record into a new folder before loggers write there, which marks the folder as a litpeft run."""
        if trainer.is_global_zero and not self._stale and not self._resumed:
            write_record(Path(trainer.default_root_dir), self.record)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._started_at = time.perf_counter()
        if not self._stale and not self._resumed:
            self._take_folder(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace an earlier run in the folder only now, when everything has been loaded successfully."""
        if self._resumed and (earlier := self._resumed["data_summary"]):
            now, before = trainer.datamodule.describe()["tables"], earlier["tables"]
            if any(before.get(split, facts)["fingerprint"] != facts["fingerprint"] for split, facts in now.items()):
                changed = "the data, or how this version prepares them, changed after the run was started"
                raise UserError(f"--resume: {changed}; give another --run_dir.")
        if not self._owns_folder:
            self._take_folder(trainer, pl_module)
        if self._resumed:
            self._cut_curves(trainer)
        self.record |= describe_model(trainer, pl_module)
        print_notices(trainer, self.record)
        self._write(trainer)
        send_settings(trainer, self.record)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._gather(trainer)
            self._add_validation(trainer)

    def on_benchmark_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the scores at once, because they took long to compute."""
        measured = [each.measured() for each in trainer.callbacks if isinstance(each, BenchmarkEvaluation)]
        self.record |= measured[0]
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the record. (In `on_train_end` the last checkpoint is not written yet.)"""
        if self._owns_folder:
            self._gather(trainer)
        elif not self._was_finished:
            config = self.record["config"] or {}
            reached = reached_limit(config, trainer.global_step, self.record["epochs"])
            if reached is None and _time_is_over(trainer):
                reached = "trainer.max_time", config.get("trainer", {}).get("max_time")
            limit = f", the limit of {reached[0]} {reached[1]}; give a higher one to train on" if reached else ""
            raise UserError(f"nothing to train: the run is already at step {trainer.global_step}{limit}.")
        else:  # the run was killed between its last checkpoint and here
            self._cut_curves(trainer)
        tell_if_not_validated(trainer, self.record)
        self._close(trainer, "ok", None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the record in the checkpoint, so that a resumed run continues from the record at this step."""
        if trainer.state.fn == "fit":
            self._gather(trainer)
            checkpoint["record"] = as_json(self.record)
            checkpoint["curves"] = curve_sizes(Path(trainer.default_root_dir))

    def on_saved(self, trainer: Trainer) -> None:
        """Write the record, so that a killed run leaves the figures of its last checkpoint."""
        self._write(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._resumed and trainer.state.fn == "fit":
            now = {name: self.record[name] for name in ("config", "status", "error")}
            saved = json.loads(checkpoint["record"])
            self._was_finished = self._resumed["status"] != "ok" and _limits(saved) == _limits(now)
            self.record = saved | now
            self._curves = checkpoint["curves"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        status, message = _status(exception)
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            failure_messages.publish(message)
            return
        if (
            status == "failed"
            and not isinstance(exception, UserError)
            and (other := failure_messages.from_other_ranks(exception))
        ):
            message = exception.sentence = other
        if not self._owns_folder and (self._stale or self._resumed):
            remove_event_file(trainer)  # this run never started: leave the folder as it was
            return
        if not self._owns_folder:  # failed before training, for example while reading the data
            self._take_folder(trainer, pl_module)
        self._gather(trainer, alone=True)
        try:
            self._close(trainer, status, message)
        except (OSError, ValueError):  # for example a full disk; the first error is reported
            return
        folder = Path(trainer.default_root_dir)
        if status == "failed" and not isinstance(exception, UserError):
            lines = traceback.format_exception(exception)
            write_atomically(folder / TRACEBACK, "".join(lines))
            exception.traceback_file = folder / TRACEBACK  # named in the error message
        if status == "interrupted":
            newest = newest_checkpoint(folder)
            hint = (
                f"to continue from {newest.name}, run the same command with --resume"
                if newest
                else "no checkpoint was written yet"
            )
            print(f"litpeft: interrupted at step {trainer.global_step}; {hint}.", file=sys.stderr)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test metrics and the description of the test rows to the record of the tested run."""
        folder = Path(trainer.default_root_dir)
        if self._resumed is None or not trainer.is_global_zero:
            return
        now, earlier = trainer.datamodule.describe(), self._resumed["data_summary"] or {}
        summary = earlier | {kind: earlier.get(kind, {}) | now[kind] for kind in ("rows", "tables")}
        tested = with_metrics(self._resumed, _named(trainer, "test_"))
        write_record(folder, tested | {"data_summary": summary})

    def _take_folder(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files of an earlier run and write the record and configuration of this run."""
        self._owns_folder = True
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._stale:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        started_at = self.record["started_at"] or datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.record |= {"started_at": started_at} | describe_setup(trainer, pl_module)
        write_record(folder, self.record)
        if self._resumed is None:
            curve_file.start(folder)
        if self.record["config"] is not None:
            write_atomically(folder / CONFIG, yaml.safe_dump(self.record["config"], sort_keys=False))

    def _gather(self, trainer: Trainer, alone: bool = False) -> None:
        """Update the record with the current metrics and the measurements of all callbacks.

        Args:
            trainer: the trainer.
            alone: do not communicate with other processes, which may have ended.
        """
        before = {name: self.record[name] for name in PEAKS}
        train_loss = trainer.callback_metrics.get("train_loss_epoch")
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.record |= _metrics(trainer, "val_") | {
            "train_loss": float(train_loss) if train_loss is not None else None,
            "steps": trainer.global_step,
            "skipped_steps": getattr(trainer.precision_plugin, "skipped_steps", None),
            "epochs": trainer.datamodule.epochs(batches),
            "wall_seconds": time.perf_counter() - self._started_at,
        }
        for part in (*trainer.callbacks, trainer.datamodule):
            self.record |= part.measured() if hasattr(part, "measured") else {}
        if processes.world_size() > 1 and alone:
            self.record |= {name: most((peak, self.record[name])) for name, peak in before.items()}
            self.record |= {"energy_joules": None, "energy_joules_by_source": None}
        elif processes.world_size() > 1:
            self.record |= combine(self.record, trainer.local_rank)

    def _add_validation(self, trainer: Trainer) -> None:
        """Append the current metrics to `validations` (with `checkpoint.keep best` the record has the best metrics)."""
        found = {name: self.record[name] for name in ("epochs", "train_seconds")} | _metrics(trainer, "val_")
        others = found.pop("other_metrics", {})
        row = {"step": self.record["steps"]} | {name: value for name, value in found.items() if value is not None}
        self.record["validations"] = [*(self.record["validations"] or []), row | others]

    def _close(self, trainer: Trainer, status: str, error: str | None) -> None:
        """Send the final figures, then write the final record: `ok` means that all other files exist."""
        if not trainer.is_global_zero:
            return
        send_figures(trainer, self.record)
        self.record |= {"status": status, "error": error}
        write_record(Path(trainer.default_root_dir), self.record)
        send_files(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_record(Path(trainer.default_root_dir), self.record)

    def _cut_curves(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            cut_curves(Path(trainer.default_root_dir), self._curves, event_file(trainer))


def _limits(record: dict[str, Any]) -> list[Any]:
    """Return the limits on the length of a run."""
    trainer = (record["config"] or {}).get("trainer", {})
    return [trainer.get(name) for name in ("max_epochs", "max_steps", "max_time")]


def _time_is_over(trainer: Trainer) -> bool:
    """Return whether the run has trained for as long as `trainer.max_time` allows."""
    left = [timer.time_remaining() for timer in trainer.callbacks if isinstance(timer, Timer)]
    return any(seconds is not None and seconds <= 0 for seconds in left)


def _metrics(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """Return the metrics with a prefix, by record field."""
    return by_field(_named(trainer, prefix))


def _named(trainer: Trainer, prefix: str) -> dict[str, float]:
    """Return the metrics with a prefix, by name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _status(exception: BaseException) -> tuple[str, str]:
    """Return the status and the message of a run that ended with this exception."""
    message = " ".join(str(exception).split()) or type(exception).__name__
    if isinstance(exception, SIGTERMException) and exception.code:
        return "interrupted", signal.Signals(exception.code - 128).name
    if isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
        return "interrupted", f"{type(exception).__name__}"
    if is_out_of_memory(exception):
        return "oom", message
    return "failed", message


def is_out_of_memory(exception: BaseException) -> bool:
    """Return whether GPU or host memory ran out (the host allocator raises a plain RuntimeError)."""
    return isinstance(exception, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(exception)
