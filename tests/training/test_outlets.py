"""What each kind of logger is told, with stand-ins that have the names of the loggers' classes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import numpy as np
import pytest
from lightning.pytorch.utilities import rank_zero_only

from litpeft.training import processes
from litpeft.training.grouped_tensorboard import tag
from litpeft.training.outlets import Outlet, outlet_of, send
from litpeft.training.trackio_logger import TrackioLogger

PIXELS = np.zeros((2, 3, 3), dtype=np.uint8)
ROWS = [("one", "two"), ("three", "four")]


def logger_of(name: str, **attributes: Any) -> Any:
    """Return a logger of a class of this name, or of a sub-class that a user has derived from it."""
    base = type(name, (), {})
    logger = type(f"My{name}", (base,), {})()
    for method in ("log_text", "log_image", "log_table", "log_object", "log_hyperparams", "log_metrics", "save"):
        setattr(logger, method, MagicMock())
    logger.experiment = logger._experiment = MagicMock()
    vars(logger).update(attributes)
    return logger


def tell_all(logger: Any) -> None:
    send([logger], "text", "note", "**bold**", 7)
    send([logger], "image", "picture", PIXELS, 7)
    send([logger], "table", "answers", ("question", "answer"), ROWS, 7)
    send([logger], "settings", {"rank": 8})
    send([logger], "final", {"rank": 8}, {"val_loss": 0.5}, 7)


def test_tensorboard_gets_texts_images_and_the_hparams_tab() -> None:
    logger = logger_of("TensorBoardLogger")
    tell_all(logger)
    assert logger.experiment.mock_calls == [
        call.add_text("note", "**bold**", 7),
        call.add_image("picture", PIXELS, 7, dataformats="HWC"),
        call.add_text("answers", "**one**\n\nanswer: two\n\n---\n\n**three**\n\nanswer: four", 7),
        call.flush(),
    ]
    assert logger.log_hyperparams.mock_calls == [call({"rank": 8}, {"val_loss": 0.5}, step=7)]
    assert not outlet_of(logger).takes_files


def test_the_file_of_curves_gets_curves_only() -> None:
    logger = logger_of("CurveLogger")
    tell_all(logger)
    assert not logger.log_hyperparams.called
    assert not logger.log_metrics.called
    assert not logger.experiment.mock_calls


def test_wandb_gets_tables_images_the_summary_and_copies_of_files(tmp_path: Path) -> None:
    logger = logger_of("WandbLogger")
    tell_all(logger)
    assert logger.log_text.mock_calls == [call("note", ["text"], [["**bold**"]], step=7)]
    assert logger.log_image.mock_calls == [call("picture", [PIXELS], step=7)]
    assert logger.log_table.mock_calls == [
        call("answers", ["question", "answer"], [["one", "two"], ["three", "four"]], step=7)
    ]
    assert logger.log_hyperparams.mock_calls == [call({"rank": 8})]
    assert logger.experiment.summary.update.mock_calls == [call({"val_loss": 0.5})]
    (tmp_path / "there").mkdir()
    (tmp_path / "record.json").write_text("{}")
    logger.experiment.dir = str(tmp_path / "there")
    send([logger], "file", tmp_path / "record.json")
    copy = str(tmp_path / "there" / "record.json")
    assert Path(copy).read_text() == "{}"
    assert logger.experiment.save.mock_calls == [call(copy, base_path=logger.experiment.dir, policy="now")]
    for status, code in (("ok", 0), ("failed", 1), ("interrupted", 1)):
        send([logger], "close", status)
        assert logger.experiment.finish.mock_calls[-1] == call(exit_code=code)
    assert outlet_of(logger).takes_files


def test_mlflow_gets_artefacts_and_the_status() -> None:
    logger = logger_of("MLFlowLogger", run_id="abc", _initialized=True)
    tell_all(logger)
    send([logger], "file", Path("run/record.json"))
    assert logger.experiment.mock_calls == [
        call.log_text("abc", "**bold**", "note/step-000007.md"),
        call.log_image("abc", PIXELS, "picture/step-000007.png"),
        call.log_text("abc", "**one**\n\nanswer: two\n\n---\n\n**three**\n\nanswer: four", "answers/step-000007.md"),
        call.log_artifact("abc", "run/record.json"),
    ]
    assert logger.log_metrics.mock_calls == [call({"final/val_loss": 0.5}, step=7)]
    assert logger.save.mock_calls == [call()]
    for status, ended in (("ok", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED"), ("oom", "FAILED")):
        send([logger], "close", status)
        assert logger.experiment.set_terminated.mock_calls[-1] == call("abc", ended)
    logger._initialized = False
    logger.experiment.reset_mock()
    send([logger], "close", "ok")
    assert not logger.experiment.mock_calls
    assert outlet_of(logger).takes_files


def test_comet_gets_texts_images_tables_and_files() -> None:
    logger = logger_of("CometLogger")
    tell_all(logger)
    send([logger], "file", Path("run/record.json"))
    (text, image, table, file) = logger.experiment.mock_calls
    assert text == call.log_text("**bold**", step=7, metadata={"name": "note"})
    assert image[0] == "log_image"
    assert (image[1][0].size, image[2]) == ((3, 2), {"name": "picture", "step": 7})
    rows = [["one", "two"], ["three", "four"]]
    assert table == call.log_table("answers-000007.csv", rows, headers=["question", "answer"])
    assert file == call.log_asset("run/record.json", file_name="record.json")
    send([logger], "close", "ok")
    assert logger.experiment.end.mock_calls == [call()]
    assert outlet_of(logger).takes_files


@pytest.mark.parametrize("name", ["WandbLogger", "CometLogger", "TrackioLogger"])
def test_a_service_that_was_never_reached_is_not_reached_to_end_its_run(name: str) -> None:
    logger = logger_of(name, _experiment=None)
    send([logger], "close", "ok")
    assert not logger.experiment.mock_calls


def test_an_unknown_logger_gets_settings_and_final_figures() -> None:
    logger = logger_of("LoggerOfMine")
    tell_all(logger)
    send([logger], "file", Path("record.json"))
    send([logger], "flush")
    send([logger], "close", "ok")
    assert logger.log_hyperparams.mock_calls == [call({"rank": 8})]
    assert logger.log_metrics.mock_calls == [call({"final/val_loss": 0.5}, step=7)]
    assert type(outlet_of(logger)) is Outlet
    assert (outlet_of(logger).takes_files, outlet_of(logger).is_remote) == (False, True)


def test_a_service_that_fails_costs_a_warning_and_the_first_process_alone_sends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, other = logger_of("CometLogger"), logger_of("CometLogger")
    failing.experiment.log_asset.side_effect = ConnectionError("no\n  network " + "x" * 400)
    send([failing, other], "file", Path("a"))
    shown = ("no network " + "x" * 400)[:300]
    assert capsys.readouterr().err == f"litpeft: warning: MyCometLogger took no file: {shown}\n"
    assert other.experiment.log_asset.called
    failing.experiment.log_asset.side_effect = ConnectionError()
    send([failing], "file", Path("a"))
    assert capsys.readouterr().err == "litpeft: warning: MyCometLogger took no file: ConnectionError\n"
    local = logger_of("TensorBoardLogger")
    local.experiment.add_text.side_effect = OSError("No space left")
    with pytest.raises(OSError, match="No space left"):
        send([local], "text", "note", "x", 1)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    other.experiment.reset_mock()
    send([other], "file", Path("a"))
    assert not other.experiment.mock_calls


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_loss", "train/loss"), ("val_accuracy", "val/accuracy"), ("test_f1", "test/f1"), ("lr", "train/lr"),
        ("epoch", "train/epoch"), ("train_tokens_per_second", "speed/tokens_per_second"), ("my_train_x", "my_train_x"),
        ("model_flops_per_second", "speed/model_flops_per_second"), ("val_rows_per_second", "val/rows_per_second"),
        ("memory/rss_bytes", "memory/rss_bytes"), ("lr-AdamW", "lr-AdamW"),
    ],
)  # fmt: skip
def test_the_tags_of_tensorboard_are_in_groups(name: str, expected: str) -> None:
    assert tag(name) == expected


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    module = MagicMock(Markdown=lambda text: ("markdown", text), Image=lambda pixels: ("image", pixels.shape))
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def test_trackio_continues_a_run_of_the_same_name_and_begins_it_once(trackio: MagicMock) -> None:
    logger = TrackioLogger("project", "run", group="g")
    assert (logger.name, logger.version) == ("project", "run")
    assert not trackio.init.called
    logger.log_metrics({"val_loss": 0.5}, 3)
    logger.log_hyperparams({"rank": 8, "lr": 0.1})
    send([logger], "text", "note", "**bold**", 7)
    send([logger], "image", "picture", PIXELS, 7)
    assert trackio.init.mock_calls[0] == call(project="project", name="run", resume="allow", embed=False, group="g")
    assert len([each for each in trackio.mock_calls if each[0] == "init"]) == 1
    assert trackio.init.return_value.log.mock_calls == [
        call({"val_loss": 0.5}, step=3),
        call({"settings": ("markdown", "| option | value |\n| --- | --- |\n| rank | 8 |\n| lr | 0.1 |")}, step=0),
        call({"note": ("markdown", "**bold**")}, step=7),
        call({"picture": ("image", (2, 3, 3))}, step=7),
    ]
    send([logger], "close", "ok")
    assert trackio.init.return_value.finish.mock_calls == [call()]
    again = TrackioLogger("project", "run", resume="never")
    again.log_metrics({"a": 1.0})
    assert trackio.init.mock_calls[-2] == call(project="project", name="run", resume="never", embed=False)


def test_another_process_than_the_first_begins_no_run_of_trackio(
    trackio: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TrackioLogger("project", "run")
    logger.log_metrics({"val_loss": 0.5}, 3)
    logger.experiment.log({"val_loss": 0.5})  # of a callback that uses the run itself
    assert not trackio.init.called


def test_only_first_processes_are_first() -> None:
    for variables, first in (
        ({}, True), ({"RANK": "0", "LOCAL_RANK": "0"}, True), ({"RANK": "1"}, False), ({"SLURM_PROCID": "2"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False), ({"LOCAL_RANK": "3"}, False),
    ):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name in processes.RANK_VARIABLES:
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert processes.is_first_process() is first


def test_an_outlet_of_a_user_is_found_by_the_names_of_its_loggers() -> None:
    class PrintingOutlet(Outlet):
        loggers = ("PrintingLogger", "LoudLogger")

        def text(self, name: str, text: str, step: int) -> None:
            self.logger.seen = (name, text, step)

    for name in PrintingOutlet.loggers:
        logger = SimpleNamespace()
        logger = type(name, (), {})()
        send([logger], "text", "note", "x", 1)
        assert logger.seen == ("note", "x", 1)
