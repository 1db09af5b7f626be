"""Benchmarks of the model in training: before the first step, every n steps, and at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from litpeft.benchmarks import Evaluation, Options, Suite, check_options
from litpeft.callbacks.checkpoint_io import FolderCheckpointIO
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.folder import step_of
from litpeft.runs.record import as_json

ITEMS = "benchmark_items"  # subfolder of a run: one file per evaluation with the result of each item


class BenchmarkEvaluation(Checkpoint):  # Lightning calls callbacks of this class last, so the run is already saved
    """Evaluate benchmarks on the model in training, with the adapter active and quantised weights as they are.

    Training is not affected: random states and train/eval modes are restored, and time, memory and energy figures
    exclude the evaluation. Other callbacks are notified through `on_benchmark_start`, `on_benchmark_progress` and
    `on_benchmark_end` if they have these methods.

    Args:
        tasks: lm-eval tasks, groups or patterns (`litpeft_blimp_*`), `perplexity` or `held_out`; a list or a
            comma-separated string.
        before: also evaluate before the first step.
        every_n_steps: also evaluate every n optimizer steps.
        limit: number of items per task, from the start (default: all); `held_out` always uses all validation rows.
        num_fewshot: few-shot examples per item, for tasks that do not set the number.
        batch_size: batch size for tasks that lm-eval scores itself (default: as many rows as fit; 16 on a CPU).
        data_dir: folder with the data files of the litpeft_ tasks (default: the hub).
        text_file: text file for `perplexity`; empty lines separate paragraphs.
        max_seconds: time limit of one evaluation; the record names the tasks that were skipped.
        keep_items: save the result of each item in `benchmark_items` in the run folder. `litpeft compare` then tests
            differences over items as well as over seeds.
    """

    def __init__(
        self,
        tasks: Sequence[str] | str = (),
        before: bool = True,
        every_n_steps: int | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        batch_size: int | None = None,
        data_dir: str | None = None,
        text_file: str | None = None,
        max_seconds: float | None = None,
        keep_items: bool = False,
    ) -> None:
        names = tasks.split(",") if isinstance(tasks, str) else tasks
        self.options = Options(
            [name.strip() for name in names if name.strip()],
            limit,
            num_fewshot,
            batch_size,
            data_dir,
            text_file,
            max_seconds,
        )
        check_options(self.options, every_n_steps)
        self.before, self.every_n_steps, self.keep_items = before, every_n_steps, keep_items
        self.done: list[dict[str, Any]] = []  # finished evaluations, sorted by step, for the record
        self._suite: Suite | None = None
        self._logged: set[int] = set()  # steps whose scores are in the event files

    def resume_with(self, done: Sequence[dict[str, Any]] | None) -> None:
        """Take over the evaluations in the record of a resumed run: not repeated if the run has the same length."""
        self.done = list(done or ())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.options.tasks:
            self._suite = Suite(self.options, pl_module, trainer.datamodule)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _has_other_length(pl_module):  # other weights at the steps after the checkpoint: the schedule has changed
            self.done = [each for each in self.done if each["step"] <= trainer.global_step]
        self._logged = {each["step"] for each in self.done if each["step"] <= trainer.global_step}
        if trainer.global_step == 0 and self.before:
            self._evaluate(trainer, pl_module, 0)
        self.on_train_batch_end(trainer, pl_module)  # repeats an evaluation that was interrupted before this resume

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        last = step == trainer.max_steps  # the final evaluation may use another checkpoint
        if self.every_n_steps and step and step % self.every_n_steps == 0 and not last:
            self._evaluate(trainer, pl_module, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the final evaluation. (Before `on_fit_end`, Lightning moves the model to the CPU.)"""
        step = trainer.global_step
        chosen = next((c.best for c in trainer.callbacks if getattr(c, "keep", None) == "best"), None)
        if chosen is not None:  # the selected weights are not the last ones
            step = step_of(chosen)
        if self._suite is None:
            return
        if step != trainer.global_step and not self._known(step):
            state = FolderCheckpointIO().load_checkpoint(Path(trainer.default_root_dir) / chosen)["state_dict"]
            pl_module.load_state_dict(state)
        self._evaluate(trainer, pl_module, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeat a final evaluation that was killed: without a step left, `on_train_end` is not called."""
        if self._suite is not None and trainer.global_step not in self._logged:
            pl_module.to(trainer.strategy.root_device)
            self.on_train_end(trainer, pl_module)

    def _known(self, step: int) -> bool:
        return any(each["step"] == step for each in self.done)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Evaluate in the first process while the others wait."""
        if self._suite is None:
            return
        if trainer.is_global_zero:
            self._evaluate_here(trainer, pl_module, step)
        self._logged.add(step)
        trainer.strategy.barrier()

    def _evaluate_here(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        if self._known(step):  # evaluated before the run was killed; its event file was cut at the last checkpoint
            self._log_scores(trainer, step)
            return
        _call_hook(trainer, "on_benchmark_start", pl_module)
        evaluation = self._suite.evaluate(
            pl_module,
            trainer.datamodule,
            lambda *progress: _call_hook(trainer, "on_benchmark_progress", *progress),
            lambda message: print(f"litpeft: warning: {message}", file=sys.stderr),
        )
        self.done = sorted([*self.done, {"step": step} | evaluation.as_entry()], key=lambda each: each["step"])
        if self.keep_items:
            write_items(Path(trainer.default_root_dir), step, evaluation)
        self._log_scores(trainer, step)
        _call_hook(trainer, "on_benchmark_end", pl_module, step, evaluation.results)

    def _log_scores(self, trainer: Trainer, step: int) -> None:
        if step in self._logged:
            return
        results = next(each for each in self.done if each["step"] == step)["results"]
        for logger in trainer.loggers:
            logger.log_metrics(curves(results), step=step)

    def measured(self) -> dict[str, Any]:
        """Figures for the record."""
        return {"benchmarks": self.done or None}


def _has_other_length(task: Any) -> bool:
    """Return whether a run is resumed with another number of steps than the run that saved the checkpoint had."""
    before = getattr(task, "_saved_total_steps", None)
    return before is not None and before != task.total_steps()


def curves(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return scores and standard errors by TensorBoard tag."""
    kinds = {"benchmark": "scores", "benchmark_stderr": "standard_errors"}
    return {
        f"{curve}/{name}_{metric}": value
        for curve, kind in kinds.items()
        for name, result in results.items()
        for metric, value in result[kind].items()
        if value is not None
    }


def write_items(folder: Path, step: int, found: Evaluation) -> None:
    """Write the result of each item: by benchmark, the fingerprint of the items and one list per metric.

    Results of other benchmarks in an existing file are kept.
    """
    path = folder / ITEMS / f"step-{step:06d}.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no file yet, or an unreadable one
        earlier = {}
    new = {
        name: {"fingerprint": result.fingerprint} | result.per_item
        for name, result in found.results.items()
        if result.per_item
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_json(earlier | new))


def _call_hook(trainer: Trainer, hook: str, *arguments: Any) -> None:
    """Call a hook of all callbacks that have it."""
    for callback in trainer.callbacks:
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, *arguments)
