"""Targets that are numbers, sets of labels, GLUE and IMDB: asserted on what is stored and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from litpeft.__main__ import main
from litpeft.data import GLUE, IMDB, TextMultiLabel, TextRegression
from litpeft.data.glue import TASKS
from litpeft.data.labels import label_text
from litpeft.errors import UserError
from litpeft.runs.record import read_record


def made(kind: type, tiny_model: str, tmp_path: Path, **options):
    """Return a data set after `setup`, with its cache in the test's folder."""
    data = kind(tokenizer=tiny_model, cache_dir=str(tmp_path / "cache"), **options)
    data.setup("fit")
    return data


def jsonl(path: Path, *rows: dict) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def test_numbers_are_read_as_files_write_them(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood, 3.5 \nbad,-1e2\nfilm,7\nplot,0\n")
    data = made(TextRegression, tiny_model, tmp_path, train_file=str(tmp_path / "a.csv"), val_samples=1)
    assert np.array(data.table("train")[0]["label"]).tolist() == [[3.5], [-100.0], [7.0], [0.0]]
    batch = next(iter(data.train_dataloader()))
    assert (batch["labels"].dtype, batch["labels"].shape) == (torch.float64, (3, 1))
    used = data.stored_labels("train")
    assert (data.labels.mean, data.labels.deviation) == ([used.mean()], [used.std()])  # of the used rows only


def test_a_regression_that_is_only_tested_has_the_mean_of_the_rows_it_was_trained_on(
    tiny_model: str, tmp_path: Path
) -> None:
    train = jsonl(tmp_path / "train.jsonl", *({"text": "good", "label": i * i} for i in range(20)))
    test = jsonl(tmp_path / "test.jsonl", {"text": "bad", "label": 1000})
    options = {"train_file": train, "test_file": test, "val_samples": 5, "train_samples": 8}
    trained = made(TextRegression, tiny_model, tmp_path, **options)
    tested = TextRegression(tokenizer=tiny_model, cache_dir=str(tmp_path / "cache"), **options)
    tested.setup("test")
    assert (tested.labels.mean, tested.labels.deviation) == (trained.labels.mean, trained.labels.deviation)
    assert trained.labels.mean == [trained.stored_labels("train").mean()]


def test_rows_without_a_number_are_named_or_left_out_and_counted(tiny_model: str, tmp_path: Path) -> None:
    rows = [{"text": "good", "label": x} for x in (1, 2, None, float("nan"), "many", [1], "inf", 3)]
    file = jsonl(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=r"5 of 8 rows cannot be used .*line 3: target 'label' is missing") as error:
        made(TextRegression, tiny_model, tmp_path, train_file=file, val_file=file)
    assert "line 5: target 'label' is 'many', no number" in str(error.value)
    data = made(TextRegression, tiny_model, tmp_path, train_file=file, val_file=file, on_bad_row="skip")
    assert data.describe()["tables"]["train"]["skipped_rows"] == 5
    assert data.labels.mean == [2.0]


def test_given_means_replace_those_of_the_rows(tiny_model: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"text": "good", "a": i, "b": 2 * i} for i in range(4)))
    options = {"train_file": file, "val_file": file, "label_column": ["a", "b"]}
    data = made(TextRegression, tiny_model, tmp_path, **options, target_mean=[0.0, 1.0], target_deviation=[1.0, 2.0])
    assert (data.describe()["target_mean"], data.describe()["target_deviation"]) == ([0.0, 1.0], [1.0, 2.0])
    with pytest.raises(UserError, match=r"data.target_mean has 1 numbers for 2 targets \(a, b\)"):
        TextRegression(**options, target_mean=1.0)
    with pytest.raises(UserError, match="data.target_deviation must be positive"):
        TextRegression(train_file=file, target_deviation=0.0)


SETS = [["joy", "love"], ["love"], [], ["anger"]]
AS_TEXT = ["joy, love", "love", "", "anger"]


