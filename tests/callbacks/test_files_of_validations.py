"""What is written after a validation or a prediction: the confusion matrix, the lines of curves, and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from litpeft.callbacks import PredictionWriter
from litpeft.callbacks.confusion import FILE, ConfusionRecorder
from litpeft.callbacks.curve_logger import CurveLogger
from litpeft.callbacks.event_files import event_file
from litpeft.runs.curve_file import read_lines

MATRIX = SimpleNamespace(compute=lambda: torch.tensor([[3, 1], [0, 2]]))


def validated(folder: Path, task: Any, **more: Any) -> dict[str, Any]:
    data = SimpleNamespace(label_names=["böse", "gut"])
    given = {"is_global_zero": True, "sanity_checking": False, "state": SimpleNamespace(fn="fit")} | more
    recorder = ConfusionRecorder()
    assert recorder.measured() == {}
    trainer = SimpleNamespace(datamodule=data, global_step=7, default_root_dir=str(folder), **given)
    recorder.on_validation_epoch_end(trainer, task)
    return recorder.measured()


def test_the_confusion_matrix_of_a_classifier_is_written(tmp_path: Path) -> None:
    assert validated(tmp_path, SimpleNamespace(confusion=MATRIX)) == {"confusion_matrix": FILE}
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert json.loads(text) == {"step": 7, "label_names": ["böse", "gut"], "rows": [[3, 1], [0, 2]]}
    assert "böse" in text
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("task", "more", "named"),
    [
        (SimpleNamespace(confusion=None), {}, False), (SimpleNamespace(), {}, False),
        (SimpleNamespace(confusion=MATRIX), {"sanity_checking": True}, False),
        (SimpleNamespace(confusion=MATRIX), {"state": SimpleNamespace(fn="validate")}, False),
        (SimpleNamespace(confusion=MATRIX), {"is_global_zero": False}, True),  # the first process writes it
    ],
)  # fmt: skip
def test_otherwise_no_matrix_is_written(task: Any, more: dict[str, Any], named: bool, tmp_path: Path) -> None:
    assert validated(tmp_path, task, **more) == ({"confusion_matrix": FILE} if named else {})
    assert list(tmp_path.iterdir()) == []


def test_a_line_of_curves_counts_steps_from_one_and_leaves_benchmarks_out(tmp_path: Path) -> None:
    logger = CurveLogger(tmp_path, lambda: (640, 1.5))
    logger.log_metrics({"train_loss": torch.tensor(0.5), "lr": 0.1, "benchmark/blimp_acc": 0.5}, 9)
    logger.log_metrics({"benchmark_stderr/blimp_acc": 0.5}, 10)
    logger.log_metrics({"hp_metric": 1.0})  # without a step
    logger.log_hyperparams({"rank": 4})
    assert list(read_lines(tmp_path)) == [
        {"step": 10, "tokens": 640, "seconds": 1.5, "values": {"train_loss": 0.5, "lr": 0.1}}
    ]
    assert (logger.save_dir, logger.name, logger.version) == (str(tmp_path), "curves", "")


@pytest.mark.parametrize("named", [False, True])
def test_predictions_are_in_the_order_of_the_input(
    named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "mine.jsonl" if named else tmp_path / "predictions.jsonl"
    writer = PredictionWriter(str(file) if named else None)
    data = SimpleNamespace(
        table=lambda split: ({"text": ["eins", "zwei", "drüben"]}, {}) if split == "predict" else None
    )
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), datamodule=data)
    for rows in ([{"row": 2, "label": "c"}, {"row": 0, "label": "a"}], [{"row": 1, "label": "b"}]):
        writer.on_predict_batch_end(trainer, None, rows, None, 0)
    writer.on_predict_end(trainer, None)
    assert file.read_text(encoding="utf-8").splitlines() == [
        '{"label": "a", "text": "eins"}', '{"label": "b", "text": "zwei"}', '{"label": "c", "text": "drüben"}'
    ]  # fmt: skip
    assert capsys.readouterr().out == f"3 predictions: {file}\n"


def test_without_tensorboard_no_event_file_is_written() -> None:
    assert event_file(SimpleNamespace(loggers=[CurveLogger(Path(), lambda: (0, 0.0))])) is None
