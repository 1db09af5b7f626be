"""Pairs of texts, labels as people write them, bad rows, the validation cut, class weights: asserted on what is trained."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from math import floor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoTokenizer

from litpeft.__main__ import main
from litpeft.adapters import LoRA
from litpeft.cli.finished_run import FinishedRun
from litpeft.data import TextClassification
from litpeft.data.class_labels import ClassLabels
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError
from litpeft.runs.record import read_record
from litpeft.tasks import SequenceClassification
from tests.data.test_text_classification import make, tsv


@pytest.fixture
def pair_model(tiny_model: str, tmp_path: Path) -> str:
    """Return the tiny BERT with a tokenizer that returns token types, as BERT's own does."""
    shutil.copytree(tiny_model, tmp_path / "pair-model")
    file = tmp_path / "pair-model" / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_input_names": names}))
    return str(tmp_path / "pair-model")


def pairs(path: Path, rows: list[tuple[str, str, str]]) -> str:
    return tsv(path, *("\t".join(row) for row in rows), header="premise\thypothesis\tlabel")


def test_a_pair_is_tokenised_as_the_tokenizer_does(pair_model: str, tmp_path: Path) -> None:
    rows = [
        ("the film", "was good bad fine", "yes"),
        ("the film was", "good bad fine", "no"),
        ("bad " * 9, "good", "no"),
    ]
    file = pairs(tmp_path / "a.tsv", rows)
    options = {"text_column": ["premise", "hypothesis"], "max_length": 9, "batch_size": 3}
    data = make(tokenizer=pair_model, train_file=file, val_file=file, **options)
    tokenizer = AutoTokenizer.from_pretrained(pair_model)
    batch = next(iter(data.val_dataloader()))
    order = batch["row"].tolist()
    first, second = ([rows[i][n].strip() for i in order] for n in (0, 1))
    expected = tokenizer(first, second, truncation=True, max_length=9, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name
    ids = {tuple(row.tolist()) for row in batch["input_ids"]}
    assert len(ids) == 3  # joined with a space, the first two rows would be equal
    cut = batch["input_ids"][order.index(2)].tolist()
    assert tokenizer.decode(cut).count("bad") == 5
    assert "good" in tokenizer.decode(cut)  # the longer text is cut, not the second


def test_token_types_reach_the_model_and_change_its_output(pair_model: str, tmp_path: Path) -> None:
    rows = [("the film was good", "bad plot", "yes"), ("bad plot", "the film was good", "no")] * 8
    file = pairs(tmp_path / "a.tsv", rows)
    arguments = ["--model", "SequenceClassification", "--model.model_name", pair_model, "--data", "TextClassification"]
    arguments += ["--data.train_file", file, "--data.val_file", file, "--data.text_column", "[premise,hypothesis]"]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.batch_size", "4"]
    arguments += [
        "--trainer.max_epochs",
        "12",
        "--model.optimizer",
        "torch.optim.AdamW",
        "--model.optimizer.lr",
        "1e-2",
    ]
    assert main(["fit", *arguments, "--run_dir", str(tmp_path / "run")]) == 0
    assert read_record(tmp_path / "run")["val_accuracy"] == 1.0  # the texts differ in their order only
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "merged"]) == 0


