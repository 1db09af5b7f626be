"""Malicious files: code in checkpoints, caches and models is not run, and paths cannot leave the run folder."""

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


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


@pytest.fixture
def run(tmp_path: Path, fit_arguments: list[str]) -> Path:
    assert main([*fit_arguments, "--model.adapter", "LoRA", "--run_dir", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("write", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))])
def test_a_checkpoint_with_code_is_refused(
    tmp_path: Path, run: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture, write: object
) -> None:
    marker, checkpoint = tmp_path / "marker", newest_checkpoint(run)
    write({"state_dict": {}, "malicious": Malicious(marker)}, checkpoint / "loop.pt")
    resign(checkpoint)
    table = fit_arguments[fit_arguments.index("--data.val_file") + 1]
    assert main(["predict", "--run_dir", str(run), "--data.predict_file", table]) == 2
    assert (
        main(
            [*fit_arguments, "--model.adapter", "LoRA", "--run_dir", str(run), "--resume", "--trainer.max_epochs", "2"]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert not marker.exists()
    assert "Traceback" not in error
    assert str(checkpoint) in error


def resign(folder: Path) -> None:
    """Write matching checksums, as an attacker would."""
    names = [line.split("  ", 1)[1] for line in (folder / SUMS).read_text().splitlines()]
    (folder / SUMS).write_text("".join(f"{file_hash(folder / name)}  {name}\n" for name in names))


def test_a_cached_table_with_code_is_built_again(
    tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITPEFT_CACHE", str(tmp_path / "cache"))
    assert main([*fit_arguments, "--run_dir", str(tmp_path / "a")]) == 0
    marker = tmp_path / "marker"
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != SUMS]
    assert {path.suffix for path in files} == {".arrow", ".json"}
    for path in files:
        path.write_bytes(pickle.dumps(Malicious(marker)))
        for sums in (folder for folder in path.parents if (folder / SUMS).exists()):
            resign(sums)
    assert main([*fit_arguments, "--run_dir", str(tmp_path / "b")]) == 0
    error = capsys.readouterr().err
    assert not marker.exists()
    assert error.count("the table is built again") == 2
    assert read_record(tmp_path / "a")["val_loss"] == read_record(tmp_path / "b")["val_loss"]


def test_a_model_with_its_own_code_is_refused(
    tmp_path: Path, tiny_model: str, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    marker, model = tmp_path / "marker", tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "mine.MyConfig", "AutoModelForSequenceClassification": "mine.MyModel"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": names}))
    (model / "mine.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    arguments = [str(model) if word == tiny_model else word for word in fit_arguments]
    assert main([*arguments, "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert not marker.exists()
    assert f"model.model_name {model}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("checkpoint", ["../other/checkpoints/step-000001", "/tmp", "checkpoints/../../other"])
def test_a_record_cannot_name_a_checkpoint_outside_its_folder(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture, fit_arguments: list[str], checkpoint: str
) -> None:
    record = json.loads((run / "record.json").read_text())
    shutil.copytree(run, tmp_path / "other")
    (run / "record.json").write_text(json.dumps(record | {"checkpoint": checkpoint}))
    table = fit_arguments[fit_arguments.index("--data.val_file") + 1]
    assert main(["predict", "--run_dir", str(run), "--data.predict_file", table]) == 2
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "merged"]) == 2
    error = capsys.readouterr().err
    assert error.count("is outside the run folder") == 2


def test_a_record_cannot_name_examples_outside_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tests.analysis.comparison.build import write_run

    for adapter in ("lora", "dora"):
        write_run(tmp_path / adapter, adapter, 0, examples={"loss": [0.1, 0.2], "correct": [1, 0]})
        record = json.loads((tmp_path / adapter / "record.json").read_text())
        (tmp_path / "secret.json").write_text("{}")
        (tmp_path / adapter / "record.json").write_text(json.dumps(record | {"val_examples": "../secret.json"}))
    assert main(["compare", str(tmp_path / "lora"), str(tmp_path / "dora"), "--examples"]) == 2
    assert "is outside the run folder" in capsys.readouterr().err
