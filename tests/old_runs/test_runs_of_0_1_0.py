"""Runs written by litpeft 0.1.0 still work: they resume, predict, export, compare and report.

Commit 79bd0ee made `runs_of_0_1_0.zip` in /old_runs: a tiny BERT, its data, two finished runs per strategy (full
fine-tuning, LoRA), a LoRA run killed at step 10 of 48 with a checkpoint at step 8, the final state of that run without
the kill (`expected/`), and the predictions of a finished run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from litpeft.__main__ import main
from litpeft.analysis.comparison import compare
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record

ZIP = Path(__file__).with_name("runs_of_0_1_0.zip")


@pytest.fixture
def old_runs(tmp_path: Path) -> Path:
    """The unpacked runs, with the paths in their configurations and records changed to the new folder."""
    shutil.unpack_archive(ZIP, tmp_path)
    for path in [*tmp_path.rglob("config.yaml"), *tmp_path.rglob("record.json")]:
        path.write_text(path.read_text().replace("/old_runs", str(tmp_path)))
    return tmp_path


def test_a_killed_run_resumes_from_its_checkpoint(old_runs: Path) -> None:
    run_dir = old_runs / "runs" / "lora" / "seed2"
    before = read_record(run_dir)
    assert (before["status"], newest_checkpoint(run_dir).name) == ("interrupted", "step-000008")
    quiet = ["--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--run_dir", str(run_dir), "--resume", *quiet]) == 0
    record = read_record(run_dir)
    expected = json.loads((old_runs / "expected" / "record.json").read_text())
    assert (record["status"], record["steps"], record["adapter"]) == ("ok", 48, "lora")
    assert record["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-3)  # rounding of another processor
    resumed, uninterrupted = (
        torch.cat([tensor.flatten() for _, tensor in sorted(load_file(path).items())])
        for path in (
            newest_checkpoint(run_dir) / "trainable.safetensors",
            old_runs / "expected" / "trainable.safetensors",
        )
    )
    assert torch.cosine_similarity(resumed, uninterrupted, dim=0) > 0.99


def test_a_finished_run_validates_and_predicts_as_it_did(old_runs: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir, device = old_runs / "runs" / "lora" / "seed0", ["--trainer.accelerator", "cpu"]
    assert main(["validate", "--run_dir", str(run_dir), *device]) == 0
    assert f"{read_record(run_dir)['val_loss']:.4f}" in capsys.readouterr().out
    assert main(["predict", "--run_dir", str(run_dir), "--data.predict_file", str(old_runs / "val.tsv"), *device]) == 0
    now, then = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (run_dir / "predictions.jsonl", old_runs / "predictions.jsonl")
    )
    for row, earlier in zip(now, then, strict=True):
        assert (row["text"], row["label"]) == (earlier["text"], earlier["label"])
        assert row["probabilities"] == pytest.approx(earlier["probabilities"], abs=1e-4)


def test_a_finished_run_exports(old_runs: Path) -> None:
    assert (
        main(["export", str(old_runs / "runs" / "lora" / "seed0"), str(old_runs / "merged"), "--format", "merged"]) == 0
    )
    model = AutoModelForSequenceClassification.from_pretrained(old_runs / "merged")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_finished_runs_compare_and_report(old_runs: Path) -> None:
    comparison = compare([old_runs / "runs"])
    assert [(group.label, len(group.runs), len(group.failed)) for group in comparison.groups] == [
        ("full", 2, 0),
        ("lora", 2, 1),
    ]
    assert "val_accuracy" in comparison.groups[1].differences
    assert main(["report", str(old_runs / "runs"), "-o", str(old_runs / "report.html")]) == 0
    assert "full" in (old_runs / "report.html").read_text()
