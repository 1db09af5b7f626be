"""From files to batches: labels, limits, the cache, and the two formats of AG News."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from litpeft.data import SST2, AGNews, FineTuneData, TextClassification, base
from litpeft.data.collate import EncodedRows
from litpeft.errors import UserError
from tests.conftest import write_sentences


def make(kind=TextClassification, stage: str = "fit", **options) -> FineTuneData:
    data = kind(**options)
    data.setup(stage)
    return data


def tsv(path: Path, *rows: str, header: str = "text\tlabel") -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_live_through_all_epochs(
    workers: int, tiny_model: str, sentences: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"train_file": sentences["train"], "val_file": sentences["val"]}
    data = make(SST2, tokenizer=tiny_model, num_workers=workers, **files)
    monkeypatch.setattr(type(data.rows["train"]), "__getitem__", lambda *_: os.getpid())
    loader = data.train_dataloader()
    processes = {process for _ in range(2) for process in loader}
    assert len(processes) == 1
    assert (os.getpid() in processes) == (workers == 0)


def test_a_batch_is_the_padded_output_of_the_tokenizer(tiny_model: str, sentences: dict[str, str]) -> None:
    data = make(SST2, tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], batch_size=5)
    lines = [line.split("\t") for line in Path(sentences["train"]).read_text().splitlines()[1:]]
    seen = []
    for batch in data.train_dataloader():
        texts = [lines[row][0] for row in batch["row"].tolist()]
        expected = data.tokenizer(texts, padding=True, return_tensors="pt")
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])
        assert batch["labels"].tolist() == [int(lines[row][1]) for row in batch["row"].tolist()]
        seen += batch["row"].tolist()
    assert sorted(seen) == list(range(96))
    assert data.num_train_batches == 20


def test_long_texts_are_truncated_counted_and_keep_their_end_token(tiny_model: str, tmp_path: Path) -> None:
    file = tsv(tmp_path / "a.tsv", "the film was good\t1", "bad\t0", "the film was a very very bad film\t0")
    data = make(tokenizer=tiny_model, train_file=file, val_file=file, max_length=6)
    ids = [
        batch["input_ids"][0].tolist()
        for batch in make(
            tokenizer=tiny_model, train_file=file, val_file=file, max_length=6, batch_size=1
        ).val_dataloader()
    ]
    assert [len(row) for row in ids] == [6, 6, 3]
    assert {row[-1] for row in ids} == {data.tokenizer.sep_token_id}
    assert data.describe()["tables"]["train"]["truncated_rows"] == 1


def test_text_is_tokenised_once_and_cached_by_its_content(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sentences(tmp_path / "a.tsv", 40, seed=7)
    calls = []
    original = TextClassification._encode
    monkeypatch.setattr(
        TextClassification, "_encode", lambda self, texts, cut: calls.append(len(texts)) or original(self, texts, cut)
    )
    options = {"tokenizer": tiny_model, "cache_dir": str(tmp_path / "cache")}
    make(SST2, train_file=file, val_samples=8, **options)
    assert calls == [40]
    copied = tmp_path / "copy.tsv"
    copied.write_bytes(Path(file).read_bytes())
    make(SST2, train_file=str(copied), val_samples=10, train_samples=3, batch_size=2, **options)
    assert calls == [40]  # other limits and another folder, but the same text
    make(SST2, train_file=file, val_samples=8, max_length=9, **options)
    assert calls == [40, 40]
    copied.write_text(copied.read_text() + "a good film\t1\n")
    make(SST2, train_file=str(copied), val_samples=8, **options)
    assert calls == [40, 40, 41]
    assert not list((tmp_path / "cache").rglob(".making-*"))


def test_selected_rows_are_the_same_for_every_seed_and_do_not_overlap(
    tiny_model: str, sentences: dict[str, str]
) -> None:
    options = {"tokenizer": tiny_model, "train_file": sentences["train"], "val_samples": 20}
    one = make(SST2, seed=1, **options)
    two = make(SST2, seed=2, train_samples=30, **options)
    assert one.rows["val"].rows.tolist() == two.rows["val"].rows.tolist()
    assert not set(one.rows["train"].rows) & set(one.rows["val"].rows)
    assert len(one.rows["train"]) == 76
    assert len(two.rows["train"]) == 30
    assert set(two.rows["train"].rows) < set(one.rows["train"].rows)
    assert [b["row"].tolist() for b in one.train_dataloader()] != [
        b["row"].tolist() for b in make(SST2, seed=2, **options).train_dataloader()
    ]
    default = make(SST2, tokenizer=tiny_model, train_file=sentences["train"])
    assert len(default.rows["val"]) == 9


def test_the_default_seed_is_that_of_the_run(tiny_model: str, sentences: dict[str, str], monkeypatch) -> None:
    options = {"tokenizer": tiny_model, "train_file": sentences["train"]}

    def order(**more) -> list:
        return [batch["row"].tolist() for batch in make(SST2, **options, **more).train_dataloader()]

    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert order() == order(seed=3) != order(seed=4)


@pytest.mark.parametrize(
    ("labels", "options", "ids", "names"),
    [
        (["0", "1", "2", "0"], {}, [0, 1, 2, 0], ["0", "1", "2"]),
        (["1", "2", "3", "1"], {"label_offset": 1}, [0, 1, 2, 0], ["1", "2", "3"]),
        (["pos", "neg", "pos", "neg"], {}, [1, 0, 1, 0], ["neg", "pos"]),
        (["pos ", "neg", " pos", "neg"], {}, [1, 0, 1, 0], ["neg", "pos"]),
        (["1", "2", "other", "2"], {}, [0, 1, 2, 1], ["1", "2", "other"]),
        (["pos", "neg", "pos", "neg"], {"label_names": ["pos", "neg"]}, [0, 1, 0, 1], ["pos", "neg"]),
        (["1", "2", "1", "2"], {"label_offset": 1, "label_names": ["a", "b"]}, [0, 1, 0, 1], ["a", "b"]),
        (["0", "2", "0", "2"], {"label_names": ["a", "b", "c"]}, [0, 2, 0, 2], ["a", "b", "c"]),
    ],
)
def test_labels_as_numbers_and_names(tiny_model: str, tmp_path: Path, labels, options, ids, names) -> None:
    file = tsv(tmp_path / "a.tsv", *(f"film {'good ' * i}\t{label}" for i, label in enumerate(labels)))
    data = make(tokenizer=tiny_model, train_file=file, val_file=file, **options)
    assert data.table("train")[0]["label"] == ids
    assert data.label_names == names


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["good\t0", "bad\t7"], {"label_names": ["a", "b"]}, "line 3: label '7' is not one of a, b (numbers 0 to 1)"),
        (["good\t0", "bad\t1"], {"label_offset": 1}, "line 2: label 0 is below data.label_offset 1"),
        (["good\ta", "bad\ta"], {}, "line 2 and all other rows have the same label, a; two classes are needed"),
        (["good\t0", " \t1"], {}, "line 3: the text is empty"),
        (["good\t0", "bad\t "], {}, "line 3: ' ': the label is missing; see data.label_column"),
        (["good\t1", "bad\t2", "dull\t3"], {}, "a.tsv: labels go from 1 to 3; give data.label_offset 1"),
        (["good\t10000000", "bad\t50000000"], {}, "labels go up to 50000000, but no row has 0"),
        (["good\t0", "bad\t7000"], {}, "labels go up to 7000, but no row has 1"),
        (
            [f"good\t0.{i}" for i in range(100, 140)],
            {},
            "40 different labels in 40 rows, for example '0.100', are too many for classes",
        ),
        (["good\t0", "bad\t1"], {"text_column": "txt"}, "line 2: no column 'txt'; it has: text, label"),
        (
            ["good\t0", "bad\t1"],
            {"val_samples": 2},
            "data.val_samples 2 leaves no training rows: validation is cut from the 2 training rows",
        ),
        (["good\t0", "bad\t1"], {"label_names": ["a", "a"]}, "data.label_names needs two or more different names"),
        (["good\t0", "bad\t1"], {"batch_size": 0}, "data.batch_size must be at least 1"),
        (["good\t0", "bad\t1"], {"max_length": 600}, "data.max_length 600 is more than the 512 tokens"),
    ],
)
def test_bad_input_is_one_sentence_with_its_place_or_option(
    tiny_model: str, tmp_path: Path, rows, options, message
) -> None:
    file = tsv(tmp_path / "a.tsv", *rows)
    with pytest.raises(UserError, match=re.escape(message)):
        make(tokenizer=tiny_model, train_file=file, **options)


def test_a_label_only_in_validation_is_refused(tiny_model: str, tmp_path: Path) -> None:
    train = tsv(tmp_path / "train.tsv", "good\tyes", "bad\tno")
    val = tsv(tmp_path / "val.tsv", "good\tyes", "bad\tperhaps")
    with pytest.raises(UserError, match=r"val.tsv line 3: label 'perhaps' is not one of no, yes"):
        make(tokenizer=tiny_model, train_file=train, val_file=val)


def test_labels_of_a_table_with_types(tiny_model: str, tmp_path: Path) -> None:
    whole = pa.Table.from_pylist([{"text": "good", "label": 1.0}, {"text": "bad", "label": 0.0}])
    parquet.write_table(whole, tmp_path / "whole.parquet")
    file = str(tmp_path / "whole.parquet")
    assert make(tokenizer=tiny_model, train_file=file, val_file=file).table("train")[0]["label"] == [1, 0]
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "good", "label": null}\n{"text": "bad", "label": 1}\n')
    with pytest.raises(UserError, match="line 1: None: the label is missing; see data.label_column"):
        make(tokenizer=tiny_model, train_file=str(empty))


def test_two_columns_of_one_name_are_refused(tiny_model: str, tmp_path: Path) -> None:
    file = tsv(tmp_path / "a.tsv", "good\t1\t0", header="text\tlabel\tlabel")
    with pytest.raises(UserError, match="line 1: two columns are called 'label'"):
        make(tokenizer=tiny_model, train_file=file)


def test_a_text_column_of_numbers_is_refused(tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": 5, "label": 0}) + "\n")
    with pytest.raises(UserError, match="line 1: column 'text' holds int, not text"):
        make(tokenizer=tiny_model, train_file=str(file))


def test_a_missing_file_and_dataset_are_refused() -> None:
    with pytest.raises(UserError, match=r"TextClassification needs data.train_file .* or data.dataset"):
        TextClassification()


def test_columns_are_joined(tiny_model: str, tmp_path: Path) -> None:
    file = tsv(tmp_path / "a.tsv", "good\tfilm\t1", "bad\tplot\t0", header="title\tbody\tlabel")
    options = {"text_column": ["title", "body"], "join_columns": True}
    data = make(tokenizer=tiny_model, train_file=file, val_file=file, **options)
    assert data.table("train")[0]["text"] == ["good film", "bad plot"]


def test_ag_news_is_read_in_both_formats(tiny_model: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    ours.write_text("label,text,source\n0,Good film,x\n3,Bad plot,y\n1,Fine story,z\n")
    theirs.write_text('"1","Good","film"\n"4","Bad","plot"\n')
    data = make(AGNews, tokenizer=tiny_model, train_file=str(ours), val_file=str(theirs))
    assert data.table("train")[0]["label"] == [0, 3, 1]
    assert data.table("val")[0]["label"] == [0, 3]
    assert data.table("val")[0]["text"] == ["Good film", "Bad plot"]
    assert data.label_names == ["World", "Sports", "Business", "Sci/Tech"]


def test_texts_to_predict_need_no_labels(tiny_model: str, tmp_path: Path, sentences: dict[str, str]) -> None:
    file = tmp_path / "new.csv"
    file.write_text("id,sentence\n1,a good film\n2,a bad film\n")
    data = make(SST2, "predict", tokenizer=tiny_model, train_file=sentences["train"], predict_file=str(file))
    assert data.table("predict")[0]["text"] == ["a good film", "a bad film"]
    fallback = make(SST2, "predict", tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"])
    assert len(fallback.rows["predict"]) == 32
    for stage in ("test", "predict"):
        with pytest.raises(UserError, match=f"SST2 has no {stage} split; give data.{stage}_file"):
            make(SST2, stage, tokenizer=tiny_model, train_file=sentences["train"])


def test_a_hub_that_cannot_be_reached_is_one_sentence(tiny_model: str) -> None:
    with pytest.raises(
        UserError, match=r"data.dataset stanfordnlp/sst2: the hub cannot be reached, .* give local files"
    ):
        make(SST2, tokenizer=tiny_model)
    with pytest.raises(
        UserError, match=r"data.tokenizer roberta-base: the hub cannot be reached, .* give a local folder"
    ):
        SST2(tokenizer="roberta-base").tokenizer  # noqa: B018


def test_data_sets_from_the_hub(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's format (features with class names, named splits), without the hub."""
    label = datasets.ClassLabel(names=["down", "up"])
    rows = {"text": ["a good film", "a bad film"] * 6, "label": [1, 0] * 6}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(text=datasets.Value("string"), label=label))
    hidden = split.remove_columns("label").add_column("label", [-1] * 12)
    whole = datasets.DatasetDict(train=split, validation=split.select(range(4)), test=hidden)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: whole)
    data = make(tokenizer=tiny_model, dataset="some/set")
    assert data.label_names == ["down", "up"]
    assert len(data.rows["train"]) == 12
    assert len(data.rows["val"]) == 4
    with pytest.raises(UserError, match=r"some/set test row 1: label '-1' is not one of down, up"):
        make(stage="test", tokenizer=tiny_model, dataset="some/set")
    assert len(make(stage="predict", tokenizer=tiny_model, dataset="some/set").rows["predict"]) == 12
    with pytest.raises(UserError, match=r"data.dataset some/set: no column 'body'; it has: text, label"):
        make(tokenizer=tiny_model, dataset="some/set", text_column="body")


