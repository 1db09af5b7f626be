"""A run that is resumed with more epochs continues every schedule as a run of that length in one go."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import ReduceLROnPlateau

from litpeft.__main__ import main
from litpeft.adapters import LoRA
from litpeft.data import SST2
from litpeft.errors import UserError
from litpeft.optim import WarmupLinear
from litpeft.tasks import SequenceClassification
from tests.conftest import QUIET

SCHEDULES = {
    "OneCycleLR": ["OneCycleLR", "--model.scheduler.max_lr", "0.01"],
    "CosineAnnealingLR": ["CosineAnnealingLR", "--model.scheduler.T_max", "-1"],
    "WarmupLinear": ["WarmupLinear"],
    "WarmupCosine": ["WarmupCosine", "--model.scheduler.floor", "0.1"],
    "WarmupInverseSqrt": ["WarmupInverseSqrt", "--model.scheduler.warmup", "2"],
    "PolynomialLR": ["PolynomialLR", "--model.scheduler.total_iters", "30"],
    "LinearLR": ["LinearLR", "--model.scheduler.total_iters", "30"],
    "CosineAnnealingWarmRestarts": ["CosineAnnealingWarmRestarts", "--model.scheduler.T_0", "10"],
    "ExponentialLR": ["ExponentialLR", "--model.scheduler.gamma", "0.9"],
}


def rates(run_dir: Path) -> dict[int, float]:
    """Return the learning rate at each logged step."""
    return {event.step: event.value for event in EventAccumulator(str(run_dir)).Reload().Scalars("train/lr")}


PLUS = ["--model.adapter.lora_plus_ratio", "4"]  # B has a learning rate of its own


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        pytest.param("OneCycleLR", [], id="OneCycleLR-LoRA"),  # sets one rate for all groups, so LoRA+ is refused
        *(pytest.param(name, PLUS, id=f"{name}-LoRA+") for name in SCHEDULES if name != "OneCycleLR"),
        *(
            pytest.param(name, [], id=f"{name}-LoRA", marks=() if name == "WarmupCosine" else pytest.mark.whole)
            for name in SCHEDULES
            if name != "OneCycleLR"
        ),
    ],
)
def test_an_extended_run_continues_the_longer_schedule(
    name: str, adapter: list[str], tmp_path: Path, fit_arguments: list[str]
) -> None:
    common = [
        *fit_arguments,
        *(
            "--model.adapter",
            "LoRA",
            *adapter,
            "--model.optimizer",
            "torch.optim.AdamW",
            "--model.optimizer.lr",
            "1e-3",
        ),
        *("--model.scheduler", *SCHEDULES[name], "--trainer.log_every_n_steps", "1"),
        *("--data.batch_size", "16", "--trainer.limit_val_batches", "0"),  # an epoch has six steps
    ]
    assert main([*common, "--trainer.max_epochs", "3", "--run_dir", str(tmp_path / "whole")]) == 0
    assert main([*common, "--trainer.max_epochs", "1", "--run_dir", str(tmp_path / "parts")]) == 0
    assert main([*common, "--trainer.max_epochs", "3", "--run_dir", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = rates(tmp_path / "whole"), rates(tmp_path / "parts")
    assert len(whole) == 18
    for step in range(6, 18):
        assert parts[step] == pytest.approx(whole[step], rel=1e-6), step


def test_a_shorter_one_cycle_is_refused_in_a_sentence(
    tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    schedule = [*SCHEDULES["OneCycleLR"], "--model.scheduler.total_steps", "14"]
    common = [*fit_arguments, "--model.scheduler", *schedule, "--run_dir", str(tmp_path / "run")]
    assert main([*common, "--trainer.max_epochs", "1"]) == 0
    capsys.readouterr()
    assert main([*common, "--trainer.max_epochs", "3", "--resume"]) != 0
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "total_steps" in error or "total steps" in error


class Rates(Callback):
    """Keeps the learning rate of each epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_reduce_on_plateau_counts_validations_and_not_epochs(tiny_model: str, sentences: dict[str, str]) -> None:
    """With a validation every second epoch and patience 1, the third validation without progress lowers the rate."""
    plateau = partial(ReduceLROnPlateau, patience=1, factor=0.5, threshold=10.0, threshold_mode="abs")
    options = {"optimizer": partial(torch.optim.SGD, lr=0.125), "scheduler": plateau, "dtype": "fp32"}
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"])
    rates = Rates()
    limits = {"max_epochs": 8, "check_val_every_n_epoch": 2, "limit_train_batches": 1, "callbacks": [rates]}
    Trainer(**QUIET | limits).fit(SequenceClassification(tiny_model, LoRA(rank=2), **options), datamodule=data)
    assert rates.found == [0.125] * 6 + [0.0625] * 2
    trainer = Trainer(**QUIET | {"max_epochs": 1, "limit_val_batches": 0})
    task = SequenceClassification(tiny_model, LoRA(rank=2), **options)
    with pytest.raises(UserError, match="ReduceLROnPlateau needs val_loss, and the run is not validated; leave out "):
        trainer.fit(task, datamodule=data)


def test_a_schedule_ends_with_a_run_whose_accumulation_changes(tiny_model: str, sentences: dict[str, str]) -> None:
    """6 batches are 6 steps in the first epoch and 2 in the others: 10 steps, of which the last is above zero."""
    options = {"optimizer": partial(torch.optim.SGD, lr=1.0), "scheduler": partial(WarmupLinear, warmup=0)}
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], batch_size=16)
    rates = Rates()
    callbacks = [GradientAccumulationScheduler({0: 1, 1: 3}), rates]
    limits = {"max_epochs": 3, "limit_train_batches": 6, "limit_val_batches": 0, "callbacks": callbacks}
    trainer = Trainer(**QUIET | limits)
    trainer.fit(SequenceClassification(tiny_model, LoRA(rank=2), dtype="fp32", **options), datamodule=data)
    assert trainer.global_step == 10
    assert [*rates.found, trainer.optimizers[0].param_groups[0]["lr"]] == pytest.approx([1.0, 0.4, 0.2, 0.0])
