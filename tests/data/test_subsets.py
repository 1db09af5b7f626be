"""Subsets and splits of a repository of the hub, here in a folder laid out like one."""

from __future__ import annotations

import json

import pytest

from litpeft.data import TextClassification
from litpeft.errors import UserError
from tests.data.test_text_classification import make

SPLITS = {"mrpc": ["train", "validation"], "mnli": ["train", "validation_matched", "validation_mismatched"]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("glue")
    configs = []
    for subset, splits in SPLITS.items():
        (folder / subset).mkdir()
        files = []
        for number, split in enumerate(splits):
            rows = [{"a": f"{split} {i}", "b": f"y {i}", "label": i % 2} for i in range(40 if split == "train" else 8)]
            (folder / subset / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows[number:])))
            files.append({"split": split, "path": f"{subset}/{split}.jsonl"})
        configs.append({"config_name": subset, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return str(folder)


def load(repository: str, tiny_model: str, **options: str) -> TextClassification:
    return make(TextClassification, tokenizer=tiny_model, dataset=repository, text_column=["a", "b"], **options)


def test_a_subset_and_its_splits_are_read(repository: str, tiny_model: str) -> None:
    data = load(repository, tiny_model, subset="mrpc")
    assert data.describe()["rows"] == {"train": 40, "val": 7}
    data = load(repository, tiny_model, subset="mnli", val_split="validation_mismatched")
    assert data.describe()["rows"] == {"train": 40, "val": 6}
    assert data.table("val")[0]["text"][0].startswith("validation_mismatched")
    assert data.describe()["val_cut_from_train"] is None


def test_an_unused_validation_split_is_told(repository: str, tiny_model: str) -> None:
    cut = load(repository, tiny_model, subset="mnli").describe()["val_cut_from_train"]
    assert cut.endswith("(data.val_split may name another: validation_matched, validation_mismatched)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^data\.subset is missing; \S+ has mrpc, mnli\.$"),
        ({"subset": "rte"}, r"^data\.subset rte: there is no such subset; \S+ has mrpc, mnli\.$"),
        (
            {"subset": "mrpc", "val_split": "dev"},
            r"^data\.val_split dev: there is no such split; .* has train, validation",
        ),
        (
            {"subset": "mrpc", "train_split": "sft"},
            r"^data\.train_split sft: there is no such split; .* has train, valid",
        ),
    ],
)
def test_a_wrong_name_is_told_with_the_right_ones(
    repository: str, tiny_model: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(repository, tiny_model, **options)