def test_a_tokenizer_without_padding_pads_with_its_end(
    tiny_model: str, tmp_path: Path, sentences: dict[str, str]
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    folder = tmp_path / "no-pad"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]").save_pretrained(folder)
    data = make(SST2, tokenizer=str(folder), train_file=sentences["train"])
    assert data.tokenizer.pad_token_id == data.tokenizer.eos_token_id


def test_the_example_of_a_new_data_set_runs(tiny_model: str, tmp_path: Path) -> None:
    code = re.search(r"\n    class Echo.*", base.__doc__, re.DOTALL)[0]
    scope = {"FineTuneData": FineTuneData, "datasets": datasets}
    exec("\n".join(line[4:] for line in code.splitlines()), scope)
    data = scope["Echo"](tokenizer=tiny_model, cache_dir=str(tmp_path))
    data.setup("fit")
    assert [len(batch["labels"]) for batch in data.train_dataloader()] == [2]


def test_rows_of_several_chunks_are_read() -> None:
    parts = [datasets.Dataset.from_dict({"input_ids": [[i] * (i + 1)], "label": [i]}) for i in range(4)]
    rows = EncodedRows(datasets.concatenate_datasets(parts), np.array([3, 1]), pad_id=9)
    batch = rows[[0, 1]]
    assert batch["input_ids"].tolist() == [[3, 3, 3, 3], [1, 1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [3, 1]


def test_real_files_are_read(shared: Path, tiny_model: str) -> None:
    folder = shared / "data"
    sst2 = make(
        SST2,
        tokenizer=tiny_model,
        train_file=str(folder / "sst2_sentences" / "train.tsv"),
        val_file=str(folder / "sst2_sentences" / "dev.tsv"),
    )
    assert {split: len(rows) for split, rows in sst2.rows.items()} == {"train": 6920, "val": 872}
    assert sum(sst2.table("val")[0]["label"]) == 444
    news = AGNews(
        tokenizer=tiny_model,
        train_file=str(folder / "ag_news" / "train_subset.csv"),
        test_file=str(folder / "ag_news" / "test.csv"),
    )
    news.setup("test")
    assert np.bincount(news.table("test")[0]["label"]).tolist() == [1900] * 4
    assert len(news.table("train")[0]) == 18890