def test_a_model_with_token_types_gets_them(pair_model: str, tmp_path: Path) -> None:
    """Against the model of transformers; that a run learns says nothing, since the separator also tells the texts."""
    file = pairs(tmp_path / "a.tsv", [("the film was", "good", "yes"), ("bad", "plot film", "no")] * 4)
    data = make(tokenizer=pair_model, train_file=file, val_file=file, text_column=["premise", "hypothesis"])
    task = SequenceClassification(pair_model, LoRA(rank=2), dtype="fp32").setup_model(data, "cpu").eval()
    batch = next(iter(data.val_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        found, expected = task(batch), task.backbone(**inputs).logits
        without = task.backbone(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, without)


@pytest.mark.parametrize(
    ("stage", "first", "warned"), [("fit", True, True), ("fit", False, False), ("test", True, False)]
)
def test_the_first_process_warns_before_training(
    stage: str, first: bool, warned: bool, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tsv(tmp_path / "a.tsv", "the cat\tGood", "sat down\tgood", "the cat\tGood")
    data = TextClassification(tokenizer=tiny_model, train_file=file, val_file=file, test_file=file)
    data.trainer = SimpleNamespace(
        is_global_zero=first, lightning_module=None, global_rank=int(not first), world_size=2
    )
    data.setup(stage)
    assert ("'Good', 'good' count as 2 classes" in capsys.readouterr().err) == warned


def test_a_tokenizer_without_separator_is_warned_of(
    byte_llama: str, pair_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = pairs(tmp_path / "a.tsv", [("the cat", "sat down", "yes"), ("the cat sat", "down", "no")])
    pair, text = {"text_column": ["premise", "hypothesis"]}, {"text_column": "premise"}
    for model, options, warned in (
        (byte_llama, pair, True),
        (byte_llama, pair | {"join_columns": True}, False),
        (byte_llama, text, False),
        (pair_model, pair, False),
    ):
        make(tokenizer=model, train_file=file, val_file=file, **options)
        assert ("this tokenizer has no separator" in capsys.readouterr().err) == warned


def test_three_columns_need_join_columns(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.text_column names 3 columns; give one or two \(a pair\), or --data.join"
    ):
        TextClassification(train_file="a.csv", text_column=["a", "b", "c"])
    file = tsv(tmp_path / "a.tsv", "a\tb\tc\t1", "d\te\tf\t0", header="x\ty\tz\tlabel")
    data = make(tokenizer=tiny_model, train_file=file, val_file=file, text_column=["x", "y", "z"], join_columns=True)
    assert data.table("train")[0]["text"] == ["a b c", "d e f"]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["-1", "1", "-1"], ["-1", "1"], [0, 1, 0]),
        (["1.0", "0", "1"], ["0", "1"], [1, 0, 1]),
        (["True", "False", "True"], ["False", "True"], [1, 0, 1]),
        (["no", " yes ", "no"], ["no", "yes"], [0, 1, 0]),
    ],
)
def test_labels_as_files_write_them(
    labels: list[str], names: list[str], numbers: list[int], tiny_model: str, tmp_path: Path
) -> None:
    file = tsv(tmp_path / "a.tsv", *(f"text\t{label}" for label in labels))
    table, facts = make(tokenizer=tiny_model, train_file=file, val_file=file).table("train")
    assert (facts["label_names"], table["label"]) == (names, numbers)


ROWS = [
    "good\tyes",
    "bad\tno",
    "\tyes",
    "fine\tNaN",
    "dull\t",
    "film\tNA",
    "plot\tno",
    " \tno",
    "good\tnull",
    "bad\tyes",
]


def test_all_bad_rows_are_told_at_once_or_skipped_and_counted(tiny_model: str, tmp_path: Path) -> None:
    file = tsv(tmp_path / "a.tsv", *ROWS)
    with pytest.raises(UserError) as caught:
        make(tokenizer=tiny_model, train_file=file, val_file=file)
    message = str(caught.value)
    assert "6 of 10 rows cannot be used" in message
    assert all(f"line {number}:" in message for number in (4, 5, 6, 7, 9))
    assert message.endswith("mend them, or give --data.on_bad_row skip.")
    data = make(tokenizer=tiny_model, train_file=file, val_file=file, on_bad_row="skip")
    table, facts = data.table("train")
    assert table["text"] == ["good", "bad", "plot", "bad"]
    assert table["label"] == [1, 0, 0, 1]
    assert (facts["total_rows"], facts["skipped_rows"]) == (10, 6)
    assert data.describe()["classes"]["train"] == {"no": 2, "yes": 2}


def test_a_missing_label_that_is_named_is_a_class(tiny_model: str, tmp_path: Path) -> None:
    file = tsv(tmp_path / "a.tsv", "good\tNA", "bad\tEU", "fine\tNA")
    data = make(tokenizer=tiny_model, train_file=file, val_file=file, label_names=["EU", "NA"])
    assert data.table("train")[0]["label"] == [1, 0, 1]


def test_a_cell_of_json_may_be_null(tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [("good", "yes"), ("bad", "no"), (None, "no"), ("fine", None), (float("nan"), "no"), ("x", float("nan"))]
    file.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    with pytest.raises(UserError, match="4 of 6 rows cannot be used"):
        make(tokenizer=tiny_model, train_file=str(file), val_file=str(file))


def test_the_validation_cut_keeps_the_shares_of_the_classes(tiny_model: str, tmp_path: Path) -> None:
    labels = ["often"] * 90 + ["rare"] * 10 + ["once", "twice", "twice"]
    file = tsv(tmp_path / "a.tsv", *(f"good {i}\t{label}" for i, label in enumerate(labels)))
    counts = {}
    for cut in ("stratified", "random"):
        data = make(tokenizer=tiny_model, train_file=file, val_cut=cut)
        counts[cut] = data.describe()["classes"]
        seen = Counter(data.rows["train"].rows.tolist() + data.rows["val"].rows.tolist())
        assert set(seen.values()) == {1}
        assert len(seen) == len(labels)
    assert counts["stratified"]["val"] == {"often": 9, "once": 0, "rare": 1, "twice": 0}
    assert counts["stratified"]["train"] == {"often": 81, "once": 1, "rare": 9, "twice": 2}
    assert counts["random"]["val"] != counts["stratified"]["val"]


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(1, 30), st.randoms(use_true_random=False))
@example([1] * 30 + [10], 9, random.Random(0))  # one class gives nearly all
def test_each_class_gives_its_share_of_the_validation_rows(counts: list[int], rows: int, draw: Any) -> None:
    """Largest remainders; a class keeps a row to train on, and the largest classes give what small ones cannot."""
    stored = np.array([number for number, count in enumerate(counts) for _ in range(count)])
    order = np.array(draw.sample(range(len(stored)), len(stored)))
    rows = min(rows, len(stored) - 1)
    data = SimpleNamespace(stored_labels=lambda split, rows: stored[rows])
    found = ClassLabels(data, "label", [f"c{number}" for number in range(len(counts))]).cut(order, rows)
    assert sorted(found.tolist()) == list(range(len(stored)))
    shares = [count * (rows / len(stored)) for count in counts]
    held = [min(floor(share), count - 1) for share, count in zip(shares, counts, strict=True)]
    for number in sorted(range(len(counts)), key=lambda number: held[number] - shares[number]):
        held[number] += sum(held) < rows and held[number] < counts[number] - 1
    for number in sorted(range(len(counts)), key=lambda number: -counts[number]):
        held[number] += min(rows - sum(held), counts[number] - 1 - held[number])
    cut = sum(held)  # fewer than asked for where each class has a single row left
    assert np.bincount(stored[found[:cut]], minlength=len(counts)).tolist() == held
    places = {row: place for place, row in enumerate(order.tolist())}
    for part in (found[:cut], found[cut:]):  # rows keep their random order
        assert [places[row] for row in part.tolist()] == sorted(places[row] for row in part.tolist())


def test_similar_class_names_and_classes_without_rows_are_warned_of(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tsv(tmp_path / "a.tsv", "good\tBilling", "bad\tbilling", "fine\tTechnical?", "dull\tTechnical")
    make(tokenizer=tiny_model, train_file=file, val_file=file)
    said = capsys.readouterr().err
    assert "'Billing', 'billing' count as 2 classes" in said
    assert "'Technical', 'Technical?' count as 2 classes" in said
    make(
        tokenizer=tiny_model,
        train_file=tsv(tmp_path / "b.tsv", "good\tyes", "bad\tno"),
        val_file=file.replace("a.tsv", "b.tsv"),
        label_names=["yes", "no", "maybe"],
    )
    assert "no training row has the label 'maybe'" in capsys.readouterr().err


def test_class_weights_and_label_smoothing_are_torchs(tiny_model: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    file = tsv(tmp_path / "a.tsv", *["the film was good\tyes"] * 6, *["the plot was bad\tno"] * 2)
    arguments = ["--model", "SequenceClassification", "--model.model_name", str(model), "--data", "TextClassification"]
    arguments += ["--data.train_file", file, "--data.val_file", file, "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false", "--data.batch_size", "8"]
    arguments += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e-9", "--model.adapter", "Frozen"]
    options = {
        "plain": [],
        "balanced": ["--model.class_weights", "balanced"],
        "given": ["--model.class_weights", "[0.5,2.0]"],
        "smoothed": ["--model.label_smoothing", "0.2"],
    }
    found = {}
    for name, more in options.items():
        fit = ["fit", *arguments, *more, "--model.dtype", "fp32", "--seed_everything", "1"]
        assert main([*fit, "--run_dir", str(tmp_path / name)]) == 0
        record = read_record(tmp_path / name)
        found[name] = record["train_loss"]
        assert record["val_loss"] == pytest.approx(found["plain"], abs=1e-6)  # without weights and smoothing
    run = FinishedRun(tmp_path / "plain", None, "cpu", "checked")
    run.build(torch.device("cpu"))
    run.datamodule.setup("fit")
    batch = next(iter(run.datamodule.train_dataloader()))
    logits, labels = run.model.eval()(batch).detach(), batch["labels"]
    expected = {
        "plain": F.cross_entropy(logits, labels),
        "balanced": F.cross_entropy(logits, labels, torch.tensor([8 / (2 * 2), 8 / (2 * 6)])),
        "given": F.cross_entropy(logits, labels, torch.tensor([0.5, 2.0])),
        "smoothed": F.cross_entropy(logits, labels, label_smoothing=0.2),
    }
    assert found == pytest.approx({name: loss.item() for name, loss in expected.items()}, abs=1e-6)
    assert len(set(found.values())) == 4


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model.class_weights", "[1.0,2.0,3.0]", "model.class_weights has 3 weights for 2 classes (0, 1)"),
        ("--model.label_smoothing", "1.0", "model.label_smoothing must be at least 0 and below 1"),
    ],
)
def test_wrong_weights_are_one_sentence(
    option: str, value: str, message: str, fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*fit_arguments, option, value, "--run_dir", str(tmp_path / "run")]) == 2
    assert message.split(" (")[0] in capsys.readouterr().err


@pytest.mark.parametrize("missing", [("pad_token", "eos_token"), ("eos_token",)])
def test_a_tokenizer_without_special_tokens_is_one_sentence(
    missing: tuple[str, ...], tiny_llama: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in config.items() if name not in missing}))
    (tmp_path / "model" / "special_tokens_map.json").unlink(missing_ok=True)
    rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("good", "bad") * 4]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = ["fit", "--model", "CausalLM", "--model.model_name", str(tmp_path / "model"), "--data", "Alpaca"]
    arguments += [f"--data.{split}_file={tmp_path / 'rows.json'}" for split in ("train", "val")]
    assert main([*arguments, "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "has neither a padding nor an end-of-text token" in said
        if len(missing) == 2
        else "no end-of-text token" in said
    )


def test_a_bad_row_from_the_hub_is_named_by_its_number(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"text": "the cat", "label": "a"}, {"text": "sat", "label": None}])
    monkeypatch.setattr(TabularData, "hub_rows", lambda data, split: rows)
    with pytest.raises(UserError, match="^user/name train row 2: None: the label is missing"):
        make(tokenizer=tiny_model, dataset="user/name")
