"""A model as it is: validated and evaluated without a step, and a reference beside trained runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from litpeft import compare
from litpeft.__main__ import main
from litpeft.cli.finished_run import FinishedRun
from litpeft.commands import training
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.conftest import GOOD, REST

QUIET = ["--accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, fit_arguments: list[str]) -> Path:
    """Return the folder with a trained run, `run`, and the merged model of it, `merged`."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--model.adapter", "Full", "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "3e-3"]
    assert main([*fit_arguments, *options, "--trainer.max_epochs", "4", "--run_dir", str(folder / "run")]) == 0
    assert main(["export", str(folder / "run"), str(folder / "merged"), "--format", "merged"]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(trained: Path, fit_arguments: list[str]) -> Path:
    """Return the run folder of the merged model as it is."""
    words = [word for word in fit_arguments[1:] if word not in ("--trainer.accelerator", "cpu")]
    words[words.index("--model.model_name") + 1] = str(trained / "merged")
    folder = ["--run_dir", str(trained / "as_it_is")]
    assert main(["evaluate", *words, *folder, "--tasks", "held_out", "--keep_items", *QUIET[:2]]) == 0
    return trained / "as_it_is"


def test_a_merged_model_as_it_is_has_the_figures_of_its_run(trained: Path, evaluated: Path) -> None:
    run, record = read_record(trained / "run"), read_record(evaluated)
    assert record["val_loss"] == pytest.approx(run["val_loss"], rel=1e-5)
    assert record["val_accuracy"] == run["val_accuracy"] > 0.6
    assert (record["status"], record["adapter"], record["steps"]) == ("ok", "untrained", 0)
    assert (record["trainable_params"], record["optimizer"], record["train_seconds"]) == (0, None, None)
    scores = record["benchmarks"][-1]["results"]["held_out"]["scores"]
    assert scores["accuracy"] == pytest.approx(record["val_accuracy"])
    rows = [json.loads((folder / "val_examples.json").read_text()) for folder in (trained / "run", evaluated)]
    assert rows[0]["correct"] == rows[1]["correct"]


def test_it_is_a_reference_in_a_comparison(trained: Path, evaluated: Path) -> None:
    comparison = compare(trained / "run", evaluated, by="adapter")
    frame = comparison.to_frame().set_index("label")
    assert frame.loc["untrained", "val_accuracy_mean"] == frame.loc["full", "val_accuracy_mean"]
    assert "untrained" in str(comparison)


def test_other_commands_take_its_run(evaluated: Path, sentences: dict[str, str]) -> None:
    assert newest_checkpoint(evaluated) is not None
    assert main(["test", "--run_dir", str(evaluated), "--data.test_file", sentences["val"], *QUIET[2:]]) == 0
    assert read_record(evaluated)["test_accuracy"] == read_record(evaluated)["val_accuracy"]
    assert main(["evaluate", str(evaluated), "--tasks", "held_out", *QUIET[:2]]) == 0


def test_a_language_model_has_the_loss_of_plain_transformers(tmp_path: Path, tiny_llama: str) -> None:
    rows = [{"instruction": REST[i], "input": "", "output": GOOD[i % len(GOOD)]} for i in range(6)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    data = ["--data", "Alpaca", "--data.train_file", str(file), "--data.val_file", str(file), *QUIET]
    model = ["--model", "CausalLM", "--model.model_name", tiny_llama, "--model.dtype", "fp32"]
    assert main(["evaluate", *model, *data, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert (record["status"], record["trainable_params"]) == ("ok", 0)
    run, plain = FinishedRun(tmp_path / "run", None, "cpu", "read"), AutoModelForCausalLM.from_pretrained(tiny_llama)
    run.datamodule.prepare_data()
    run.datamodule.setup("validate")
    ours = run.build(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    total, count = 0.0, 0
    for batch in run.datamodule.val_dataloader():
        logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        count += int((labels != -100).sum())
    assert count
    assert record["val_loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_random_head_is_told(
    evaluated: Path, tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    told = "are new and random, and nothing is trained"
    assert main([*fit_arguments, "--model.adapter", "Untrained", "--run_dir", str(tmp_path / "run")]) == 0
    assert told in capsys.readouterr().err
    merged = [*fit_arguments]
    merged[merged.index("--model.model_name") + 1] = str(evaluated.parent / "merged")
    assert main([*merged, "--model.adapter", "Untrained", "--run_dir", str(tmp_path / "whole")]) == 0
    assert told not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--merged"], "--merged and --checkpoint are for finished runs"),
        (["--model.adapter", "LoRA"], "a model is evaluated as it is"),
    ],
)
def test_what_needs_training_is_refused(words: list[str], reason: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "--model", "CausalLM", *words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--limit", "0"], "benchmarks.limit must be at least 1, got 0"),
        (["--batch_size", "0"], "benchmarks.batch_size must be at least 1, got 0"),
        (["--max_seconds", "0"], "benchmarks.max_seconds must be above 0, got 0"),
    ],
)
def test_a_zero_is_a_value_of_an_option(
    words: list[str], reason: str, tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    given = [word for word in fit_arguments[1:] if word not in ("--trainer.accelerator", "cpu")]
    folder = ["--run_dir", str(tmp_path / "run")]
    assert main(["evaluate", *given, *folder, "--tasks", "held_out", *words, *QUIET[:2]]) == 2
    assert reason in capsys.readouterr().err


def test_no_examples_are_asked_for_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option a task takes its own number of examples."""
    asked: list[str] = []
    monkeypatch.setattr(training, "main", lambda words: asked.extend(words) or 0)
    assert main(["evaluate", "--model", "CausalLM", "--tasks", "gsm8k", "--num_fewshot", "0"]) == 0
    assert asked[asked.index("--benchmarks.num_fewshot") + 1] == "0"
    assert "--benchmarks.limit" not in asked
    assert "--benchmarks.keep_items" not in asked
