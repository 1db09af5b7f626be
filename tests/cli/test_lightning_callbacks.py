"""Lightning's own callbacks and ReduceLROnPlateau: they work, or one sentence says what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from litpeft.__main__ import main
from litpeft.cli.option_checks import UNSUPPORTED_CALLBACKS
from litpeft.runs.record import read_record

ARGUMENTS = {
    "GradientAccumulationScheduler": ["--trainer.callbacks.scheduling", "{1: 2}"],
    "StochasticWeightAveraging": ["--trainer.callbacks.swa_lrs", "1e-3"],
    "ModelPruning": ["--trainer.callbacks.pruning_fn", "l1_unstructured"],
    "Timer": ["--trainer.callbacks.duration", "00:00:01:00"],
}
WORKING = {
    "EarlyStopping": ["--trainer.callbacks.monitor", "val_loss"],
    "LearningRateMonitor": [],
    "ModelSummary": [],
    "DeviceStatsMonitor": [],
    "ModelCheckpoint": [],
}


@pytest.mark.parametrize("name", UNSUPPORTED_CALLBACKS)
def test_an_unsupported_callback_is_refused_with_what_to_do(
    name: str, fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    callback = ["--trainer.callbacks", f"lightning.pytorch.callbacks.{name}", *ARGUMENTS.get(name, [])]
    assert main([*fit_arguments, *callback, "--run_dir", str(tmp_path / "run")]) == 2
    assert f"trainer.callbacks {name}: {UNSUPPORTED_CALLBACKS[name]}." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", WORKING)
def test_other_callbacks_work(name: str, fit_arguments: list[str], tmp_path: Path) -> None:
    callback = ["--trainer.callbacks", f"lightning.pytorch.callbacks.{name}", *WORKING[name]]
    assert main([*fit_arguments, *callback, "--trainer.max_steps", "4", "--run_dir", str(tmp_path / "run")]) == 0
    assert read_record(tmp_path / "run")["status"] == "ok"


@pytest.mark.parametrize(("mode", "metric"), [("min", "val_loss"), ("max", "val_accuracy")])
def test_torchs_plateau_schedule_follows_the_metric_of_its_mode(
    mode: str, metric: str, fit_arguments: list[str], tmp_path: Path
) -> None:
    scheduler = ["--model.scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau", "--model.scheduler.mode", mode]
    scheduler += ["--model.scheduler.patience", "0", "--model.scheduler.threshold", "1.0"]  # no epoch counts as better
    optimizer = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e-3", "--trainer.max_epochs", "3"]
    assert main([*fit_arguments, *scheduler, *optimizer, "--run_dir", str(tmp_path / "run")]) == 0
    assert metric in read_record(tmp_path / "run")
    assert read_record(tmp_path / "run")["scheduler"] == "ReduceLROnPlateau"
