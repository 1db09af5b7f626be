"""Benchmarks of the model being trained: before its training, every so many steps, and at the end."""

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

ITEMS = "benchmark_items"  # folder within a run's: a file a step, of what each item gave


class BenchmarkEvaluation(Checkpoint):  # of Lightning's kind, which it calls last: whatever is lost here has been saved
    """Measure the model as it stands, its adapter on and its weights as they are held; nothing is exported.

    Training goes on as if nothing had been: random numbers and modes are put back, and figures of time, memory and
    energy leave it out. Other callbacks are told by `on_benchmark_start`, `on_benchmark_progress` and
    `on_benchmark_end`, where they have these.

    Args:
        tasks: names of lm-eval's tasks, groups or patterns (`litpeft_blimp_*`), `perplexity`, or `held_out`; a list, or
            set apart by commas.
        before: also before the first step.
        every_n_steps: also every so many optimizer steps.
        limit: items of each task, the first ones; all by default. `held_out` takes all rows of the validation.
        num_fewshot: examples before each item, where the task does not fix their number.
        batch_size: rows at once where lm-eval's own way is taken; by default as many as fit (16 on a CPU).
        data_dir: folder with the released files of the litpeft_ tasks; without it they come from the hub.
        text_file: text of `perplexity`, paragraphs set apart by empty lines.
        max_seconds: that an evaluation may take; what it does not come to is named in the record.
        keep_items: keep what each item gave, in `benchmark_items` in the run folder. `litpeft compare` then tests
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
        self.done: list[dict[str, Any]] = []  # for the record, in order of their steps
        self._suite: Suite | None = None
        self._drawn: set[int] = set()  # steps whose curves are in the event files

    def resume_with(self, done: Sequence[dict[str, Any]] | None) -> None:
        """Evaluations that the record of a resumed run holds: a run that is bit-identical need not repeat them."""
        self.done = list(done or ())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.options.tasks:
            self._suite = Suite(self.options, pl_module, trainer.datamodule)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = {each["step"] for each in self.done if each["step"] <= trainer.global_step}
        if trainer.global_step == 0 and self.before:
            self._evaluate(trainer, pl_module, 0)
        self.on_train_batch_end(trainer, pl_module)  # of a resumed run, what its end has cut short

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        last = step == trainer.max_steps  # what is to be measured at the end may be another checkpoint
        if self.every_n_steps and step and step % self.every_n_steps == 0 and not last:
            self._evaluate(trainer, pl_module, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not in `on_fit_end`, before which Lightning moves the model to the host."""
        step = trainer.global_step
        chosen = next((c.best for c in trainer.callbacks if getattr(c, "keep", None) == "best"), None)
        if chosen is not None:  # the weights that the run stands for
            step = step_of(chosen)
        if self._suite is None:
            return
        if step != trainer.global_step and not self._known(step):
            state = FolderCheckpointIO().load_checkpoint(Path(trainer.default_root_dir) / chosen)["state_dict"]
            pl_module.load_state_dict(state)
        self._evaluate(trainer, pl_module, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a run that was killed in its last evaluation, there was nothing left to train, and no end of it."""
        if self._suite is not None and trainer.global_step not in self._drawn:
            pl_module.to(trainer.strategy.root_device)
            self.on_train_end(trainer, pl_module)

    def _known(self, step: int) -> bool:
        return any(each["step"] == step for each in self.done)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """By one process, which the others wait for."""
        if self._suite is None:
            return
        if trainer.is_global_zero:
            self._evaluate_alone(trainer, pl_module, step)
        self._drawn.add(step)
        trainer.strategy.barrier()

    def _evaluate_alone(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        if self._known(step):  # by the run that was killed; its curves end where it was saved
            self._draw(trainer, step)
            return
        _tell(trainer, "on_benchmark_start", pl_module)
        found = self._suite.evaluate(
            pl_module,
            trainer.datamodule,
            lambda *progress: _tell(trainer, "on_benchmark_progress", *progress),
            lambda sentence: print(f"litpeft: warning: {sentence}", file=sys.stderr),
        )
        self.done = sorted([*self.done, {"step": step} | found.told()], key=lambda each: each["step"])
        if self.keep_items:
            write_items(Path(trainer.default_root_dir), step, found)
        self._draw(trainer, step)
        _tell(trainer, "on_benchmark_end", pl_module, step, found.results)

    def _draw(self, trainer: Trainer, step: int) -> None:
        if step in self._drawn:
            return
        results = next(each for each in self.done if each["step"] == step)["results"]
        for logger in trainer.loggers:
            logger.log_metrics(curves(results), step=step)

    def measured(self) -> dict[str, Any]:
        """Figures for the record."""
        return {"benchmarks": self.done or None}


def curves(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Scores and their standard errors as the record has them, by the names of curves."""
    kinds = {"benchmark": "scores", "benchmark_stderr": "standard_errors"}
    return {
        f"{curve}/{name}_{metric}": value
        for curve, kind in kinds.items()
        for name, result in results.items()
        for metric, value in result[kind].items()
        if value is not None
    }


def write_items(folder: Path, step: int, found: Evaluation) -> None:
    """What each item gave: by benchmark, the fingerprint of its items and a list by metric. What stands there stays."""
    path = folder / ITEMS / f"step-{step:06d}.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or none that could be read
        earlier = {}
    told = {
        name: {"fingerprint": result.fingerprint} | result.per_item
        for name, result in found.results.items()
        if result.per_item
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_json(earlier | told))


def _tell(trainer: Trainer, hook: str, *told: Any) -> None:
    for callback in trainer.callbacks:
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, *told)
