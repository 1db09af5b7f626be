"""Regression: losses of transformers, metrics of scipy, predictions and exports in the targets' own unit, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from litpeft.__main__ import main
from litpeft.cli.finished_run import FinishedRun
from litpeft.data import TextRegression
from litpeft.errors import UserError
from litpeft.runs.record import read_record
from litpeft.tasks import SequenceRegression
from tests.resuming import differences, run
from tests.tasks.label_files import regression, rows_of

FLOAT = {"rel": 1e-4, "abs": 1e-5}


def predicted(run_dir: Path, file: str, out: Path) -> list[dict]:
    options = ["--data.predict_file", file, "--predictions.file", str(out), "--trainer.accelerator", "cpu"]
    assert main(["predict", "--run_dir", str(run_dir), *options]) == 0
    return rows_of(out)


@pytest.fixture(scope="module")
def finished(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with a run on `price`, whose mean is large beside its deviation, and its files."""
    folder = tmp_path_factory.mktemp("regression")
    options = ["--model.adapter", "LoRA", "--record.predictions", "true", "--trainer.max_epochs", "3"]
    arguments = [*regression(tiny_model, folder, "price"), *options, "--run_dir", str(folder / "run")]
    assert main(["fit", *arguments]) == 0
    return folder


@pytest.mark.parametrize(("loss", "columns"), [("mse", "share"), ("mse", "[share,price]"), ("l1", "[share,price]")])
def test_the_first_loss_equals_plain_transformers(
    loss: str, columns: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*regression(tiny_model, tmp_path, columns), "--model.loss", loss]
    seen: dict = {}

    def training_step(task: SequenceRegression, batch: dict, _: int) -> torch.Tensor:
        task.backbone.eval()  # without dropout
        if not seen:
            seen.update({name: part.detach().clone() for name, part in task.backbone.state_dict().items()})
            seen.update(batch=batch, loss=task.loss(batch).item(), names=task.trainer.datamodule.label_names)
        return task.loss(batch)

    monkeypatch.setattr(SequenceRegression, "training_step", training_step)
    assert main(["fit", *arguments, "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "run")]) == 0
    batch, ours, names = (seen.pop(name) for name in ("batch", "loss", "names"))
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=len(names), problem_type="regression"
    ).eval()
    theirs.load_state_dict(seen)
    rows = rows_of(tmp_path / "train.jsonl")
    targets = np.array([[row[name] for name in names] for row in rows])
    standardised = ((targets - targets.mean(axis=0)) / targets.std(axis=0))[batch["row"].numpy()]
    labels = torch.tensor(standardised, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(tiny_model)([rows[i]["text"] for i in batch["row"]], padding=True)
    inputs = {name: torch.tensor(tokens[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = theirs(**inputs, labels=labels)
    expected = found.loss if loss == "mse" else (found.logits - labels).abs().mean()
    assert ours == pytest.approx(expected.item(), rel=1e-5)


def test_metrics_and_predictions_are_in_the_targets_own_unit(finished: Path, capsys: pytest.CaptureFixture) -> None:
    rows = predicted(finished / "run", str(finished / "val.jsonl"), finished / "p.jsonl")
    truth = np.array([row["price"] for row in rows_of(finished / "val.jsonl")])
    values = np.array([row["values"]["price"] for row in rows])
    record, others = read_record(finished / "run"), read_record(finished / "run")["other_metrics"]
    assert abs(values.mean() - 265_000) < 15_000
    assert others["val_pearson"] == pytest.approx(stats.pearsonr(values, truth)[0], **FLOAT)
    assert others["val_spearman"] == pytest.approx(stats.spearmanr(values, truth)[0], **FLOAT)
    assert others["val_rmse"] == pytest.approx(np.sqrt(((values - truth) ** 2).mean()), **FLOAT)
    train = np.array([row["price"] for row in rows_of(finished / "train.jsonl")])
    assert record["data_summary"]["target_mean"] == pytest.approx([train.mean()])
    assert record["data_summary"]["target_deviation"] == pytest.approx([train.std()])
    losses = ((values - truth) / train.std()) ** 2
    assert record["val_loss"] == pytest.approx(losses.mean(), rel=1e-3)
    saved = json.loads((finished / "run" / "val_examples.json").read_text())
    assert saved["loss"] == pytest.approx(losses.tolist(), rel=1e-3, abs=1e-5)
    assert (record["main_metrics"], record["metric_directions"]["rmse"]) == (["val_pearson"], "lower")
    assert record["validations"][-1]["val_pearson"] == others["val_pearson"]


def test_every_verb_takes_a_regression(finished: Path, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    run_dir, val = finished / "run", str(finished / "val.jsonl")
    assert main(["validate", "--run_dir", str(run_dir)]) == 0
    assert f"{read_record(run_dir)['other_metrics']['val_rmse']:.4f}" in capsys.readouterr().out
    assert main(["test", "--run_dir", str(run_dir), "--data.test_file", val]) == 0
    others = read_record(run_dir)["other_metrics"]
    assert others["test_rmse"] == pytest.approx(others["val_rmse"], rel=1e-5)  # the same rows
    keeping = ["--tasks", "held_out", "--keep_items", "--accelerator", "cpu"]
    assert main(["evaluate", str(run_dir), *keeping]) == 0
    evaluation = read_record(run_dir)["benchmarks"][-1]
    result = evaluation["results"]["held_out"]
    rows = predicted(run_dir, val, finished / "held_out.jsonl")
    errors = np.abs([row["values"]["price"] - truth["price"] for row, truth in zip(rows, rows_of(val), strict=True)])
    assert result["scores"] == pytest.approx({"mae": errors.mean(), "rmse": others["val_rmse"]}, rel=1e-4)
    assert result["standard_errors"] == pytest.approx({"mae": stats.sem(errors)}, rel=1e-3)
    kept = json.loads((run_dir / "benchmark_items" / f"step-{evaluation['step']:06d}.json").read_text())
    assert kept["held_out"]["mae"] == pytest.approx(errors.tolist(), rel=1e-2)
    assert main(["compare", str(run_dir), "--format", "csv"]) == 0
    assert "val_rmse_mean" in capsys.readouterr().out
    assert main(["report", str(run_dir), "-o", str(finished / "report.html")]) == 0
    arguments = [*regression(tiny_model, finished, "price"), "--model.adapter", "LoRA"]
    capsys.readouterr()
    assert main(["estimate", *arguments, "--device", "cpu"]) == 0
    assert main(["estimate", *arguments, "--device", "cpu", "--tokens", "16"]) == 0
    assert "assumed" not in capsys.readouterr().out
    assert main(["data", *arguments]) == 0
    assert "-> «price 2" in capsys.readouterr().out


def test_runs_that_are_evaluated_together_keep_the_mean_and_deviation_of_their_own_training_rows(
    tiny_model: str, tmp_path: Path
) -> None:
    """They share one base in memory, because only the trained weights differ."""
    options = [*regression(tiny_model, tmp_path, "price"), "--model.adapter", "LoRA", "--trainer.max_steps", "2"]
    runs = {rows: tmp_path / rows for rows in ("64", "6")}
    for rows, run_dir in runs.items():
        assert main(["fit", *options, "--data.train_samples", rows, "--run_dir", str(run_dir)]) == 0
    assert main(["evaluate", *map(str, runs.values()), "--tasks", "held_out", "--accelerator", "cpu"]) == 0
    val = str(tmp_path / "val.jsonl")
    means = set()
    for run_dir in runs.values():
        record = read_record(run_dir)
        means.add(tuple(record["data_summary"]["target_mean"]))
        found = predicted(run_dir, val, tmp_path / "predicted.jsonl")
        errors = [abs(row["values"]["price"] - own["price"]) for row, own in zip(found, rows_of(val), strict=True)]
        scores = record["benchmarks"][-1]["results"]["held_out"]["scores"]
        assert scores["mae"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert len(means) == 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_merged_model_gives_values_or_says_how_to_get_them(finished: Path, dtype: str, tmp_path: Path) -> None:
    rows = predicted(finished / "run", str(finished / "val.jsonl"), tmp_path / "p.jsonl")
    out = tmp_path / dtype
    assert main(["export", str(finished / "run"), str(out), "--format", "merged", "--dtype", dtype]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    assert model.config.problem_type == "regression"
    tokens = AutoTokenizer.from_pretrained(out)([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[:, 0].double()
    # bf16 cannot hold a price of 250,000 to 2 % of its deviation, so the model stays standardised
    assert (model.config.target_mean == [0.0]) == (dtype == "fp32")
    values = outputs * model.config.target_deviation[0] + model.config.target_mean[0]
    expected = torch.tensor([row["values"]["price"] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=20 if dtype == "fp32" else 2000)


def test_an_adapter_says_mean_and_deviation_in_its_card(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    assert main(["export", str(finished / "run"), str(tmp_path / "out"), "--format", "adapter"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    mean = read_record(finished / "run")["data_summary"]["target_mean"][0]
    assert 'problem_type="regression"' in card
    assert f"mean {{'price': {mean}}}" in card
    assert json.loads((tmp_path / "out" / "litpeft_export.json").read_text())["target_mean"] == [mean]


def test_several_targets_have_metrics_of_their_own(tiny_model: str, tmp_path: Path) -> None:
    arguments = [*regression(tiny_model, tmp_path, "[share,price]"), "--trainer.max_epochs", "2"]
    assert main(["fit", *arguments, "--run_dir", str(tmp_path / "run")]) == 0
    rows = predicted(tmp_path / "run", str(tmp_path / "val.jsonl"), tmp_path / "p.jsonl")
    truth, others = rows_of(tmp_path / "val.jsonl"), read_record(tmp_path / "run")["other_metrics"]
    correlations = []
    for name in ("share", "price"):
        found, known = np.array([row["values"][name] for row in rows]), np.array([row[name] for row in truth])
        correlations.append(stats.pearsonr(found, known)[0])
        assert others[f"val_rmse_{name}"] == pytest.approx(np.sqrt(((found - known) ** 2).mean()), **FLOAT)
        assert others[f"val_pearson_{name}"] == pytest.approx(correlations[-1], **FLOAT)
    assert others["val_pearson"] == pytest.approx(np.mean(correlations), **FLOAT)
    assert "val_rmse" not in others  # a mean of errors in different units has no meaning


def test_a_killed_run_ends_as_an_uninterrupted_one(tiny_model: str, tmp_path: Path) -> None:
    options = ["--model.adapter", "LoRA", "--model.adapter.dropout", "0.2", "--checkpoint.every_n_steps", "3"]
    arguments = ["fit", *regression(tiny_model, tmp_path), *options, "--trainer.max_epochs", "2", "--run_dir"]
    assert run([*arguments, str(tmp_path / "whole")], tmp_path / "whole.log") == 0
    calls = int((tmp_path / "whole.calls").read_text())
    assert run([*arguments, str(tmp_path / "killed")], tmp_path / "killed.log", die_at=calls // 2) == -9
    assert run([*arguments, str(tmp_path / "killed"), "--resume"], tmp_path / "resumed.log") == 0
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


def test_a_finished_run_needs_no_training_rows(finished: Path, tmp_path: Path) -> None:
    moved = (finished / "train.jsonl").rename(finished / "gone.jsonl")
    try:
        loaded = FinishedRun(finished / "run", None, "cpu", "read")
        loaded.build(torch.device("cpu"))
    finally:
        moved.rename(finished / "train.jsonl")
    assert loaded.model.mean == read_record(finished / "run")["data_summary"]["target_mean"]


def test_data_of_another_kind_names_the_task(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = regression(tiny_model, tmp_path)
    arguments[1] = "SequenceClassification"
    assert main(["fit", *arguments, "--run_dir", str(tmp_path / "run")]) == 2
    assert "give --model SequenceRegression" in capsys.readouterr().err


def test_equal_targets_are_refused(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "good,1.5\n" * 9)
    data = TextRegression(tokenizer=tiny_model, train_file=str(tmp_path / "a.csv"), cache_dir=str(tmp_path / "c"))
    data.setup("fit")
    with pytest.raises(UserError, match="all training rows have the same label; there is nothing to learn"):
        data.describe()


def test_an_exported_head_is_kept_with_a_warning(
    finished: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", str(finished / "run"), str(tmp_path / "out"), "--format", "merged"]) == 0
    assert "its outputs are in the targets' own unit" in capsys.readouterr().out
    arguments = [*regression(str(tmp_path / "out"), tmp_path, "price"), "--trainer.max_steps", "1"]
    assert main(["fit", *arguments, "--run_dir", str(tmp_path / "run")]) == 0
    assert "has a head with 1 outputs already; it is kept, and learns standardised" in capsys.readouterr().err
