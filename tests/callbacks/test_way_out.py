"""Which checkpoint is kept, called the best, and named as a way out; random states and metrics over a resume."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from litpeft.callbacks.checkpoint import Checkpoint
from litpeft.callbacks.checkpoint_io import TENSORS, FolderCheckpointIO
from litpeft.errors import UserError
from litpeft.runs.folder import checkpoints, newest_checkpoint, step_of

STATE = {"state_dict": {"weight": torch.ones(3)}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


def saved(run_dir: Path, *steps: int) -> list[Path]:
    paths = [run_dir / "checkpoints" / f"step-{step:06d}" for step in steps]
    for path in paths:
        FolderCheckpointIO().save_checkpoint(STATE | {"step": step_of(path)}, path)
    return paths


def spoil(path: Path) -> None:
    content = bytearray((path / TENSORS).read_bytes())
    content[-1] ^= 1
    (path / TENSORS).write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ([9], "remove that folder to use step-000006, the checkpoint before it"),
        ([6, 9], "remove that folder to use step-000003, the checkpoint before it"),
        ([3, 6, 9], "there is no earlier checkpoint; train again with --overwrite"),
    ],
)
def test_the_checkpoint_named_as_a_way_out_is_undamaged(tmp_path: Path, damaged: list[int], named: str) -> None:
    paths = saved(tmp_path, 3, 6, 9)
    for path in paths:
        if step_of(path) in damaged:
            spoil(path)
    with pytest.raises(UserError) as refused:
        FolderCheckpointIO().load_checkpoint(paths[-1])
    assert str(refused.value).endswith(f"{named}.")


@pytest.mark.parametrize(
    ("function", "sanity_checking", "asked"),
    [("fit", False, 1), ("fit", True, 0), ("validate", False, 0), ("test", False, 0)],
)
def test_in_a_validation_of_fit_all_processes_agree_to_stop(function: str, sanity_checking: bool, asked: int) -> None:
    calls: list[Any] = []
    checkpoint = Checkpoint()
    checkpoint.stop = SimpleNamespace(agree=calls.append, received=None)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn=function), sanity_checking=sanity_checking, strategy=SimpleNamespace(root_device="cpu")
    )
    checkpoint.on_validation_batch_end(trainer, None)
    assert calls == ["cpu"] * asked


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for step in ("999999", "1000000", "000007", "5"):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [5, 7, 999999, 1000000]
    assert step_of(newest_checkpoint(tmp_path)) == 1000000


def trainer_at(root: Path, step: int, **metrics: float) -> Any:
    """Return what the callback reads of a trainer."""
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_should_accumulate=lambda: False))
    return SimpleNamespace(
        default_root_dir=str(root), global_step=step, sanity_checking=False, state=SimpleNamespace(fn="fit"),
        fit_loop=loop, callback_metrics={name: torch.tensor(value) for name, value in metrics.items()}, loggers=[],
        callbacks=[], is_global_zero=True, save_checkpoint=lambda path: saved(root, step_of(path)),
    )  # fmt: skip


NAN = math.nan


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("max", [0.5, 0.9, 0.7], 2),
        ("min", [0.5, 0.9, 0.3], 3),
        ("min", [0.5, 0.9, 0.7], 1),
        ("max", [0.5, 0.5, 0.4], 1),  # of equal ones the first
        ("max", [NAN, 0.1, 0.05], 2),
        ("min", [NAN, 0.7, 0.9], 2),
        ("max", [0.3, NAN, 0.2], 1),
        ("max", [NAN, NAN, 0.2], 3),
    ],
)
def test_the_best_checkpoint_is_that_of_the_best_metric(
    tmp_path: Path, mode: str, values: list[float], best: int
) -> None:
    callback = Checkpoint(keep="best")
    callback._monitor = ("val_score", mode)
    for step, value in enumerate(values, 1):
        callback.on_validation_end(trainer := trainer_at(tmp_path, step, val_score=value, val_loss=step), None)
        callback._save(trainer)
        kept = {step_of(path) for path in checkpoints(tmp_path)}
        assert {step, max(1, step - 1)} <= kept  # two, so that a damaged one does not lose the run
    assert callback.best == f"checkpoints/step-{best:06d}"
    assert {step_of(path) for path in checkpoints(tmp_path)} == {best, 2, 3}
    measured = callback.measured()
    assert (measured["checkpoint"], measured["selection"]) == (callback.best, "best val_score")
    assert (measured["val_loss"], measured["val_step"]) == (best, best)
    callback._remove(trainer, least=1)
    assert {step_of(path) for path in checkpoints(tmp_path)} == {best, 3}


def test_the_record_names_no_checkpoint_that_could_not_be_written(tmp_path: Path) -> None:
    callback = Checkpoint()
    callback._save(trainer_at(tmp_path, 4))
    full = trainer_at(tmp_path, 8)
    full.save_checkpoint = lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        callback._save(full)
    assert callback.measured()["checkpoint"] == "checkpoints/step-000004"


def numbers() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.rand())]


def test_random_states_are_those_of_the_save_after_whatever_was_drawn_before_the_first_batch() -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    numbers()
    state = Checkpoint().state_dict()
    expected = [numbers(), numbers()]
    resumed = Checkpoint()
    resumed.load_state_dict(state)
    numbers()  # setup code draws
    resumed.restore()
    assert [numbers(), numbers()] == expected
    resumed.restore()  # once: later batches continue
    assert numbers() not in expected
