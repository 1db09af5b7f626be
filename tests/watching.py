"""A callback that copies the weights of a run after each step and can interrupt it, and helpers that compare weights."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor

from litpeft.__main__ import main
from litpeft.adapters.base import trainable
from litpeft.callbacks.checkpoint_io import LOOP, TENSORS
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.resuming import differences

EPOCH = 4  # steps of an epoch of `fit`
EPOCHS = 4
Weights = dict[str, Tensor]


class Watch(Callback):
    """Copies the weights after each step, before the averaging callbacks, and can interrupt the run."""

    stop_step: int | None = None  # send SIGINT after this step
    stop_validation: int | None = None  # send SIGINT in the validation after this step
    damage: Callable[[dict[str, Any]], None] | None = None  # what another callback does to a checkpoint
    steps: list[Weights]
    states: list[Weights]  # z of schedule-free optimizers after each step
    frozen: Weights

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Watch.steps, Watch.states = [], []
        Watch.frozen = self.frozen_tensors(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        parameters, state = trainable(pl_module.backbone), trainer.optimizers[0].state
        Watch.steps.append({name: p.detach().clone() for name, p in parameters.items()})
        Watch.states.append({name: state[p]["z"].clone() for name, p in parameters.items() if "z" in state[p]})
        if trainer.global_step == Watch.stop_step:
            os.kill(os.getpid(), signal.SIGINT)

    def on_validation_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == Watch.stop_validation:
            os.kill(os.getpid(), signal.SIGINT)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        if Watch.damage is not None:
            Watch.damage(checkpoint)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = self.frozen_tensors(pl_module)
        assert now.keys() == Watch.frozen.keys()
        assert all(torch.equal(tensor, Watch.frozen[name]) for name, tensor in now.items())

    @staticmethod
    def frozen_tensors(task: LightningModule) -> Weights:
        """Return copies of the frozen parameters and of the buffers, such as 4-bit weights."""
        names = trainable(task.backbone).keys()
        tensors = dict(task.backbone.named_parameters()) | dict(task.backbone.named_buffers())
        return {name: tensor.detach().clone() for name, tensor in tensors.items() if name not in names}


@contextmanager
def watching(**settings: Any) -> Iterator[None]:
    """Set attributes of `Watch` for runs within the context."""
    before = {name: vars(Watch)[name] for name in settings}
    try:
        for name, value in settings.items():
            setattr(Watch, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(Watch, name, value)


def fit(arguments: list[str], run_dir: Path, *more: str) -> int:
    """Run `litpeft fit` with `Watch` for four epochs of four steps; return the exit code."""
    watch = ["--trainer.callbacks+", f"{__name__}.Watch", "--trainer.max_epochs", str(EPOCHS)]
    return main([*arguments, "--data.train_samples", "32", *watch, *more, "--run_dir", str(run_dir)])


def saved(run_dir: Path) -> tuple[Weights, dict[str, Any]]:
    """Return the trained tensors and the rest of the newest checkpoint."""
    newest = newest_checkpoint(run_dir)
    return load_file(newest / TENSORS), torch.load(newest / LOOP, weights_only=True)


def distance(one: Weights, other: Weights) -> float:
    """Return the largest difference between tensors with the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def mean(weights: list[Weights]) -> Weights:
    """Return the mean in float64."""
    return {name: torch.stack([each[name].double() for each in weights]).mean(0) for name in weights[0]}


def check_evaluation(run_dir: Path, sentences: dict[str, str]) -> None:
    """Check that `litpeft test` gets the figures of the record from the checkpoint, on the same rows."""
    assert main(["test", "--run_dir", str(run_dir), "--data.test_file", sentences["val"]]) == 0
    record = read_record(run_dir)
    assert record["test_loss"] == pytest.approx(record["val_loss"], rel=1e-6)
    assert record["test_accuracy"] == record["val_accuracy"]


def check_resume(
    arguments: list[str], folder: Path, options: list[str], step: int | None, validation: int | None = None
) -> None:
    """Check that a run interrupted after a step, or in the validation after a step, ends like an uninterrupted run."""
    assert fit(arguments, folder / "whole", *options) == 0
    with watching(stop_step=step, stop_validation=validation):
        assert fit(arguments, folder / "parts", *options) == 130
    time.sleep(1 - time.time() % 1)  # TensorBoard sorts the event files of one second and process by their number
    assert fit(arguments, folder / "parts", *options, "--resume") == 0
    assert differences(folder / "whole", folder / "parts") == []


def check_extension(arguments: list[str], folder: Path, options: list[str]) -> None:
    """Check that a finished run with more epochs ends with the weights of a run that had them from the start."""
    one, two = (["--trainer.max_epochs", epochs] for epochs in "12")
    assert fit(arguments, folder / "whole", *options, *two) == 0
    assert fit(arguments, folder / "parts", *options, *one) == 0
    assert fit(arguments, folder / "parts", *options, *two, "--resume") == 0
    assert distance(saved(folder / "whole")[0], saved(folder / "parts")[0]) == 0
