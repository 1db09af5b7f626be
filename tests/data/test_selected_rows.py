"""Which rows of a table are used: samples of the whole file, and validation rows that are not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from litpeft.data import SST2, TextClassification
from litpeft.data.base import MAX_VAL_ROWS
from litpeft.data.told import tell
from tests.data.test_text_classification import make, tsv


@pytest.fixture
def sorted_file(tmp_path: Path) -> str:
    """Return a file whose rows are sorted by label, as files often are."""
    return tsv(
        tmp_path / "sorted.tsv", *(f"the film was {'good' if i < 50 else 'bad'}\t{int(i < 50)}" for i in range(100))
    )


def test_a_sample_of_a_sorted_file_has_rows_from_all_of_it(sorted_file: str, tiny_model: str) -> None:
    options = {"tokenizer": tiny_model, "train_file": sorted_file, "val_file": sorted_file}
    data = make(TextClassification, train_samples=30, val_samples=20, **options)
    for split, count in (("train", 30), ("val", 20)):
        rows = data.rows[split].rows.tolist()
        assert len(rows) == count
        assert rows == sorted(set(rows))
        assert 0.2 < sum(row < 50 for row in rows) / count < 0.8
        labels = data.rows[split][list(range(count))]["labels"].tolist()
        assert labels == [int(row < 50) for row in rows]


@pytest.mark.parametrize("val_cut", ["stratified", "random"])
@pytest.mark.parametrize("samples", [None, 1, 7, 99])
def test_each_row_is_trained_on_or_validated(
    sorted_file: str, tiny_model: str, val_cut: str, samples: int | None
) -> None:
    data = make(TextClassification, tokenizer=tiny_model, train_file=sorted_file, val_samples=samples, val_cut=val_cut)
    train, val = (data.rows[split].rows.tolist() for split in ("train", "val"))
    assert sorted(train + val) == list(range(100))
    assert len(val) == (samples or min(MAX_VAL_ROWS, 10))
    if val_cut == "stratified" and len(val) > 1:
        assert abs(sum(row < 50 for row in val) - len(val) / 2) <= 1


def test_lengths_belong_to_the_selected_rows(tiny_model: str, tmp_path: Path) -> None:
    file = tsv(tmp_path / "a.tsv", *(f"{'the ' * (1 + i % 9)}film\t{i % 2}" for i in range(60)))
    data = make(SST2, tokenizer=tiny_model, train_file=file, text_column="text", label_column="label", train_samples=20)
    rows = data.rows["train"]
    whole = [int(rows[[place]]["attention_mask"].sum()) for place in range(len(rows))]
    assert rows.lengths.tolist() == whole
    assert len(set(whole)) > 1


def test_more_rows_asked_for_than_there_are_is_said(
    tiny_model: str, sentences: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"train_samples": 97, "val_samples": 32}
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], **options)
    data.setup("fit")
    facts = data.describe()
    assert facts["asked"] == {"train": 97}
    tell(facts)
    assert "litpeft: train: 96 rows (data.train_samples 97: there are no more); tokens" in capsys.readouterr().err
