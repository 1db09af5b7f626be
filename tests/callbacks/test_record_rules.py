"""What stands in the record of a run at each moment of its life, on a made-up trainer."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from litpeft.callbacks import run_record
from litpeft.callbacks.across_processes import PEAKS
from litpeft.callbacks.run_record import RunRecorder
from litpeft.errors import UserError
from litpeft.runs import curve_file
from litpeft.runs.folder import CONFIG, TRACEBACK
from litpeft.runs.record import FILE_NAME, new_record, read_record
from litpeft.training import processes

CONFIG_OF_RUN = {"trainer": {"max_epochs": 2, "max_steps": -1}, "seed_everything": 3}
TABLES = {"rows": {"train": 8}, "tables": {"train": {"fingerprint": "f"}, "val": {"fingerprint": "g"}}}


class Made:
    """A trainer in the middle of a fit."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.default_root_dir, self.is_global_zero, self.local_rank, self.global_step = str(folder), True, 0, 6
        self.enable_validation = False
        self.state, self.sanity_checking = SimpleNamespace(fn="fit"), False
        self.callback_metrics = {"val_loss": torch.tensor(0.5), "train_loss_epoch": torch.tensor(0.25)}
        self.fit_loop = SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=12)))
        )
        self.precision_plugin, self.loggers = SimpleNamespace(skipped_steps=1), []
        measured = dict.fromkeys(PEAKS) | {"peak_rss_bytes": 7, "energy_joules_by_source": {"gpu": 2.0}}
        self.callbacks = [SimpleNamespace(measured=lambda: measured | {"train_seconds": 1.5}), object()]
        self.datamodule = SimpleNamespace(epochs=lambda batches: batches / 8, describe=lambda: TABLES)
        vars(self).update(more)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of what is sent to loggers and said."""
    found: list[str] = []
    monkeypatch.setattr(run_record, "describe_setup", lambda trainer, task: {"adapter": "lora"})
    monkeypatch.setattr(run_record, "describe_model", lambda trainer, task: {"trainable_params": 12})
    for name in ("print_notices", "send_settings", "send_figures", "send_files"):
        monkeypatch.setattr(run_record, name, lambda *_, name=name: found.append(name))
    return found


def started(folder: Path, **more: Any) -> tuple[RunRecorder, Made]:
    recorder, trainer = RunRecorder(CONFIG_OF_RUN, experiment="e", run_name="r"), Made(folder, **more)
    recorder.setup(trainer, None, "fit")
    recorder.on_train_start(trainer, None)
    return recorder, trainer


def test_a_run_is_interrupted_until_it_has_ended(tmp_path: Path, told: list[str]) -> None:
    recorder, trainer = started(tmp_path)
    record = read_record(tmp_path)
    assert [record[name] for name in ("status", "error", "adapter", "trainable_params", "experiment", "run_name")] == [
        "interrupted", None, "lora", 12, "e", "r",
    ]  # fmt: skip
    assert yaml.safe_load((tmp_path / CONFIG).read_text()) == record["config"] == CONFIG_OF_RUN
    assert [line["step"] for line in curve_file.read_lines(tmp_path)] == [0]
    assert told == ["print_notices", "send_settings"]
    recorder.on_validation_end(trainer, None)
    recorder.on_saved(trainer)
    record = read_record(tmp_path)
    found = {name: record[name] for name in ("val_loss", "train_loss", "steps", "skipped_steps", "epochs")}
    assert found == {"val_loss": 0.5, "train_loss": 0.25, "steps": 6, "skipped_steps": 1, "epochs": 1.5}
    assert record["validations"] == [{"step": 6, "epochs": 1.5, "train_seconds": 1.5, "val_loss": 0.5}]
    assert (record["status"], record["peak_rss_bytes"]) == ("interrupted", 7)
    recorder.on_fit_end(trainer, None)
    record = read_record(tmp_path)
    assert (record["status"], record["error"]) == ("ok", None)
    assert 0 <= record["wall_seconds"] < 600
    assert told[2:] == ["send_figures", "send_files"]


def test_each_validation_is_a_row_but_not_the_check_before_training(tmp_path: Path) -> None:
    recorder, trainer = started(tmp_path)
    trainer.sanity_checking = True
    recorder.on_validation_end(trainer, None)
    trainer.sanity_checking, trainer.state.fn = False, "validate"
    recorder.on_validation_end(trainer, None)
    assert recorder.record["validations"] is None
    trainer.state.fn = "fit"
    trainer.callback_metrics["val_mae"] = torch.tensor(3.0)
    recorder.on_validation_end(trainer, None)
    trainer.global_step = 9
    del trainer.callback_metrics["train_loss_epoch"]
    recorder.on_validation_end(trainer, None)
    assert [row["step"] for row in recorder.record["validations"]] == [6, 9]
    assert recorder.record["validations"][0]["val_mae"] == 3.0
    assert recorder.record["train_loss"] is None


def test_only_the_first_process_writes(tmp_path: Path, told: list[str]) -> None:
    recorder, trainer = started(tmp_path, is_global_zero=False)
    recorder.announce(trainer)
    recorder.on_saved(trainer)
    recorder.on_fit_end(trainer, None)
    assert list(tmp_path.iterdir()) == []
    assert "send_figures" not in told


def test_measurements_of_several_processes_are_combined_unless_one_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, trainer = started(tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(
        run_record, "combine", lambda own, rank: (asked.append(rank), {"peak_rss_bytes": 99, "energy_joules": 5.0})[1]
    )
    recorder.on_validation_end(trainer, None)
    assert (asked, recorder.record["peak_rss_bytes"]) == ([], 7)
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    recorder.on_validation_end(trainer, None)
    assert (asked, recorder.record["peak_rss_bytes"], recorder.record["energy_joules"]) == ([0], 99, 5.0)
    monkeypatch.setattr(run_record.failure_messages, "from_other_ranks", lambda exception: None)
    recorder.on_exception(trainer, None, RuntimeError("lost"))
    record = read_record(tmp_path)
    assert asked == [0]  # the others may have ended
    # the peak of all processes so far stays, and their energy is unknown
    assert (record["peak_rss_bytes"], record["energy_joules"], record["energy_joules_by_source"]) == (99, None, None)


def test_alone_a_failed_run_keeps_its_energy(tmp_path: Path) -> None:
    recorder, trainer = started(tmp_path)
    recorder.on_exception(trainer, None, RuntimeError("lost"))
    assert read_record(tmp_path)["energy_joules_by_source"] == {"gpu": 2.0}


TERM = SIGTERMException()
TERM.code = 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("exception", "status", "error", "traced"),
    [
        (RuntimeError("a  bad\nshape"), "failed", "a bad shape", True),
        (RuntimeError(), "failed", "RuntimeError", True),
        (UserError("Give another file."), "failed", "Give another file.", False),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt", False),
        (TERM, "interrupted", "SIGTERM", False),
        (MemoryError("full"), "oom", "full", False),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom", "CUDA out of memory", False),
    ],
)
def test_how_a_run_ended_is_recorded(
    exception: BaseException, status: str, error: str, traced: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder, trainer = started(tmp_path)
    recorder.on_exception(trainer, None, exception)
    record = read_record(tmp_path)
    assert (record["status"], record["error"], record["steps"]) == (status, error, 6)
    assert (tmp_path / TRACEBACK).exists() == traced
    if traced:
        assert type(exception).__name__ in (tmp_path / TRACEBACK).read_text()
        assert exception.traceback_file == tmp_path / TRACEBACK
    hint = "litpeft: interrupted at step 6; no checkpoint was written yet.\n" if status == "interrupted" else ""
    assert capsys.readouterr().err == hint


def test_an_interrupted_run_names_its_newest_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder, trainer = started(tmp_path)
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    recorder.on_exception(trainer, None, KeyboardInterrupt())
    assert capsys.readouterr().err == (
        "litpeft: interrupted at step 6; to continue from step-000004, run the same command with --resume.\n"
    )


def test_the_reason_of_another_process_stands_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record.failure_messages, "from_other_ranks", lambda exception: "process 1: no space.")
    for exception, error in (
        (RuntimeError("connection closed"), "process 1: no space."),
        (UserError("My own mistake."), "My own mistake."),
        (MemoryError("full"), "full"),
    ):
        recorder, trainer = started(tmp_path)
        recorder.on_exception(trainer, None, exception)
        assert read_record(tmp_path)["error"] == error


@pytest.mark.parametrize("more", [{"state": SimpleNamespace(fn="test")}, {"is_global_zero": False}])
def test_other_processes_and_other_verbs_tell_and_write_nothing(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[str] = []
    monkeypatch.setattr(run_record.failure_messages, "publish", published.append)
    recorder = RunRecorder(CONFIG_OF_RUN)
    recorder.on_exception(Made(tmp_path, **more), None, RuntimeError("lost"))
    assert published == ["lost"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_before_training_is_recorded_unless_the_folder_holds_another_one(tmp_path: Path) -> None:
    recorder = RunRecorder(CONFIG_OF_RUN)
    recorder.on_exception(Made(tmp_path / "new"), None, UserError("No such file."))
    assert read_record(tmp_path / "new")["error"] == "No such file."
    for more in ({"stale": [tmp_path / "old" / FILE_NAME]}, {"resumed": new_record() | {"status": "ok"}}):
        (tmp_path / "old").mkdir(exist_ok=True)
        recorder = RunRecorder(CONFIG_OF_RUN, **more)
        trainer = Made(tmp_path / "old")
        recorder.announce(trainer)
        recorder.setup(trainer, None, "fit")
        recorder.on_exception(trainer, None, UserError("No such file."))
        assert list((tmp_path / "old").iterdir()) == []


def test_the_files_of_an_earlier_run_are_removed_when_training_starts(tmp_path: Path) -> None:
    stale = [tmp_path / "checkpoints", tmp_path / FILE_NAME, tmp_path / "gone"]
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / FILE_NAME).write_text("{}")
    (tmp_path / "mine.txt").touch()
    recorder, trainer = RunRecorder(CONFIG_OF_RUN, stale=stale), Made(tmp_path)
    recorder.setup(trainer, None, "fit")
    assert (tmp_path / "checkpoints").exists()
    recorder.on_train_start(trainer, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [CONFIG, curve_file.FILE_NAME, "mine.txt", FILE_NAME]
    )


def resumed_at(folder: Path, status: str, limits: dict[str, int], fn: str = "fit") -> tuple[RunRecorder, Made]:
    """Return the recorder of a run that is resumed with other limits, after its checkpoint was loaded."""
    saved = new_record() | {
        "config": CONFIG_OF_RUN,
        "steps": 6,
        "epochs": 1.5,
        "started_at": "2020-01-01T00:00:00+00:00",
    }
    config = CONFIG_OF_RUN | {"trainer": CONFIG_OF_RUN["trainer"] | limits}
    recorder = RunRecorder(config, resumed=saved | {"status": status, "data_summary": TABLES, "steps": 8})
    trainer = Made(folder, state=SimpleNamespace(fn=fn))
    checkpoint = {"record": json.dumps(saved | {"status": "interrupted"}), "curves": {curve_file.FILE_NAME: 4}}
    recorder.on_load_checkpoint(trainer, None, checkpoint)
    return recorder, trainer


def test_a_resumed_run_goes_on_from_the_record_of_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / curve_file.FILE_NAME).write_text("abc\ndef\n")
    recorder, trainer = resumed_at(tmp_path, "ok", {"max_epochs": 5})
    assert (recorder.record["steps"], recorder.record["status"]) == (6, "interrupted")
    assert recorder.record["config"]["trainer"]["max_epochs"] == 5
    recorder.setup(trainer, None, "fit")
    recorder.on_train_start(trainer, None)
    assert (tmp_path / curve_file.FILE_NAME).read_text() == "abc\n"  # what was logged after the checkpoint is cut
    assert read_record(tmp_path)["started_at"] == "2020-01-01T00:00:00+00:00"
    recorder.on_fit_end(trainer, None)
    assert read_record(tmp_path)["status"] == "ok"


def test_a_test_does_not_take_the_record_of_the_checkpoint(tmp_path: Path) -> None:
    recorder, _ = resumed_at(tmp_path, "ok", {}, fn="test")
    assert recorder.record["steps"] == 8


@pytest.mark.parametrize("status", ["interrupted", "failed", "oom"])
def test_a_run_that_was_killed_at_its_end_is_finished_without_a_step(status: str, tmp_path: Path) -> None:
    (tmp_path / curve_file.FILE_NAME).write_text("abc\ndef\n")
    recorder, trainer = resumed_at(tmp_path, status, {})
    recorder.on_fit_end(trainer, None)  # no training has started
    assert read_record(tmp_path)["status"] == "ok"
    assert read_record(tmp_path)["steps"] == 6
    assert (tmp_path / curve_file.FILE_NAME).read_text() == "abc\n"


@pytest.mark.parametrize(
    ("status", "limits", "sentence"),
    [
        ("ok", {}, "nothing to train: the run is already at step 6."),
        ("ok", {"max_steps": 6}, "nothing to train: the run is already at step 6, the limit of trainer.max_steps 6; give a higher one to train on."),
        ("interrupted", {"max_epochs": 1}, "nothing to train: the run is already at step 6, the limit of trainer.max_epochs 1; give a higher one to train on."),
    ],
)  # fmt: skip
def test_a_run_without_a_step_left_names_its_limit(
    status: str, limits: dict[str, int], sentence: str, tmp_path: Path
) -> None:
    recorder, trainer = resumed_at(tmp_path, status, limits)
    with pytest.raises(UserError) as error:
        recorder.on_fit_end(trainer, None)
    assert str(error.value) == sentence


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    recorder, trainer = resumed_at(tmp_path, "interrupted", {})
    trainer.datamodule.describe = lambda: {"tables": {"train": {"fingerprint": "f"}, "test": {"fingerprint": "new"}}}
    recorder.on_train_start(trainer, None)  # rows for a test may be added
    recorder, trainer = resumed_at(tmp_path, "interrupted", {})
    trainer.datamodule.describe = lambda: {"tables": {"train": {"fingerprint": "f"}, "val": {"fingerprint": "other"}}}
    with pytest.raises(
        UserError, match=r"^--resume: the data, or how this version prepares them, changed after the run"
    ):
        recorder.on_train_start(trainer, None)


def test_the_record_and_the_sizes_of_the_curves_are_in_the_checkpoint(tmp_path: Path) -> None:
    recorder, trainer = started(tmp_path)
    checkpoint: dict[str, Any] = {}
    recorder.on_save_checkpoint(trainer, None, checkpoint)
    assert json.loads(checkpoint["record"])["steps"] == 6
    assert checkpoint["curves"] == {curve_file.FILE_NAME: os.path.getsize(tmp_path / curve_file.FILE_NAME)}
    trainer.state.fn, other = "validate", {}
    recorder.on_save_checkpoint(trainer, None, other)
    assert other == {}


def test_a_test_adds_its_metrics_and_rows_to_the_record(tmp_path: Path) -> None:
    tested = new_record() | {"val_loss": 0.75, "status": "ok"}
    trainer = Made(tmp_path, callback_metrics={"test_loss": torch.tensor(0.125), "val_loss": torch.tensor(9.0)})
    trainer.datamodule.describe = lambda: {"rows": {"test": 4}, "tables": {"test": {"fingerprint": "h"}}, "more": 1}
    for earlier, rows in ((None, {"test": 4}), (TABLES | {"kept": 1}, {"train": 8, "test": 4})):
        recorder = RunRecorder(resumed=tested | {"data_summary": earlier})
        recorder.on_test_end(trainer, None)
        record = read_record(tmp_path)
        assert (record["test_loss"], record["val_loss"], record["status"]) == (0.125, 0.75, "ok")
        assert record["data_summary"]["rows"] == rows
        assert record["data_summary"].get("kept") == (1 if earlier else None)
        assert "more" not in record["data_summary"]
    (tmp_path / FILE_NAME).unlink()
    RunRecorder().on_test_end(trainer, None)  # of no run
    trainer.is_global_zero = False
    RunRecorder(resumed=tested).on_test_end(trainer, None)
    assert not (tmp_path / FILE_NAME).exists()


def test_a_new_run_marks_its_folder_before_loggers_write_there(tmp_path: Path) -> None:
    RunRecorder(CONFIG_OF_RUN).announce(Made(tmp_path))
    assert read_record(tmp_path)["status"] == "interrupted"


def test_a_verb_without_training_takes_no_folder(tmp_path: Path) -> None:
    RunRecorder(CONFIG_OF_RUN).setup(Made(tmp_path), None, "validate")
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_that_never_trained_has_nothing_to_train(tmp_path: Path) -> None:
    recorder = RunRecorder(CONFIG_OF_RUN, stale=[tmp_path / FILE_NAME])
    with pytest.raises(UserError, match=r"^nothing to train: the run is already at step 0\.$"):
        recorder.on_fit_end(Made(tmp_path, global_step=0), None)
    assert list(tmp_path.iterdir()) == []
