"""Write the run folder: the resolved configuration, the record, and the HParams tab of TensorBoard."""

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
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from litpeft.callbacks.across_processes import PEAKS, most, of_all
from litpeft.callbacks.benchmark import BenchmarkEvaluation
from litpeft.callbacks.event_files import curve_sizes, cut_curves
from litpeft.callbacks.run_description import built, setting
from litpeft.errors import UserError
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.benchmark_results import final_evaluation, scores
from litpeft.runs.folder import CONFIG, TRACEBACK, newest_checkpoint
from litpeft.runs.record import FIELDS, as_json, named, new_record, write_record
from litpeft.training import failure_messages, processes

HPARAMS = ("adapter", "data", "model_name", "optimizer", "scheduler", "seed", "precision", "effective_batch_size")
METRICS = (
    *("val_loss", "val_accuracy", "val_f1", "trainable_params", "adapter_bytes", "model_bytes"),
    *("peak_allocated_bytes", "peak_rss_bytes", "train_seconds", "train_tokens_per_second", "step_seconds_p50"),
)


class RunRecorder(Checkpoint):  # of Lightning's kind, which it calls last: after our Checkpoint has saved
    """Write `config.yaml` and `record.json` into `trainer.default_root_dir`, also when the run fails or is interrupted.

    Args:
        config: the resolved configuration, kept with the record.
        experiment: name under which runs are grouped.
        run_name: what this run varies.
        stale: files of an earlier run in the folder, removed when this one has loaded all and trains.
        resumed: the record of the run that goes on, or that is tested; nothing is written before it has been loaded.
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
        self._was_done = False
        self._curves: dict[str, int] = {}  # of the run that is resumed, see litpeft.callbacks.event_files
        self._begun = time.perf_counter()
        self._started = False  # whether the folder is ours to write into

    def announce(self, trainer: Trainer) -> None:
        """In a new folder, before loggers write there: killed in between, it would be taken for somebody else's."""
        if trainer.is_global_zero and not self._stale and not self._resumed:
            write_record(Path(trainer.default_root_dir), self.record)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._begun = time.perf_counter()
        if not self._stale and not self._resumed:
            self._begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now is an earlier run in the folder given up: whatever could not be loaded has left it as it was."""
        if self._resumed and (earlier := self._resumed["data_summary"]):
            now = trainer.datamodule.describe()["tables"]
            if any(earlier["tables"].get(split, facts) != facts for split, facts in now.items()):
                raise UserError(
                    "--resume: the data files are not those that the run was begun with; give another --run_dir."
                )
        if not self._started:
            self._begin(trainer, pl_module)
        if self._resumed:
            self._cut_curves(trainer)
        self.record |= built(trainer, pl_module)
        self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._gather(trainer)
            self._note_validation(trainer)

    def on_benchmark_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """What took long to measure is not lost with the process."""
        own = [callback.measured() for callback in trainer.callbacks if isinstance(callback, BenchmarkEvaluation)]
        self.record |= own[0]
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not in `on_train_end`: the last checkpoint is written there."""
        if self._started:
            self._gather(trainer)
        elif not self._was_done:
            raise UserError(f"nothing was trained: the run stands at step {trainer.global_step} already.")
        else:  # it was killed between its last checkpoint and here
            self._cut_curves(trainer)
        self._close(trainer, "ok", None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What is known goes with the checkpoint: a resumed run knows neither less nor what came after."""
        if trainer.state.fn == "fit":
            self._gather(trainer)
            checkpoint["record"] = as_json(self.record)
            checkpoint["curves"] = curve_sizes(Path(trainer.default_root_dir))

    def on_saved(self, trainer: Trainer) -> None:
        """So that a run that is killed leaves what was known when it was last saved."""
        self._write(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._resumed and trainer.state.fn == "fit":
            now = {name: self.record[name] for name in ("config", "status", "error")}
            saved = json.loads(checkpoint["record"])
            self._was_done = self._resumed["status"] != "ok" and _limits(saved) == _limits(now)  # if nothing is left
            self.record = saved | now
            self._curves = checkpoint["curves"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        status, sentence = _status(exception)
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            failure_messages.leave(sentence)
            return
        if (
            status == "failed"
            and not isinstance(exception, UserError)
            and (told := failure_messages.of_others(exception))
        ):
            sentence = exception.sentence = told
        if not self._started and (self._stale or self._resumed):
            _remove_curves(trainer)  # of this run, which never began: the folder stays as it was
            return
        if not self._started:  # the data could not be read, say
            self._begin(trainer, pl_module)
        self._gather(trainer, alone=True)
        try:
            self._close(trainer, status, sentence)
        except (OSError, ValueError):  # of a full disk, say, and TensorBoard's word for it; the first error is told
            return
        folder = Path(trainer.default_root_dir)
        if status == "failed" and not isinstance(exception, UserError):
            lines = traceback.format_exception(exception)
            write_atomically(folder / TRACEBACK, "".join(lines))
            exception.traceback_file = folder / TRACEBACK  # the command line names it
        if status == "interrupted":
            newest = newest_checkpoint(folder)
            way = (
                f"the same command with --resume goes on from {newest.name}"
                if newest
                else "no checkpoint was written yet"
            )
            print(f"litpeft: interrupted at step {trainer.global_step}; {way}.", file=sys.stderr)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test figures to the record of the run that was tested, and what rows they are of."""
        folder = Path(trainer.default_root_dir)
        if self._resumed is None or not trainer.is_global_zero:
            return
        told, earlier = trainer.datamodule.describe(), self._resumed["data_summary"] or {}
        summary = earlier | {kind: earlier.get(kind, {}) | told[kind] for kind in ("rows", "tables")}
        write_record(folder, self._resumed | _metrics(trainer, "test_") | {"data_summary": summary})

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the folder: what an earlier run left is removed, and from now on it tells of this one."""
        self._started = True
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._stale:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.record |= {name: None for name in FIELDS if name.startswith("test_")}  # of earlier weights
        begun = self.record["started_at"] or datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.record |= {"started_at": begun} | setting(trainer, pl_module)
        write_record(folder, self.record)
        if self.record["config"] is not None:
            write_atomically(folder / CONFIG, yaml.safe_dump(self.record["config"], sort_keys=False))

    def _gather(self, trainer: Trainer, alone: bool = False) -> None:
        """What is known so far: metrics of the curves, and what the other callbacks have measured.

        Args:
            trainer: of the run.
            alone: the other processes are not asked, as they may have ended.
        """
        before = {name: self.record[name] for name in PEAKS}
        train_loss = trainer.callback_metrics.get("train_loss_epoch")
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.record |= _metrics(trainer, "val_") | {
            "train_loss": float(train_loss) if train_loss is not None else None,
            "steps": trainer.global_step,
            "epochs": batches / trainer.datamodule.num_train_batches if batches else 0.0,
            "wall_seconds": time.perf_counter() - self._begun,
        }
        for callback in trainer.callbacks:
            self.record |= callback.measured() if hasattr(callback, "measured") else {}
        if processes.count() > 1 and alone:
            self.record |= {name: most((peak, self.record[name])) for name, peak in before.items()}
            self.record |= {"energy_joules": None, "energy_joules_by_source": None}
        elif processes.count() > 1:
            self.record |= of_all(self.record, trainer.local_rank)

    def _note_validation(self, trainer: Trainer) -> None:
        """Those of now: with `checkpoint.keep best`, the record's own are those of the best weights."""
        found = {name: self.record[name] for name in ("epochs", "train_seconds")} | _metrics(trainer, "val_")
        others = found.pop("other_metrics", {})
        told = {"step": self.record["steps"]} | {name: value for name, value in found.items() if value is not None}
        self.record["validations"] = [*(self.record["validations"] or []), told | others]

    def _close(self, trainer: Trainer, status: str, error: str | None) -> None:
        """The record last: it says `ok` when all else is there."""
        if not trainer.is_global_zero:
            return
        options = {f"adapter.{k}": v for k, v in (self.record["adapter_options"] or {}).items()}
        settings = {name: self.record[name] for name in HPARAMS} | options
        first = (self.record["optimizer_settings"] or [{}])[0]
        settings["lr"] = first.get("initial_lr", first.get("lr"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                metrics = {name: self.record[name] for name in METRICS if self.record[name] is not None}
                metrics |= scores(final_evaluation(self.record) or {"results": {}})
                shown = {name: _plain(value) for name, value in settings.items() if value is not None}
                logger.log_hyperparams(shown, metrics, step=trainer.global_step)
                logger.experiment.flush()
        self.record |= {"status": status, "error": error}
        write_record(Path(trainer.default_root_dir), self.record)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_record(Path(trainer.default_root_dir), self.record)

    def _cut_curves(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            cut_curves(Path(trainer.default_root_dir), self._curves, _event_file(trainer))


def _limits(record: dict[str, Any]) -> list[Any]:
    """How long the run of a record was to be."""
    trainer = (record["config"] or {}).get("trainer", {})
    return [trainer.get(name) for name in ("max_epochs", "max_steps", "max_time")]


def _event_file(trainer: Trainer) -> Path | None:
    """The one that is being written."""
    writers = [each.experiment.file_writer for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
    return Path(writers[0].event_writer._file_name) if writers and writers[0] else None


def _remove_curves(trainer: Trainer) -> None:
    """The file that TensorBoard has made for this process."""
    path = _event_file(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
    if path is not None:
        path.unlink(missing_ok=True)


def _metrics(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """The metrics of one kind, by the record's names."""
    return named({name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)})


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)


def _status(exception: BaseException) -> tuple[str, str]:
    """(status, sentence) of a run that ended with this exception."""
    sentence = " ".join(str(exception).split()) or type(exception).__name__
    if isinstance(exception, SIGTERMException) and exception.code:
        return "interrupted", signal.Signals(exception.code - 128).name
    if isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
        return "interrupted", f"{type(exception).__name__}"
    if is_out_of_memory(exception):
        return "oom", sentence
    return "failed", sentence


def is_out_of_memory(exception: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the host (whose allocator raises a plain RuntimeError)."""
    return isinstance(exception, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(exception)