@pytest.mark.parametrize("form", ["lists", "text", "python", "columns", "numbers"])
def test_labels_are_read_in_every_form(form: str, tiny_model: str, tmp_path: Path) -> None:
    names, options = ["anger", "joy", "love"], {}
    if form == "lists":
        file = jsonl(tmp_path / "a.jsonl", *({"text": "good", "labels": labels} for labels in SETS))
    elif form == "numbers":
        rows = ({"text": "good", "labels": [names.index(name) for name in labels]} for labels in SETS)
        file, options = jsonl(tmp_path / "a.jsonl", *rows), {"label_names": names}
    elif form == "columns":
        lines = [",".join(["good", *(str(int(name in labels)) for name in names)]) for labels in SETS]
        (tmp_path / "a.csv").write_text("\n".join(["text,anger,joy,love", *lines]) + "\n")
        file, options = str(tmp_path / "a.csv"), {"label_column": names}
    else:
        cells = AS_TEXT if form == "text" else [str(labels) for labels in SETS]
        (tmp_path / "a.tsv").write_text("\n".join(["text\tlabels", *(f"good\t{cell}" for cell in cells)]) + "\n")
        file = str(tmp_path / "a.tsv")
    data = made(TextMultiLabel, tiny_model, tmp_path, train_file=file, val_file=file, **options)
    assert data.label_names == names
    expected = [[int(name in labels) for name in names] for labels in SETS]
    assert np.array(data.table("train")[0]["label"]).tolist() == expected
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].tolist() == [expected[row] for row in batch["row"]]
    facts = data.describe()
    assert facts["classes"]["train"] == {"anger": 1, "joy": 1, "love": 2}
    assert (facts["tables"]["train"]["rows_without_label"], facts["labels_per_row"]["val"]) == (1, 1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the labels are missing; an empty list is a row without labels"),
        (["joy", None], "holds something that is no label"),
        ({"joy": 1}, "the labels are missing"),
        (["grief"], "label 'grief' is not one of anger, joy, love; see data.label_names"),
    ],
)
def test_labels_that_cannot_be_used_are_named(value, message: str, tiny_model: str, tmp_path: Path) -> None:
    rows = [{"text": "good", "labels": labels} for labels in (*SETS, value)]
    file, names = jsonl(tmp_path / "a.jsonl", *rows), ["anger", "joy", "love"]
    with pytest.raises(UserError, match="line 5") as error:
        made(TextMultiLabel, tiny_model, tmp_path, train_file=file, val_file=file, label_names=names)
    assert message in str(error.value)


def test_test_rows_have_the_labels_of_the_training_rows(tiny_model: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"text": "good", "labels": labels} for labels in SETS))
    tested = jsonl(tmp_path / "b.jsonl", {"text": "good", "labels": ["love"]})
    data = made(TextMultiLabel, tiny_model, tmp_path, train_file=file, val_file=tested, test_file=tested)
    for split in ("val", "test"):
        assert np.array(data.table(split)[0]["label"]).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (True, "1"),
        (False, "0"),
        (1.0, "1"),
        (2.0**70, str(2**70)),
        (1.5, "1.5"),
        (" a ", "a"),
        ("1.0", "1"),
        (None, None),
    ],
)
def test_a_label_is_the_text_that_people_mean(label: Any, text: str | None) -> None:
    assert label_text(label) == text


