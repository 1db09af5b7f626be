"""Loggers beside TensorBoard: what a run sends is read back from wandb's offline file and from an MLflow store."""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger

from litpeft.__main__ import main
from litpeft.callbacks.sent_figures import FIGURES
from litpeft.cli.arguments import with_configs
from litpeft.cli.loggers import MAKERS, RunNames, fill_in_loggers, logger_names
from litpeft.runs.curve_file import read_lines
from litpeft.runs.record import read_record
from litpeft.training.outlets import Outlet, outlet_of, send
from litpeft.training.trackio_logger import TrackioLogger

BLOCK = 32768  # bytes; the offline file of wandb is a log of LevelDB


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, byte_llama: str) -> list[str]:
    """Return the arguments of a fit that generates samples of answers."""
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"say {i}", "response": f"{i}"}) for i in range(12)))
    return [
        *("fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--model.dtype", "fp32"),
        *("--model.adapter", "LoRA", "--model.generate_samples", "2", "--model.max_new_tokens", "4"),
        *("--data", "Conversations", "--data.train_file", str(file), "--data.val_samples", "4"),
        *("--data.batch_size", "2", "--data.max_length", "128", "--trainer.log_every_n_steps", "2"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--experiment", "tiny"),
    ]


def losses(run_dir: Path) -> dict[int, float]:
    """Return the training losses in the file of curves, by Lightning's number of the step."""
    return {
        line["step"] - 1: line["values"]["train_loss"] for line in read_lines(run_dir) if "train_loss" in line["values"]
    }


def wandb_records(file: Path) -> Iterator[Any]:
    """Yield the records in an offline file of wandb."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def finished_records(file: Path) -> list[Any]:
    """Return all records; the service of wandb writes the last ones a moment after the run has ended."""
    end = time.monotonic() + 60
    while True:
        records = list(wandb_records(file))
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < end, "the run of wandb did not end"
        time.sleep(0.05)


def items_of(found: Any) -> dict[str, Any]:
    """Return the items of a history, summary or configuration of wandb."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


def test_wandb_gets_curves_settings_figures_answers_and_files_offline(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'litpeft[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    assert main([*arguments, "--logger", "wandb", "--run_dir", str(run)]) == 0
    [file] = run.glob("wandb/offline-run-*/*.wandb")
    records = finished_records(file)
    [started, *_] = [record.run for record in records if record.HasField("run")]
    record = read_record(run)
    assert started.project == "tiny"
    assert started.display_name == f"{record['run_name']}/seed0"
    assert list(started.tags) == ["lora", "Conversations", Path(arguments[4]).name]
    assert json.loads((run / "loggers.json").read_text()) == {"WandbLogger": started.run_id}
    settings = items_of(update for r in records if r.HasField("config") for update in r.config.update)
    assert settings["adapter"] == "lora"
    assert settings["lr"] == pytest.approx(3e-4)
    history = [items_of(r.history.item) for r in records if r.HasField("history")]
    found = {row["trainer/global_step"]: row["train_loss"] for row in history if "train_loss" in row}
    assert found == pytest.approx(losses(run))
    assert len(found) == 2
    shown = {name.partition("/")[0] for row in history for name in row}
    assert {"memory", "answers"} <= shown
    summary = items_of(update for r in records if r.HasField("summary") for update in r.summary.update)
    assert summary["val_loss"] == pytest.approx(record["val_loss"])
    assert set(summary) >= {name for name in FIGURES if record[name] is not None}
    resumed = RunNames(run, "tiny", "lora", 0, [], resumed=True)
    assert MAKERS["wandb"](resumed).version == started.run_id
    sent = {path.name for path in file.parent.glob("files/*")}
    assert {"record.json", "config.yaml", "curves.jsonl", "report.html"} <= sent


def test_mlflow_gets_curves_settings_figures_answers_and_files(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'litpeft[mlflow]'")
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert main([*arguments, "--logger", "csv,mlflow", "--run_dir", str(run)]) == 0
    client = MlflowClient(store)
    [found] = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    record = read_record(run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == f"{record['run_name']}/seed0"
    assert found.data.tags["run_dir"] == str(run)
    assert found.data.tags["tags"] == f"lora, Conversations, {Path(arguments[4]).name}"
    assert found.data.params["adapter"] == "lora"
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert {metric.step: metric.value for metric in history} == pytest.approx(losses(run))
    assert found.data.metrics["final/val_loss"] == pytest.approx(record["val_loss"])
    names = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert {"record.json", "config.yaml", "curves.jsonl", "report.html", "memory", "answers"} <= names
    [answers] = client.list_artifacts(found.info.run_id, "answers")
    text = Path(client.download_artifacts(found.info.run_id, answers.path)).read_text()
    assert text.count("expected: ") == 2
    assert json.loads((run / "loggers.json").read_text()) == {"MLFlowLogger": found.info.run_id}
    assert MAKERS["mlflow"](RunNames(run, "tiny", "lora", 0, [], resumed=True)).run_id == found.info.run_id
    assert "train_loss" in (run / "csv" / "version_0" / "metrics.csv").read_text()


def test_several_options_name_several_loggers() -> None:
    given = ["--logger", "csv", "--seed_everything", "1", "--logger=wandb,csv"]
    assert with_configs("fit", given) == ["--seed_everything", "1", "--logger=csv,wandb,csv"]
    assert logger_names("csv,wandb,csv") == ["csv", "wandb"]
    assert logger_names(None) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("wandbb", "--logger wandbb: there is no such logger (did you mean wandb?); give csv, wandb, mlflow, comet,"),
        ("csv,comet", "--logger comet: its package is missing; pip install 'litpeft[comet]'."),
    ],
)
def test_a_missing_logger_is_one_sentence(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: Any, given: str, message: str
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.comet._COMET_AVAILABLE", False)
    assert main([*arguments, "--logger", given, "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_logger_that_cannot_start_is_one_sentence(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Any) -> None:
        raise ConnectionError("no API key configured. Use wandb login.")

    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger.experiment", property(start))
    assert main([*arguments, "--logger", "wandb", "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "--logger wandb: no API key configured; log in with wandb login, or set WANDB_MODE=offline" in error
    assert error.count("\n") == 1


def test_loggers_of_lightning_get_the_names_of_the_run_where_none_are_given(tmp_path: Path) -> None:
    wandb = Namespace(name="mine", save_dir=".", project=None, id="abc", version=None)
    store = Namespace(experiment_name="lightning_logs", run_name=None, tags=None, run_id=None, tracking_uri="x")
    options = Namespace(seed_everything=3)
    options["trainer.logger"] = [
        Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=wandb, dict_kwargs={"group": "own"}),
        Namespace(class_path="lightning.pytorch.loggers.MLFlowLogger", init_args=store),
        Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(save_dir="here")),
    ]
    options["data.class_path"], options["model.init_args.model_name"] = "litpeft.data.SST2", "/models/tiny"
    record = {"experiment": "study", "run_name": "lora"}
    cli = SimpleNamespace(run_dir=tmp_path, recorder=SimpleNamespace(record=record), checkpoint=None)
    fill_in_loggers(options, cli, "lora")
    first = {"name": "mine", "save_dir": str(tmp_path), "project": "study", "id": "abc", "version": None}
    assert vars(wandb) == first
    assert options.trainer.logger[0].dict_kwargs == {"tags": ["lora", "SST2", "tiny"], "group": "own"}
    assert (store.experiment_name, store.run_name, store.run_id, store.tracking_uri) == (
        "study",
        "lora/seed3",
        None,
        "x",
    )
    assert store.tags == {"run_dir": str(tmp_path), "tags": "lora, SST2, tiny"}
    assert options.trainer.logger[2].init_args.save_dir == "here"


def test_curves_are_kept_without_any_logger(tmp_path: Path, arguments: list[str]) -> None:
    run = tmp_path / "run"
    assert main([*arguments, "--trainer.logger", "false", "--run_dir", str(run)]) == 0
    assert not list(run.glob("events*"))
    first, *lines = read_lines(run)
    assert first == {"step": 0, "tokens": 0, "seconds": 0.0, "values": {}}
    assert list(losses(run)) == [1, 3]
    tokens = [line["tokens"] for line in lines]
    assert tokens == sorted(tokens)
    record = read_record(run)
    assert lines[-1]["seconds"] == pytest.approx(record["train_seconds"], rel=1e-4)
    assert any("val_loss" in line["values"] for line in lines)


class _Refusing(Logger):
    name = version = "refusing"

    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_a_logger_that_fails_costs_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    loggers = [_Refusing(), CSVLogger(str(tmp_path))]
    send(loggers, "final", {"lr": 0.1}, {"val_loss": 0.5}, 3)
    assert capsys.readouterr().err == "litpeft: warning: _Refusing took no final: no route to host\n"
    assert "0.5" in (Path(loggers[1].log_dir) / "metrics.csv").read_text()


def test_an_outlet_is_found_by_the_name_of_the_class_of_a_logger() -> None:
    class MyLogger(_Refusing): ...

    class MyOutlet(Outlet):
        loggers = ("MyLogger",)

        def text(self, name: str, text: str, step: int) -> None:
            raise AssertionError(f"{name} {step}: {text}")

    try:
        assert isinstance(outlet_of(MyLogger()), MyOutlet)
        with pytest.raises(AssertionError, match=r"answers 3: \*\*one\*\*\n\nsecond: two"):
            outlet_of(MyLogger()).table("answers", ["first", "second"], [["one", "two"]], 3)
    finally:
        del Outlet._by_name["MyLogger"]


def test_comet_keeps_curves_settings_and_files_offline(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("comet_ml", reason="comet_ml is not installed: pip install 'litpeft[comet]'")
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    run = tmp_path / "run"
    assert main([*arguments, "--logger", "comet", "--run_dir", str(run)]) == 0
    [file] = run.glob("comet/*.zip")
    with zipfile.ZipFile(file) as archive:
        lines = archive.read("messages.json").decode().splitlines()
        started = json.loads(archive.read("experiment.json"))
    rows = [json.loads(line) for line in lines]
    metrics = [row["payload"]["metric"] for row in rows if row["type"] == "metric_msg"]
    found = {each["step"]: each["metricValue"] for each in metrics if each["metricName"] == "train_loss"}
    assert found == pytest.approx(losses(run))
    final = {each["metricName"]: each["metricValue"] for each in metrics}
    assert final["final/val_loss"] == pytest.approx(read_record(run)["val_loss"])
    settings = {
        row["payload"]["param"]["paramName"]: row["payload"]["param"] for row in rows if row["type"] == "parameter_msg"
    }
    assert settings["adapter"]["paramValue"] == "lora"
    uploads = [row["payload"]["additional_params"] or {} for row in rows if row["type"] == "file_upload"]
    sent = {each.get("fileName") or each.get("figName") for each in uploads}
    assert {"record.json", "config.yaml", "curves.jsonl", "report.html", "memory"} <= sent
    assert started["project_name"] == "tiny"


def test_the_database_of_trackio_has_curves_settings_and_figures(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'litpeft[trackio]'")
    run = tmp_path / "run"
    assert main([*arguments, "--logger", "trackio", "--run_dir", str(run)]) == 0
    with sqlite3.connect(tmp_path / "trackio" / "tiny.db") as database:
        rows = [(step, json.loads(values)) for step, values in database.execute("select step, metrics from metrics")]
    found = {step: values["train_loss"] for step, values in rows if "train_loss" in values}
    assert found == pytest.approx(losses(run))
    final = {name: value for _, values in rows for name, value in values.items()}
    assert final["final/val_loss"] == pytest.approx(read_record(run)["val_loss"])
    assert "| adapter | lora |" in final["settings"]["_value"]
    assert list((tmp_path / "trackio" / "media").rglob("*.png"))  # the picture of the memory


def test_trackio_gets_metrics_settings_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is replaced by a recording of the calls, as its documentation describes them."""
    calls: list[Any] = []

    class Run:
        def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
            calls.append((step, metrics))

        def finish(self) -> None:
            calls.append("finish")

    trackio = ModuleType("trackio")
    trackio.init = lambda **options: calls.append(options) or Run()
    trackio.Image, trackio.Markdown = (lambda value: ("image", value.shape)), (lambda value: ("markdown", value))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    logger = TrackioLogger("tiny", "lora/seed0", group="lora")
    send([logger], "close", "ok")  # nothing was logged yet
    assert calls == []
    logger.log_metrics({"train_loss": 1.0}, 3)
    send([logger], "settings", {"lr": 0.1})
    send([logger], "image", "memory", np.zeros((2, 4, 3), np.uint8), 5)
    send([logger], "close", "ok")
    begin, *rest = calls
    assert begin == {"project": "tiny", "name": "lora/seed0", "group": "lora", "resume": "allow", "embed": False}
    assert rest == [
        (3, {"train_loss": 1.0}),
        (0, {"settings": ("markdown", "| option | value |\n| --- | --- |\n| lr | 0.1 |")}),
        (5, {"memory": ("image", (2, 4, 3))}),
        "finish",
    ]
