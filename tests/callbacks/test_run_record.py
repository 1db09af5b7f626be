"""The records of finished, failed and interrupted runs, and their curves in TensorBoard."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageColor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from litpeft.__main__ import main
from litpeft.callbacks.run_record import RunRecorder
from litpeft.profiling.memory.bar_chart import BAR, COLOURS, LEFT, ROW, TITLE
from litpeft.runs.record import FIELDS, new_record, read_record
from tests.conftest import write_killer
from tests.forking import litpeft
from tests.resuming import start

LORA = ["--model.adapter", "LoRA", "--model.adapter.rank", "4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fit_arguments: list[str]) -> Path:
    run_dir = tmp_path_factory.mktemp("record") / "run"
    options = [
        *("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-3"),
        *("--model.scheduler", "WarmupCosine"),
    ]
    assert main([*fit_arguments, *LORA, *options, "--trainer.max_epochs", "2", "--run_dir", str(run_dir)]) == 0
    return run_dir


def test_tensorboard_shows_peak_memory_by_category_as_an_image(finished: Path) -> None:
    events = EventAccumulator(str(finished))
    events.Reload()
    (shown,) = events.Images("memory")
    image = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)).convert("RGB"))
    record = read_record(finished)
    phases = {name: peak for name, peak in record["memory_phases"].items() if "tensor_bytes" in peak}
    for row, peak in enumerate(phases.values()):
        bar = image[TITLE + row * ROW + 2, LEFT : LEFT + BAR]
        for name, colour in COLOURS.items():
            width = int((bar == ImageColor.getrgb(colour)).all(-1).sum())
            assert abs(width - BAR * peak["tensor_bytes"][name] / record["peak_tensor_bytes"]) <= 1


def test_a_record_has_all_defined_fields(finished: Path) -> None:
    record = read_record(finished)
    assert list(record) == list(FIELDS)
    unknown = {name for name, value in record.items() if value is None}
    assert unknown - {"git", "energy_joules"} == {  # these two depend on the machine
        *(
            "error",
            "peak_allocated_bytes",
            "peak_reserved_bytes",
            "others_bytes",
            "peak_flops_per_second",
            "flops_utilisation",
        ),
        *(
            "test_loss",
            "test_accuracy",
            "test_f1",
            "other_metrics",
            "merged_evaluation",
            "benchmarks",
            "peaks_by_process",
        ),
        *("head_labels", "base", "skipped_steps", "stream", "image_grid"),
    }
    assert record["status"] == "ok"
    first, last = record["validations"]
    assert (first["step"], last["step"], last["epochs"]) == (12, 24, 2.0)
    assert 0 < first["train_seconds"] < last["train_seconds"] == record["train_seconds"]
    assert {name: last[name] for name in ("val_loss", "val_accuracy")} == {
        name: record[name] for name in ("val_loss", "val_accuracy")
    }
    assert (record["adapter"], record["data"], record["task"]) == ("lora", "SST2", "SequenceClassification")
    options = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["query", "value"]}
    assert record["adapter_options"].items() >= options.items()
    assert record["adapter_summary"] == {"adapted_layers": {"query": 2, "value": 2}, "not_adapted": {}}
    assert record["trainable_params"] == 4 * 2 * 4 * 32 + 2 * 32 + 2
    assert (record["steps"], record["epochs"], record["effective_batch_size"]) == (24, 2, 8)
    assert record["data_summary"]["rows"] == {"train": 96, "val": 32}
    assert record["peak_rss_bytes"] > 100e6
    first, longest, next_epoch = record["tracked_steps"]
    assert (first, next_epoch) == (0, 12)
    assert 0 < longest < 12
    assert set(record["memory_phases"]) == {"load", "first_step", "train", "validate", "save"}
    for phase in ("first_step", "train", "validate"):
        peak = record["memory_phases"][phase]
        assert sum(peak["tensor_bytes"].values()) == peak["peak_tensor_bytes"] <= record["peak_tensor_bytes"]
        assert peak["tensor_bytes"]["adapter_weights"] == record["adapter_bytes"]
        assert peak["tensor_bytes"]["base_weights"] == record["model_bytes"] - record["adapter_bytes"]
    train = record["memory_phases"]["train"]["tensor_bytes"]
    states = 2 * record["adapter_bytes"]  # two moments per parameter, and a step count per tensor
    assert states < train["optimizer_state"] <= states + 4 * 10
    assert record["memory_phases"]["first_step"]["tensor_bytes"]["optimizer_state"] in (0, train["optimizer_state"])
    assert record["memory_phases"]["validate"]["tensor_bytes"]["activations"] == 0
    assert record["optimizer_settings"][0]["weight_decay"] == 0.01
    assert record["optimizer_settings"][1]["weight_decay"] == 0.0
    assert record["optimizer_settings"][0]["initial_lr"] == 1e-3
    assert record["train_samples_per_second"] == pytest.approx(8 / record["step_seconds_p50"], rel=0.9)
    assert record["wall_seconds"] > record["train_seconds"] > 0
    assert (finished / record["checkpoint"]).is_dir()


def test_the_saved_configuration_reproduces_the_run(finished: Path, tmp_path: Path) -> None:
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert saved == read_record(finished)["config"]
    assert main(["fit", "--config", str(finished / "config.yaml"), "--run_dir", str(tmp_path / "again")]) == 0
    again, record = read_record(tmp_path / "again"), read_record(finished)
    for name in ("val_loss", "val_accuracy", "train_loss", "trainable_params", "config"):
        assert again[name] == record[name], name


def test_tensorboard_holds_the_curves_and_the_hparams_with_final_metrics(finished: Path) -> None:
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0}).Reload()
    record = read_record(finished)
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/loss_epoch",
        "val/loss",
        "val/accuracy",
        "val/f1",
        "train/lr",
        "speed/tokens_per_second",
        "memory/rss_bytes",
    } <= scalars
    assert all("/" in name for name in scalars), scalars  # every curve is in a group
    assert [event.step for event in events.Scalars("val/accuracy")] == [11, 23]  # one point per validation
    assert events.Scalars("final/val_accuracy")[-1].value == pytest.approx(record["val_accuracy"])
    assert events.Scalars("final/trainable_params")[-1].value == record["trainable_params"]
    for event in events.Scalars("memory/rss_bytes"):
        assert 2**24 < event.value <= record["peak_rss_bytes"]
    contents = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(contents).session_start_info
    hparams = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert hparams["adapter"] == "lora"
    assert hparams["adapter.rank"] == 4
    assert hparams["data"] == "SST2"
    contents = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(contents).experiment
    shown = {metric.name.tag for metric in experiment.metric_infos}
    assert {
        f"final/{name}" for name in ("val_accuracy", "val_loss", "peak_rss_bytes", "train_tokens_per_second")
    } <= shown


def test_the_curve_shows_the_learning_rate_used_in_each_step(finished: Path) -> None:
    events = EventAccumulator(str(finished)).Reload()
    rates = {event.step: event.value for event in events.Scalars("train/lr")}
    assert rates[9] == pytest.approx(1e-3 * (1 + math.cos(math.pi * (9 - 1) / (24 - 1))) / 2, rel=1e-5)


def test_the_last_weights_are_validated_when_max_steps_ends_the_run(tmp_path: Path, fit_arguments: list[str]) -> None:
    assert main([*fit_arguments, *LORA, "--trainer.max_steps", "7", "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    assert (record["steps"], record["checkpoint"]) == (7, "checkpoints/step-000007")
    assert record["val_accuracy"] is not None
    assert read_record(tmp_path)["train_loss"] is not None


def test_a_failed_run_is_recorded_as_failed(tmp_path: Path, fit_arguments: list[str]) -> None:
    (tmp_path / "failing.py").write_text(
        "from lightning import Callback\n"
        "class Fail(Callback):\n"
        "    def on_train_batch_end(self, trainer, *args):\n"
        "        if trainer.global_step == 8:\n"
        "            raise RuntimeError('something broke')\n"
        "class Full(Callback):\n"
        "    def on_train_batch_end(self, trainer, *args):\n"
        "        if trainer.global_step == 8:\n"
        "            raise RuntimeError('[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory')\n"
    )
    failed = litpeft(*fit_arguments, *LORA, "--trainer.callbacks", "failing.Fail", "--run_dir", "failed", cwd=tmp_path)
    assert failed.returncode == 1
    record = read_record(tmp_path / "failed")
    assert (record["status"], record["error"], record["steps"]) == ("failed", "something broke", 8)
    last = failed.stderr.splitlines()[-1]  # after what is told about the data
    assert last == "litpeft: error: the run failed: something broke (traceback: failed/traceback.txt)"
    assert "in on_train_batch_end" in (tmp_path / "failed" / "traceback.txt").read_text()
    assert record["train_tokens_per_second"] > 0
    full = litpeft(*fit_arguments, *LORA, "--trainer.callbacks", "failing.Full", "--run_dir", "full", cwd=tmp_path)
    assert full.returncode == 1
    assert "out of memory; try a smaller --data.batch_size" in full.stderr
    assert "Traceback" not in full.stderr
    assert read_record(tmp_path / "full")["status"] == "oom"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_recorded_as_interrupted(
    tmp_path: Path, fit_arguments: list[str], number: int, code: int
) -> None:
    log = tmp_path / "log"
    options = ["--trainer.max_epochs", "2000", "--run_dir", str(tmp_path / "run")]
    process = start([*fit_arguments, *LORA, *options], log)
    while not list(tmp_path.glob("run/checkpoints/step-*")) and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join()
    error = log.read_text()
    assert process.exitcode == code, error
    assert "litpeft: interrupted at step" in error
    assert "run the same command with --resume" in error
    assert "Traceback" not in error
    record = read_record(tmp_path / "run")
    assert record["status"] == "interrupted"
    assert record["steps"] > 0


def test_a_nan_loss_stops_the_run_and_is_reported_with_step_and_learning_rate(
    tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    options = [
        *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e14", "--run_dir", str(tmp_path / "run"))
    ]
    assert main([*fit_arguments, *LORA, *options]) == 2
    error = capsys.readouterr().err
    assert "the training loss is nan at step" in error
    assert "learning rate 100000000000000.0" in error
    record = read_record(tmp_path / "run")
    assert record["status"] == "failed"
    assert json.loads((tmp_path / "run" / "record.json").read_text())["train_loss"] is None


def test_a_folder_can_be_used_again_after_a_mistake_before_the_first_step(
    tmp_path: Path, fit_arguments: list[str], capsys
) -> None:
    run_dir = ["--run_dir", str(tmp_path / "run")]
    assert main([*fit_arguments, "--model.adapter", "LoRA", "--model.adapter.targets", "[nothing]", *run_dir]) == 2
    assert read_record(tmp_path / "run")["status"] == "failed"
    assert main([*fit_arguments, *LORA, *run_dir]) == 0
    assert read_record(tmp_path / "run")["status"] == "ok"
    capsys.readouterr()
    assert main([*fit_arguments, *LORA, *run_dir]) == 2
    assert "already holds a run; give --resume, --overwrite, or another --run_dir" in capsys.readouterr().err
    assert main([*fit_arguments, *LORA, *run_dir, "--data.batch_size", "4"]) == 2
    assert "already holds a run (with a different data.init_args.batch_size); give" in capsys.readouterr().err


def test_a_mistake_with_overwrite_does_not_change_the_earlier_run(
    tmp_path: Path, fit_arguments: list[str], capsys
) -> None:
    run_dir = ["--run_dir", str(tmp_path / "run"), "--overwrite"]
    assert main([*fit_arguments, *LORA, *run_dir]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for mistake in (
        ["--data.text_column", "nothing"],
        ["--model.adapter.targets", "[nothing]"],
        ["--model.adapter.rank", "0"],
    ):
        assert main([*fit_arguments, *LORA, *run_dir, *mistake]) == 2
        assert {path: path.read_bytes() for path in before} == before
    assert main([*fit_arguments, "--model.adapter", "Frozen", *run_dir]) == 0
    assert read_record(tmp_path / "run")["adapter"] == "frozen"
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


def test_a_metric_with_an_unknown_name_is_recorded_under_other_metrics(
    tmp_path: Path, fit_arguments: list[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from litpeft.tasks import SequenceClassification\n"
        "class Mine(SequenceClassification):\n"
        "    def validation_step(self, batch, batch_idx):\n"
        "        super().validation_step(batch, batch_idx)\n"
        "        self.log('val_other', 0.5)\n"
    )
    done = litpeft(*fit_arguments, "--model", "mine.Mine", "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run")["other_metrics"] == {"val_other": 0.5}
    assert read_record(tmp_path / "run")["val_accuracy"] is not None


def test_the_record_of_a_killed_run_holds_its_last_validation(tmp_path: Path, fit_arguments: list[str]) -> None:
    options = ["--trainer.max_epochs", "3", *write_killer(tmp_path, 30), "--run_dir", "run"]
    assert litpeft(*fit_arguments, *LORA, *options, cwd=tmp_path).returncode == -9
    record = read_record(tmp_path / "run")
    assert (record["status"], record["steps"], record["epochs"]) == ("interrupted", 24, 2.0)
    assert (record["val_step"], record["checkpoint"]) == (24, "checkpoints/step-000024")
    assert (tmp_path / "run" / record["checkpoint"]).is_dir()
    assert record["val_accuracy"] is not None
    assert litpeft("validate", "--run_dir", "run", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("options", "first", "written"),
    [({}, True, True), ({}, False, False), ({"stale": ["an old file"]}, True, False), ({"resumed": {}}, True, None)],
)
def test_only_the_first_process_of_a_new_run_marks_its_folder(
    options: dict[str, Any], first: bool, written: bool | None, tmp_path: Path
) -> None:
    resumed = {"resumed": new_record() | {"steps": 3}} if "resumed" in options else {}
    recorder = RunRecorder({"seed_everything": 1}, **options | resumed)
    recorder.announce(SimpleNamespace(is_global_zero=first, default_root_dir=str(tmp_path)))
    assert (tmp_path / "record.json").exists() == bool(written)