def test_a_new_label_in_the_validation_rows_is_named(tiny_model: str, tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", *({"text": "good", "labels": labels} for labels in SETS))
    val = jsonl(tmp_path / "b.jsonl", {"text": "good", "labels": ["grief"]}, {"text": "bad", "labels": []})
    with pytest.raises(UserError, match="b.jsonl line 1: label 'grief' is not one of anger, joy, love"):
        made(TextMultiLabel, tiny_model, tmp_path, train_file=train, val_file=val)


GLUE_ROWS = {  # rows, and class 1 or the mean
    "cola": (8551, 1043, {"unacceptable": 322, "acceptable": 721}),
    "rte": (2490, 277, {"entailment": 146, "not_entailment": 131}),
    "wnli": (635, 71, {"not_entailment": 40, "entailment": 31}),
    "mrpc": (3668, 408, {"not_equivalent": 129, "equivalent": 279}),
}


@pytest.mark.parametrize("task", [*GLUE_ROWS, "stsb"])
def test_glue_files_have_the_known_rows(task: str, shared: Path, tiny_model: str, tmp_path: Path) -> None:
    files = {f"{split}_file": str(shared / "data" / "glue" / task / f"{name}.tsv") for split, name in
             (("train", "train"), ("val", "dev"))}  # fmt: skip
    data = made(GLUE, tiny_model, tmp_path, task=task, max_length=128, **files)
    facts = data.describe()
    if task == "stsb":
        assert facts["rows"] == {"train": 5749, "val": 1500}
        assert facts["target_mean"] == pytest.approx([2.701], abs=1e-3)
        assert data.stored_labels("val").mean() == pytest.approx(2.364, abs=1e-3)
        return
    train, val, classes = GLUE_ROWS[task]
    assert (facts["rows"], facts["classes"]["val"]) == ({"train": train, "val": val}, classes)


def test_glue_names_the_columns_classes_and_metrics_of_each_task() -> None:
    official = {
        "cola": ["matthews"], "mrpc": ["accuracy", "binary_f1"], "qqp": ["accuracy", "binary_f1"],
        "stsb": ["pearson", "spearman"],
    }  # fmt: skip
    classes = {"stsb": 1, "mnli": 3, "mnli_mismatched": 3}
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli_mismatched", "qnli", "rte", "wnli"]
    for task in TASKS:
        data = GLUE(task=task)
        assert data.metrics[: data.official_metrics] == official.get(task, ["accuracy"]), task
        assert len(data.label_names) == classes.get(task, 2), task
        assert data.labels.kind == ("number" if task == "stsb" else "class"), task
    assert GLUE(task="mnli_mismatched").splits["val"] == "validation_mismatched"
    assert (GLUE(task="mnli").subset, GLUE(task="mnli").splits["test"]) == ("mnli", "test_matched")


ORIGINAL = {  # GLUE's own files: name, lines
    "cola": ["gj04\t1\t\tthe film was good", "gj04\t0\t*\twas film the bad", "gj04\t1\t\tgood"],
    "mrpc": ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\tgood\tfine", "0\t3\t4\tgood\tbad"],
    "stsb": ["index\tgenre\tsentence1\tsentence2\tscore", "0\tx\tgood\tfine\t4.800", "1\tx\tgood\tbad\t0.200"],
    "qqp": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tgood\tfine\t1", "1\t3\t4\tgood\tbad\t0"],
    "mnli": ["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\tgood\tfine\tx\tentailment",
             "1\tgood\tbad\tx\tcontradiction"],
    "rte": ["index\tsentence1\tsentence2\tlabel", "0\tgood\tfine\tentailment", "1\tgood\tbad\tnot_entailment"],
}  # fmt: skip


@pytest.mark.parametrize("task", ORIGINAL)
def test_glue_reads_the_files_of_its_own_download(task: str, tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("\n".join(ORIGINAL[task]) + "\n")
    file = str(tmp_path / "train.tsv")
    data = made(GLUE, tiny_model, tmp_path, task=task, train_file=file, val_file=file)
    table, _ = data.table("train")
    expected = {"cola": [1, 0, 1], "stsb": [[4.8], [0.2]], "mnli": [0, 2], "rte": [0, 1]}.get(task, [1, 0])
    assert [np.array(label).tolist() for label in table["label"]] == expected
    assert table["text"][0] == ("the film was good" if task == "cola" else "good\nfine")


def test_a_score_outside_the_scale_is_named(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("sentence1\tsentence2\tlabel\ngood\tfine\t-1\ngood\tbad\t2\n")
    with pytest.raises(UserError, match="line 2: target 'label' is -1, not from 0 to 5"):
        made(GLUE, tiny_model, tmp_path, task="stsb", train_file=str(tmp_path / "a.tsv"))


@pytest.mark.parametrize(
    ("kind", "options", "name"), [(GLUE, {"task": "rte"}, "nyu-mll/glue"), (IMDB, {}, "stanfordnlp/imdb")]
)
def test_a_hub_that_cannot_be_reached_is_one_sentence(
    kind: type, options: dict, name: str, tiny_model: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"{name}.*local files \(data.train_file, data.val_file\)"):
        made(kind, tiny_model, tmp_path, **options)


def test_imdb_reads_files(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "good film,1\nbad film,0\n" * 10)
    data = made(IMDB, tiny_model, tmp_path, train_file=str(tmp_path / "a.csv"), val_samples=4)
    assert data.describe()["classes"] == {
        "train": {"negative": 8, "positive": 8},
        "val": {"negative": 2, "positive": 2},
    }


def test_official_metrics_of_glue_are_those_of_the_run(tiny_model: str, tmp_path: Path) -> None:
    lines = [f"{'good' if i % 3 else 'bad'} film\tthe film\t{i % 2}" for i in range(16)]
    (tmp_path / "a.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *lines]) + "\n")
    files = ["--data.train_file", str(tmp_path / "a.tsv"), "--data.val_file", str(tmp_path / "a.tsv")]
    options = ["--model", "SequenceClassification", "--model.model_name", tiny_model, "--model.dtype", "fp32"]
    options += ["--data", "GLUE", "--data.task", "mrpc", *files, "--trainer.max_steps", "1"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *options, *quiet, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert record["main_metrics"] == ["val_accuracy", "val_binary_f1"]
    assert (list(record["other_metrics"]), record["val_accuracy"] is None) == (["val_binary_f1"], False)


def test_a_file_whose_rows_have_one_label_only_is_refused(tiny_model: str, tmp_path: Path) -> None:
    rows = [{"text": "good", "labels": ["a"]}, {"text": "bad", "labels": ["a"]}, {"text": "film", "labels": []}]
    file = jsonl(tmp_path / "one.jsonl", *rows)
    with pytest.raises(UserError, match=r"one.jsonl: the rows have 1 different labels; two are needed"):
        made(TextMultiLabel, tiny_model, tmp_path, train_file=file, val_samples=1)
