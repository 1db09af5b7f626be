"""The models of a chat: of one or two runs, or of a run and its base, with one base in memory if possible."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litpeft.cli.finished_run import FinishedRun
from litpeft.cli.shared_model import shares_model
from litpeft.errors import UserError
from litpeft.tasks.compute_dtype import multiplies_bf16
from litpeft.tasks.language_modelling import LanguageModelling

BASE = "base"  # value of `--compare`
MOST_BYTES = 2 * 2**30  # of a bf16 model that may be held in fp32


class AnsweringModel:
    """A model that answers, which may share its weights with another one.

    Args:
        name: name for the user.
        run: the run, whose model is built.
        is_base: whether it answers without what was trained.
    """

    def __init__(self, name: str, run: FinishedRun, is_base: bool = False) -> None:
        self.name, self.run, self.is_base = name, run, is_base
        self.shared = False  # whether another run uses the same model, with its own trained weights

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Let the model compute this side's answers inside the with block."""
        task = self.run.model
        if self.shared:
            task.load_state_dict(self.run.state)
        if not self.is_base:
            yield
            return
        with task.adapter.disable(task.backbone):
            yield


def load_models(run_dir: Path, compare: str | None, accelerator: str) -> list[AnsweringModel]:
    """Return the model of a run, and the model that it is compared with, if there is one.

    Args:
        run_dir: folder of a finished run.
        compare: folder of another run, `base`, or None.
        accelerator: as `--trainer.accelerator`.

    Raises:
        UserError: the runs have different tasks, or the task has no base to compare with.
    """
    first = AnsweringModel(run_dir.name if compare is None else str(run_dir), _built(run_dir, accelerator))
    speaks = isinstance(first.run.model, LanguageModelling)
    if compare is None:
        return [first]
    if compare == BASE:
        if not speaks:
            raise UserError("--compare base: the base has no trained head, so it has no labels; give another run.")
        return [first, _base_of(first, accelerator)]
    other = _opened(Path(compare), accelerator)
    if isinstance(other.model, LanguageModelling) != speaks:
        raise UserError(f"--compare {compare}: one run generates text and the other predicts labels; give a like run.")
    second = AnsweringModel(compare, other)
    first.shared = second.shared = shares_model(first.run, other)
    other.build(other.trainer.strategy.root_device, like=first.run)
    other.model.eval()
    return [first, second]


def _built(run_dir: Path, accelerator: str) -> FinishedRun:
    run = _opened(run_dir, accelerator)
    run.build(run.trainer.strategy.root_device)
    run.model.eval()
    return run


def _opened(run_dir: Path, accelerator: str) -> FinishedRun:
    """Return a run whose model is not built yet; it will compute in the dtype in which the device is quick."""
    run = FinishedRun(run_dir, None, accelerator, "used")
    task, device = run.model, run.trainer.strategy.root_device
    # without instructions for bf16, products of bf16 matrices take longer than those of fp32
    slow = device.type == "cpu" and task.dtype_name == "bf16" and not multiplies_bf16()
    if slow and not task.adapter.quantises and (run.record["model_bytes"] or MOST_BYTES) < MOST_BYTES:
        task.dtype_name = "fp32"
    return run


def _base_of(model: AnsweringModel, accelerator: str) -> AnsweringModel:
    """Return the base of a run: its model with the adapter off, or loaded again if the base was trained."""
    task = model.run.model
    try:
        with task.adapter.disable(task.backbone):
            return AnsweringModel(BASE, model.run, is_base=True)
    except UserError:
        print(f"litpeft: {model.name} trained the base, so that is loaded again.", file=sys.stderr)
    run = _opened(model.run.run_dir, accelerator)
    device = run.trainer.strategy.root_device
    run.model.build(run.datamodule, device)  # without the trained weights
    run.model.to(device).eval()
    return AnsweringModel(BASE, run)
