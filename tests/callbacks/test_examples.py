"""Losses per validation row: compared with `litpeft predict`, and with each row computed alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from litpeft.tasks import CausalLM
from tests.conftest import GOOD


def test_a_classifiers_row_losses_match_its_predictions(tmp_path: Path, fit_arguments: list[str]) -> None:
    saved, plain = tmp_path / "saved", tmp_path / "plain"
    for folder, kept in ((saved, []), (plain, ["--record.predictions", "false"])):  # kept by default
        options = [*kept, "--run_dir", str(folder), "--model.optimizer.lr", "5e-3"]
        assert (
            main([*fit_arguments, "--model.optimizer", "torch.optim.AdamW", *options, "--trainer.max_epochs", "2"]) == 0
        )
    record, without = read_record(saved), read_record(plain)
    assert without["val_examples"] is None
    assert not (plain / "val_examples.json").exists()
    assert (record["val_loss"], record["val_accuracy"]) == (without["val_loss"], without["val_accuracy"])
    examples = json.loads((saved / record["val_examples"]).read_text())
    assert examples["step"] == record["steps"]
    table = Path(fit_arguments[fit_arguments.index("--data.val_file") + 1])
    assert main(["predict", "--run_dir", str(saved), "--data.predict_file", str(table)]) == 0
    lines = [json.loads(line) for line in (saved / "predictions.jsonl").read_text().splitlines()]
    names = record["data_summary"]["label_names"]
    truth = [names[int(line.rpartition("\t")[2])] for line in table.read_text().splitlines()[1:]]
    assert examples["correct"] == [int(line["label"] == label) for line, label in zip(lines, truth, strict=True)]
    assert examples["loss"] == pytest.approx(
        [-math.log(line["probabilities"][label]) for line, label in zip(lines, truth, strict=True)], rel=1e-4
    )
    assert sum(examples["correct"]) / len(truth) == pytest.approx(record["val_accuracy"])
    assert record["val_examples_bytes"] == (saved / record["val_examples"]).stat().st_size
    assert 0 < record["val_examples_seconds"] < record["wall_seconds"]
    _check_wrong(
        examples["wrong"], lines, truth, [line.rpartition("\t")[0] for line in table.read_text().splitlines()[1:]]
    )


def _check_wrong(wrong: list[dict], predicted: list[dict], truth: list[str], texts: list[str]) -> None:
    """Compare the wrong predictions that were kept with those of `litpeft predict`: the ten with the highest probability."""
    expected = [
        (max(line["probabilities"].values()), row)
        for row, (line, label) in enumerate(zip(predicted, truth, strict=True))
        if line["label"] != label
    ]
    assert len(expected) > 2  # so that there is an order
    assert [each["probability"] for each in wrong] == pytest.approx(sorted((p for p, _ in expected), reverse=True)[:10])
    for each in wrong:
        row = each["row"]
        assert (each["label"], each["prediction"]) == (truth[row], predicted[row]["label"])
        assert each["text"].split() == texts[row].lower().split()


def test_many_rows_are_kept_on_request_only(
    tmp_path: Path, fit_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litpeft.callbacks.row_results.MOST_ROWS", 3)
    assert main([*fit_arguments, "--run_dir", str(tmp_path / "run"), "--trainer.max_steps", "1"]) == 0
    record = read_record(tmp_path / "run")
    assert (record["val_examples"], record["val_examples_bytes"], record["val_examples_seconds"]) == (None, None, None)


@pytest.mark.parametrize("whole_logits", [False, True])
def test_a_language_models_row_losses_agree_with_its_validation_loss(
    tmp_path: Path, tiny_llama: str, whole_logits: bool
) -> None:
    rows = [
        {"instruction": "a story", "input": "", "output": " ".join(["the", GOOD[i % 5], "film"][: 1 + i % 3])}
        for i in range(40)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = [
        *("fit", "--model", "CausalLM", "--model.model_name", tiny_llama, "--model.dtype", "fp32"),
        *("--data", "Alpaca"),
    ]
    arguments += [
        *("--data.train_file", str(tmp_path / "rows.json"), "--data.val_samples", "11", "--data.batch_size", "4")
    ]
    arguments += ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "_logits_are_head_output", lambda self, model: not whole_logits)
        assert main([*arguments, "--record.predictions", "true", "--trainer.enable_progress_bar", "false"]) == 0
    examples = json.loads((tmp_path / "run" / "val_examples.json").read_text())
    assert len(examples["loss"]) == 11
    assert "correct" not in examples
    assert torch.tensor(examples["loss"]).std() > 0
    # the mean over all tokens lies between the lowest and the highest mean of a row
    assert min(examples["loss"]) <= read_record(tmp_path / "run")["val_loss"] <= max(examples["loss"])


def test_the_loss_of_a_row_does_not_depend_on_its_batch(tiny_llama: str) -> None:
    task = CausalLM(tiny_llama, dtype="fp32")
    task.build(type("Data", (), {"tokenizer": None, "max_length": 16})(), torch.device("cpu"))
    task.eval()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 20, (3, 9), generator=draw)
    labels = ids.masked_fill(torch.rand(3, 9, generator=draw) < 0.5, -100)
    labels[1] = -100  # a row without labels
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        sums, tokens = task.row_losses(batch)
        for row in range(3):
            alone, count = task.token_loss({name: part[row : row + 1] for name, part in batch.items()})
            assert (int(tokens[row]), sums[row].item()) == (count, pytest.approx(alone.item(), rel=1e-5))
