"""`litpeft evaluate --merged`: the metrics of both ways, against `litpeft validate` and the exported model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from litpeft.__main__ import main
from litpeft.analysis.comparison import compare
from litpeft.errors import UserError
from litpeft.runs.record import read_record


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fit_arguments: list[str]) -> Path:
    """Return a folder with a run of LoRA and one of QLoRA, both evaluated."""
    folder = tmp_path_factory.mktemp("merged")
    for adapter, lr in (("LoRA", "1e-2"), ("QLoRA", "1e-2")):
        options = [
            "--model.adapter",
            adapter,
            "--model.adapter.targets",
            "all-linear",
            "--model.optimizer",
            "torch.optim.AdamW",
            "--model.optimizer.lr",
            lr,
        ]
        assert main([*fit_arguments, *options, "--run_dir", str(folder / adapter), "--trainer.max_epochs", "3"]) == 0
    assert main(["evaluate", "--merged", str(folder / "LoRA"), str(folder / "QLoRA"), "--accelerator", "cpu"]) == 0
    return folder


@pytest.mark.parametrize("adapter", ["LoRA", "QLoRA"])
def test_both_ways_have_their_metrics(runs: Path, adapter: str) -> None:
    record = read_record(runs / adapter)
    with_adapter, merged = record["merged_evaluation"]["adapter"], record["merged_evaluation"]["merged"]
    assert with_adapter["val_loss"] == pytest.approx(record["val_loss"], rel=1e-6)
    assert with_adapter["val_accuracy"] == record["val_accuracy"]
    assert merged["val_loss"] == pytest.approx(record["val_loss"], rel=1e-4)  # fp32: a merge only reorders sums
    assert abs(merged["val_loss"] - math.log(2)) > 0.02  # the loss of a model without what was trained
    assert merged["rows_per_second"] > 0 < with_adapter["rows_per_second"]


def test_the_merged_metrics_are_those_of_the_exported_model(
    runs: Path, tmp_path: Path, sentences: dict[str, str]
) -> None:
    assert main(["export", str(runs / "LoRA"), str(tmp_path / "out"), "--format", "merged"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [line.rpartition("\t") for line in Path(sentences["val"]).read_text().splitlines()[1:]]
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text, _, _ in rows])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([int(label) for *_, label in rows]))
    assert read_record(runs / "LoRA")["merged_evaluation"]["merged"]["val_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_compare_shows_both_ways(runs: Path) -> None:
    names = [figure.name for figure in compare([runs]).figures]
    assert {"merged_val_accuracy", "adapter_rows_per_second", "merged_rows_per_second"} <= set(names)
    titles = {figure.name: figure.title for figure in compare([runs]).figures}
    assert titles["merged_val_accuracy"] == "merged: validation accuracy, %"
    assert titles["merged_rows_per_second"] == "rows per second in evaluation, merged"


def test_what_cannot_be_evaluated_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="give --tasks, the benchmarks to run, or --merged"):
        main_of(["evaluate", str(runs / "LoRA")])
    with pytest.raises(UserError, match="--merged validates the checkpoint that the record names"):
        main_of(["evaluate", str(runs / "LoRA"), "--merged", "--checkpoint", str(runs)])


def main_of(arguments: list[str]) -> int:
    from litpeft.commands.evaluate import main as evaluate

    return evaluate(arguments[1:])
