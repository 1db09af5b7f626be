"""A finished run as a Python object; Lightning's `load_from_checkpoint` says how to get it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from litpeft.__main__ import main
from litpeft.callbacks.checkpoint_io import LOOP
from litpeft.cli.finished_run import trained_task
from litpeft.errors import UserError
from litpeft.runs.folder import checkpoints
from litpeft.runs.record import read_record
from litpeft.tasks import FineTuner, SequenceClassification


@pytest.fixture(scope="module", params=["Full", "DoRA", "QLoRA"])
def run_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fit_arguments: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = [
        "--model.adapter",
        request.param,
        "--model.optimizer",
        "torch.optim.AdamW",
        "--model.optimizer.lr",
        "1e-2",
    ]
    average = ["--trainer.callbacks", "lightning.pytorch.callbacks.WeightAveraging", "--data.train_samples", "32"]
    assert main([*fit_arguments, *options, *average, "--run_dir", str(folder)]) == 0
    return folder


def test_the_trained_task_predicts_as_the_run_does(run_dir: Path, sentences: dict[str, str], tiny_model: str) -> None:
    assert main(["predict", "--run_dir", str(run_dir), "--data.predict_file", sentences["val"]]) == 0
    rows = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    task = trained_task(run_dir)
    assert isinstance(task, SequenceClassification)
    assert not task.training
    tokens = AutoTokenizer.from_pretrained(tiny_model)([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = task(dict(tokens)).softmax(-1)
    expected = torch.tensor([list(row["probabilities"].values()) for row in rows])
    assert torch.allclose(probabilities, expected, atol=1e-6)
    last = torch.load(checkpoints(run_dir)[-1] / LOOP, weights_only=True)["training_weights"]
    task.load_state_dict(last)  # the weights after the last step, which are not the averaged ones
    with torch.no_grad():
        assert not torch.allclose(task(dict(tokens)).softmax(-1), expected, atol=1e-4)


def test_lightnings_class_method_says_what_to_use(run_dir: Path) -> None:
    checkpoint = checkpoints(run_dir)[-1]
    assert checkpoint == run_dir / read_record(run_dir)["checkpoint"]
    for task in (FineTuner, SequenceClassification):
        with pytest.raises(UserError, match=r"use litpeft.load_run\(RUN_DIR\).model\(\)"):
            task.load_from_checkpoint(checkpoint)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        trained_task(tmp_path)
