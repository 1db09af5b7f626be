"""Losses and metrics of an evaluation do not depend on its batches."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from litpeft.adapters import LoRA
from litpeft.data import SST2, Alpaca, TextRegression
from litpeft.errors import UserError
from litpeft.tasks import CausalLM, SequenceClassification, SequenceRegression
from tests.conftest import QUIET, write_sentences


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sentences(tmp_path_factory.mktemp("rows") / "rows.tsv", 23, seed=5)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_losses_and_metrics_are_those_of_all_rows_whatever_the_batch_size(
    kind: str, rows: str, tiny_model: str
) -> None:
    L.seed_everything(0, verbose=False)
    cls, task_of = (SST2, SequenceClassification) if kind == "classes" else (TextRegression, SequenceRegression)
    options = {} if kind == "classes" else {"text_column": "sentence"}
    data = cls(tokenizer=tiny_model, train_file=rows, val_file=rows, **options)
    task = task_of(tiny_model, LoRA(rank=2), dtype="fp32")
    found = []
    for size in (23, 5, 1):
        data.batch_size = size
        trainer = L.Trainer(**QUIET)
        found.append(trainer.validate(task, datamodule=data, verbose=False)[0])
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    with torch.no_grad():
        batch = data.rows["val"][list(range(23))]
        outputs, labels = task.eval()(batch), batch["labels"]
    if kind == "classes":
        assert found[0]["val_loss"] == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-4)
        assert found[0]["val_accuracy"] == pytest.approx(float((outputs.argmax(-1) == labels).float().mean()))
    else:
        mean, deviation = labels.mean(), labels.std(correction=0)
        error = outputs.double() - (labels.reshape(-1, 1) - mean) / deviation
        assert found[0]["val_loss"] == pytest.approx(float(error.square().mean()), rel=1e-4)
        assert found[0]["val_rmse"] == pytest.approx(float(error.square().mean().sqrt() * deviation), rel=1e-4)


@pytest.mark.parametrize("kind", [SequenceClassification, SequenceRegression])
def test_padding_is_no_token_and_no_part_of_a_row(kind: type, rows: str, tiny_model: str) -> None:
    """Rows give the same outputs alone as in a batch with longer ones; counts leave padding out."""
    L.seed_everything(0, verbose=False)
    options = {} if kind is SequenceClassification else {"text_column": "sentence"}
    data = (SST2 if kind is SequenceClassification else TextRegression)(
        tokenizer=tiny_model, train_file=rows, val_file=rows, **options
    )
    task = kind(tiny_model, LoRA(rank=2), dtype="fp32")
    L.Trainer(**QUIET).validate(task, datamodule=data, verbose=False)
    whole = data.rows["val"][list(range(23))]
    with torch.no_grad():
        together = task.eval()(whole)
        alone = torch.cat([task(data.rows["val"][[row]]) for row in range(23)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    lengths = [int(data.rows["val"][[row]]["input_ids"].shape[1]) for row in range(23)]
    counts = {name: int(count) for name, count in task.token_counts(whole).items()}
    assert counts == {"samples": 23, "tokens": sum(lengths), "padded": 23 * max(lengths), "trained": 23}


def test_a_loss_that_is_nan_in_one_batch_is_no_mean_of_the_others(
    rows: str, tiny_model: str, tiny_llama: str, tmp_path: Path
) -> None:
    """torchmetrics leaves NaN out of a mean, so that `val_loss` would look well."""

    class Classifier(SequenceClassification):
        def mean_loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().mean_loss(outputs, batch) * (math.nan if 3 in batch["row"] else 1.0)

    class Language(CausalLM):
        def token_loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
            total, tokens = super().token_loss(batch)
            return total * (math.nan if 3 in batch["row"] else 1.0), tokens

    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"instruction": "the film", "output": "was fine"}\n' * 9)
    sentences = SST2(tokenizer=tiny_model, train_file=rows, val_file=rows, batch_size=4)
    asked = Alpaca(tokenizer=tiny_llama, train_file=str(answers), val_file=str(answers), batch_size=4)
    for task, data in ((Classifier(tiny_model), sentences), (Language(tiny_llama), asked)):
        (found,) = L.Trainer(**QUIET).validate(task, datamodule=data, verbose=False)
        assert math.isnan(found["val_loss"])


@pytest.mark.parametrize("columns", ["label", ["label", "again"]])
def test_r2_of_one_row_is_nan_and_another_metric_that_needs_more_rows_is_named(
    columns: str | list[str], tiny_model: str, tmp_path: Path
) -> None:
    train, val = tmp_path / "train.csv", tmp_path / "val.csv"
    lines = [f"the film was {word},{number},{number}" for number, word in enumerate(("fine", "good", "great"))]
    train.write_text("\n".join(["sentence,label,again", *lines]) + "\n")
    val.write_text("\n".join(["sentence,label,again", lines[0]]) + "\n")
    options = {"text_column": "sentence", "label_column": columns}
    data = TextRegression(tokenizer=tiny_model, train_file=str(train), val_file=str(val), **options)
    task = SequenceRegression(tiny_model, metrics=["r2", "rmse"])
    (found,) = L.Trainer(**QUIET).validate(task, datamodule=data, verbose=False)
    assert math.isnan(found["val_r2"])
    assert all(value > 0 for name, value in found.items() if name.startswith("val_rmse"))
    data = TextRegression(tokenizer=tiny_model, train_file=str(train), val_file=str(val), **options)
    path = {"class_path": "torchmetrics.regression.R2Score", "name": "determination"}
    with pytest.raises(UserError, match=r"^model\.metrics determination: val_determination cannot be computed on "):
        L.Trainer(**QUIET).validate(SequenceRegression(tiny_model, metrics=[path]), datamodule=data, verbose=False)
