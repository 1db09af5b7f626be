"""Lightning's own callbacks and ReduceLROnPlateau: they work, or one sentence says what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import callbacks
from safetensors.torch import load_file

from litpeft.__main__ import main
from litpeft.callbacks.checkpoint_io import TENSORS
from litpeft.cli.option_checks import UNSUPPORTED_CALLBACKS
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record

SHORT = ["--model.adapter", "LoRA", "--trainer.max_epochs", "1"]

REFUSED_ARGUMENTS = {
    "GradientAccumulationScheduler": ["--trainer.callbacks.scheduling", "{1: 2}"],
    "ModelPruning": ["--trainer.callbacks.pruning_fn", "l1_unstructured"],
    "OnExceptionCheckpoint": ["--trainer.callbacks.dirpath", "."],
    "Timer": ["--trainer.callbacks.duration", "00:00:01:00"],
}
BAR = ["--trainer.enable_progress_bar", "true"]
WORKING = {  # name -> arguments
    "Callback": [],
    "Checkpoint": [],
    "DeviceStatsMonitor": [],
    "EarlyStopping": ["--trainer.callbacks.monitor", "val_loss"],
    "LambdaCallback": [],
    "LearningRateMonitor": [],
    "ModelCheckpoint": [],
    "ModelSummary": [],
    "ProgressBar": BAR,
    "RichModelSummary": [],
    "RichProgressBar": BAR,
    "TQDMProgressBar": BAR,
    "ThroughputMonitor": ["--trainer.callbacks.batch_size_fn", "builtins.len"],
}
AVERAGING = {"StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"}  # tests/callbacks


def test_every_callback_of_lightning_works_or_is_refused() -> None:
    assert set(callbacks.__all__) == UNSUPPORTED_CALLBACKS.keys() | WORKING.keys() | AVERAGING


@pytest.mark.parametrize("name", UNSUPPORTED_CALLBACKS)
def test_an_unsupported_callback_is_refused_with_what_to_do(
    name: str, fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    callback = ["--trainer.callbacks", f"lightning.pytorch.callbacks.{name}", *REFUSED_ARGUMENTS.get(name, [])]
    assert main([*fit_arguments, *callback, "--run_dir", str(tmp_path / "run")]) == 2
    assert f"trainer.callbacks {name}: {UNSUPPORTED_CALLBACKS[name]}." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", WORKING)
def test_other_callbacks_train_the_same_weights_and_resume_if_they_have_a_state(
    name: str, fit_arguments: list[str], tmp_path: Path, plain: Path
) -> None:
    callback = ["--trainer.callbacks", f"lightning.pytorch.callbacks.{name}", *WORKING[name]]
    arguments = [*fit_arguments, *SHORT, *callback, "--run_dir", str(tmp_path / "run")]
    if getattr(callbacks, name).state_dict is not callbacks.Callback.state_dict:
        assert main([*arguments, "--trainer.max_steps", "4"]) == 0
        arguments.append("--resume")
    assert main([*arguments, "--trainer.max_steps", "6"]) == 0
    assert read_record(tmp_path / "run")["status"] == "ok"
    one, other = (load_file(newest_checkpoint(folder) / TENSORS) for folder in (tmp_path / "run", plain))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def plain(fit_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of six steps without a callback."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    assert main([*fit_arguments, *SHORT, "--trainer.max_steps", "6", "--run_dir", str(run_dir)]) == 0
    return run_dir


def test_devices_in_options_of_callbacks_can_be_read_again(fit_arguments: list[str], tmp_path: Path) -> None:
    swa = ["--trainer.callbacks", "lightning.pytorch.callbacks.StochasticWeightAveraging"]
    options = [*SHORT, *swa, "--trainer.callbacks.swa_lrs", "1e-3", "--trainer.max_steps", "1"]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path / "run")]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["trainer"]["callbacks"][0]["init_args"]["device"] == "cpu"
    again = ["fit", "--config", str(tmp_path / "run" / "config.yaml"), "--run_dir", str(tmp_path / "again")]
    assert main(again) == 0


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
