"""The file with the result of each validation row: in the order of the file, with the rows it is about."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from litpeft.callbacks.event_files import curve_sizes, cut_curves
from litpeft.callbacks.row_results import FILE, MOST_WRONG, ExampleRecorder
from litpeft.callbacks.run_record import _status

NAMES = ["bad", "good"]
TEXTS = {row: f"text {row}" for row in range(40)}


def evaluate(folder: Path, results: dict[int, dict[str, Any]], size: int, backwards: bool = False) -> dict[str, Any]:
    """Return the file after a validation of these rows in batches of this size."""
    numbers = sorted(results, reverse=backwards)
    table = SimpleNamespace(column_names=["input_ids"], __getitem__=None)
    rows = {row: {"input_ids": TEXTS[row]} for row in TEXTS}
    table = type("Table", (), {"column_names": ["input_ids"], "__getitem__": lambda self, row: rows[row]})()
    data = SimpleNamespace(
        table=lambda split: (table, {"fingerprint": "f"}), label_names=NAMES,
        tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: ids),
    )  # fmt: skip
    trainer = SimpleNamespace(
        sanity_checking=False, datamodule=data, is_global_zero=True, global_step=7, default_root_dir=str(folder)
    )
    task, recorder = SimpleNamespace(return_row_results=True), ExampleRecorder(True)
    recorder.on_validation_epoch_start(trainer, task)
    for start in range(0, len(numbers), size):
        batch = numbers[start : start + size]
        outputs = {name: torch.tensor([results[row][name] for row in batch]) for name in results[batch[0]]}
        recorder.on_validation_batch_end(trainer, task, outputs, {"row": torch.tensor(batch)})
    recorder.on_validation_epoch_end(trainer, task)
    text = (folder / FILE).read_text()
    assert recorder.measured()["val_examples_bytes"] == len(text.encode())
    return json.loads(text)


def made_up(rows: list[int]) -> dict[int, dict[str, Any]]:
    return {
        row: {"loss": row / 8, "correct": int(row % 3 == 0), "label": row % 2, "prediction": 1 - row % 2, "probability": (row * 7 % 40) / 40}
        for row in rows
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("backwards", [False, True])
def test_results_are_in_the_order_of_the_file_whatever_the_batches(tmp_path: Path, size: int, backwards: bool) -> None:
    results = made_up(list(range(40)))
    found = evaluate(tmp_path, results, size, backwards)
    assert found["step"] == 7
    assert found["loss"] == [results[row]["loss"] for row in range(40)]
    assert found["correct"] == [results[row]["correct"] for row in range(40)]
    wrong = sorted(
        (row for row in results if not results[row]["correct"]), key=lambda row: -results[row]["probability"]
    )
    assert [each["row"] for each in found["wrong"]] == wrong[:MOST_WRONG]
    for each in found["wrong"]:
        row = each["row"]
        assert each["text"] == TEXTS[row]
        assert (each["label"], each["prediction"]) == (NAMES[row % 2], NAMES[1 - row % 2])
        assert each["probability"] == pytest.approx(results[row]["probability"])


def test_the_table_names_the_rows(tmp_path: Path) -> None:
    names = [evaluate(tmp_path, made_up(rows), 4)["table"] for rows in ([0, 1, 2], [0, 1, 3], [0, 1, 2, 3], [2, 1, 0])]
    assert names[0] == names[3]
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("exception", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SIGTERMException(), "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("size mismatch"), "failed"),
    ],
)
def test_how_a_run_ended(exception: BaseException, status: str) -> None:
    assert _status(exception)[0] == status
    assert _status(exception)[1]


def test_a_run_that_a_signal_stopped_names_the_signal() -> None:
    stopped = SIGTERMException()
    stopped.code = 128 + 10
    assert _status(stopped) == ("interrupted", "SIGUSR1")


def test_curves_after_the_checkpoint_are_cut_and_later_files_removed(tmp_path: Path) -> None:
    first, second, now = (tmp_path / f"events.out.tfevents.{number}" for number in (1, 2, 3))
    first.write_text("12345")
    (tmp_path / "curves.jsonl").write_text("abc\n")
    sizes = curve_sizes(tmp_path)
    assert sizes == {first.name: 5, "curves.jsonl": 4}
    first.write_text("1234567")
    (tmp_path / "curves.jsonl").write_text("abc\ndef\n")
    for path in (second, now):
        path.write_text("x")
    (tmp_path / "other").write_text("stays")
    cut_curves(tmp_path, sizes, keep=now)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        first.name: "12345", "curves.jsonl": "abc\n", now.name: "x", "other": "stays"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "rows", "stage", "kept"),
    [
        (None, 10_000, "fit", True), (None, 10_001, "fit", False), (None, None, "fit", False), (True, 10_001, "fit", True),
        (False, 5, "fit", False), (None, 5, "validate", False), (True, 5, "test", False), (None, 5, "early", False),
    ],
)  # fmt: skip
def test_the_results_of_up_to_ten_thousand_rows_are_kept_unless_asked_otherwise(
    given: bool | None, rows: int | None, stage: str, kept: bool
) -> None:
    data = SimpleNamespace(rows={} if rows is None else {"val": range(rows)})
    task = SimpleNamespace()
    ExampleRecorder(given).setup(SimpleNamespace(datamodule=data), task, stage)
    assert task.return_row_results is kept
    if given is None:
        ExampleRecorder().setup(SimpleNamespace(datamodule=None), task, stage)  # dataloaders
        assert task.return_row_results is False


@pytest.mark.parametrize(
    ("outputs", "returned", "checking", "kept"),
    [
        ({"loss": torch.ones(3)}, True, False, True), ({"loss": torch.ones(3)}, False, False, False),
        ({"loss": torch.ones(3)}, True, True, False), ({"loss": torch.ones(2)}, True, False, False),
        ({"loss": torch.ones(3, 1)}, True, False, False), ({"loss": [1, 2, 3]}, True, False, False),
        ({"loss": torch.ones(3), "correct": torch.ones(())}, True, False, False), (None, True, False, False),
        (torch.ones(3), True, False, False),
    ],
)  # fmt: skip
def test_what_a_task_of_a_user_returns_is_kept_only_by_row(
    outputs: Any, returned: bool, checking: bool, kept: bool, tmp_path: Path
) -> None:
    data = SimpleNamespace(table=lambda split: (None, {"fingerprint": "f"}))
    trainer = SimpleNamespace(
        sanity_checking=checking, datamodule=data, is_global_zero=True, global_step=7, default_root_dir=str(tmp_path)
    )
    recorder, task = ExampleRecorder(True), SimpleNamespace(return_row_results=returned)
    recorder.on_validation_epoch_start(trainer, task)
    recorder.on_validation_batch_end(trainer, task, outputs, {"row": torch.arange(3)})
    recorder.on_validation_epoch_end(trainer, task)
    assert (tmp_path / FILE).exists() == kept
    assert set(recorder.measured()) == (
        {"val_examples", "val_examples_bytes", "val_examples_seconds"} if kept else set()
    )
    if kept:
        assert json.loads((tmp_path / FILE).read_text())["loss"] == [1.0, 1.0, 1.0]
        assert recorder.measured()["val_examples"] == FILE
    recorder.on_validation_epoch_start(trainer, task)  # the next one has rows of its own
    (tmp_path / FILE).unlink(missing_ok=True)
    recorder.on_validation_epoch_end(trainer, task)
    assert not (tmp_path / FILE).exists()


def test_a_text_of_a_wrong_prediction_has_up_to_500_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEXTS, 1, "x" * 600)
    found = evaluate(tmp_path, made_up([1]), 1)
    assert found["wrong"] == [
        {"row": 1, "text": "x" * 500, "label": "good", "prediction": "bad", "probability": pytest.approx(7 / 40)}
    ]
