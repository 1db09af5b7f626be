"""Data from others is data: what it tries to run is not run, and where it tries to go it does not get."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from litpeft.__main__ import main
from litpeft.runs.atomic_write import SUMS, file_hash
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.mark,)


@pytest.fixture
def run(tmp_path: Path, words: list[str]) -> Path:
    assert main([*words, "--model.adapter", "LoRA", "--run_dir", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("write", [torch.save, lambda told, path: path.write_bytes(pickle.dumps(told))])
def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, run: Path, words: list[str], capsys: pytest.CaptureFixture, write: object
) -> None:
    mark, checkpoint = tmp_path / "mark", newest_checkpoint(run)
    write({"state_dict": {}, "evil": Evil(mark)}, checkpoint / "loop.pt")
    resign(checkpoint)
    table = words[words.index("--data.val_file") + 1]
    assert main(["predict", "--run_dir", str(run), "--data.predict_file", table]) == 2
    assert (
        main([*words, "--model.adapter", "LoRA", "--run_dir", str(run), "--resume", "--trainer.max_epochs", "2"]) == 2
    )
    told = capsys.readouterr().err
    assert not mark.exists()
    assert "Traceback" not in told
    assert str(checkpoint) in told


def resign(folder: Path) -> None:
    """As one would who wants it to be read: with sums that fit."""
    names = [line.split("  ", 1)[1] for line in (folder / SUMS).read_text().splitlines()]
    (folder / SUMS).write_text("".join(f"{file_hash(folder / name)}  {name}\n" for name in names))


def test_a_cached_table_that_would_run_code_is_made_again(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITPEFT_CACHE", str(tmp_path / "cache"))
    assert main([*words, "--run_dir", str(tmp_path / "a")]) == 0
    mark = tmp_path / "mark"
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != SUMS]
    assert {path.suffix for path in files} == {".arrow", ".json"}
    for path in files:
        path.write_bytes(pickle.dumps(Evil(mark)))
        for sums in (folder for folder in path.parents if (folder / SUMS).exists()):
            resign(sums)
    assert main([*words, "--run_dir", str(tmp_path / "b")]) == 0
    told = capsys.readouterr().err
    assert not mark.exists()
    assert told.count("the table is built again") == 2
    assert read_record(tmp_path / "a")["val_loss"] == read_record(tmp_path / "b")["val_loss"]


def test_a_model_that_brings_its_own_code_is_refused(
    tmp_path: Path, tiny_model: str, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    mark, model = tmp_path / "mark", tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "mine.MyConfig", "AutoModelForSequenceClassification": "mine.MyModel"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": names}))
    (model / "mine.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    asked = [str(model) if word == tiny_model else word for word in words]
    assert main([*asked, "--run_dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert not mark.exists()
    assert f"model.model_name {model}" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("named", ["../other/checkpoints/step-000001", "/tmp", "checkpoints/../../other"])
def test_a_record_cannot_lead_out_of_its_folder(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture, words: list[str], named: str
) -> None:
    record = json.loads((run / "record.json").read_text())
    shutil.copytree(run, tmp_path / "other")
    (run / "record.json").write_text(json.dumps(record | {"checkpoint": named}))
    table = words[words.index("--data.val_file") + 1]
    assert main(["predict", "--run_dir", str(run), "--data.predict_file", table]) == 2
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "merged"]) == 2
    told = capsys.readouterr().err
    assert told.count("is outside the run folder") == 2


def test_a_record_cannot_have_other_files_read_as_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tests.analysis.comparison.build import write_run

    for adapter in ("lora", "dora"):
        write_run(tmp_path / adapter, adapter, 0, examples={"loss": [0.1, 0.2], "correct": [1, 0]})
        record = json.loads((tmp_path / adapter / "record.json").read_text())
        (tmp_path / "secret.json").write_text("{}")
        (tmp_path / adapter / "record.json").write_text(json.dumps(record | {"val_examples": "../secret.json"}))
    assert main(["compare", str(tmp_path / "lora"), str(tmp_path / "dora"), "--examples"]) == 2
    assert "is outside the run folder" in capsys.readouterr().err
