"""The cache key of a table changes with everything that its rows depend on, and with nothing else."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import datasets
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from litpeft.data import (
    ArithmeticInstructions,
    Conversations,
    FineTuneData,
    ImageFolder,
    Text,
    TextClassification,
    TextMultiLabel,
    TextRegression,
    base,
    cache,
    chats,
    raw_files,
)
from litpeft.data.base import Split
from litpeft.data.cache import cached_table, dataset_of, fingerprint, highest_token, tokenizer_fingerprint
from litpeft.data.number_labels import NumberLabels
from litpeft.data.tabular import TabularData
from litpeft.data.templates import NONE, find_template

WORDS = ["[PAD]", "[UNK]", "[END]", "the", "cat", "sat", "one", "two", "say", "good", "bad"]
ROWS = [
    {"text": "the cat", "other": "sat", "label": 1, "labels": "good", "number": 0.5, "prompt": "say one", "response": "one"},
    {"text": "sat the", "other": "cat", "label": 2, "labels": "bad;good", "number": 1.5, "prompt": "say two", "response": "two"},
    {"text": "one two", "other": "the", "label": 1, "labels": "bad", "number": 2.5, "prompt": "say", "response": "one two"},
]  # fmt: skip
CHAT = {"prompt_column": "prompt", "response_column": "response", "template": "plain"}
KINDS: dict[str, tuple[type[FineTuneData], dict[str, Any]]] = {
    "classes": (TextClassification, {"label_offset": 1}),
    "numbers": (TextRegression, {"label_column": "number"}),
    "sets": (TextMultiLabel, {"label_separator": ";"}),
    "conversations": (Conversations, CHAT),
    "text": (Text, {}),
}
CHANGES = {  # kind -> options that change ids, labels or rows
    "classes": [
        {"max_length": 6}, {"text_column": "other"}, {"text_column": ["text", "other"]},
        {"text_column": ["text", "other"], "join_columns": True}, {"label_column": "labels"}, {"label_names": ["a", "b"]},
        {"label_names": ["b", "a"]}, {"label_offset": 0, "label_names": ["x", "y", "z"]}, {"on_bad_row": "skip"},
    ],
    "numbers": [{"max_length": 6}, {"text_column": "other"}, {"label_column": "label"}, {"label_column": ["number", "label"]}],
    "sets": [
        {"max_length": 6}, {"text_column": "other"}, {"label_separator": ","}, {"label_names": ["good", "bad"]},
        {"label_names": ["bad", "good"]},
    ],
    "conversations": [
        {"max_length": 8}, {"template": "alpaca"}, {"template": "none"}, {"prompt_column": "text"},
        {"response_column": "other"}, {"system_column": "other"}, {"input_column": "other"},
    ],
    "text": [{"max_length": 6}, {"text_column": "other"}],
}  # fmt: skip
HARMLESS = [{"batch_size": 2}, {"num_workers": 1}, {"seed": 3}, {"train_samples": 2}, {"val_samples": 1}]


def save_tokenizer(folder: Path, words: list[str] = WORDS, end: str = "[END]") -> str:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token=end, model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a file, a tokenizer and a cache folder."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    files = dict.fromkeys(("train_file", "val_file"), str(folder / "rows.jsonl"))
    return {"tokenizer": save_tokenizer(folder / "words"), "cache_dir": str(folder / "cache"), "max_length": 16} | files


def key(kind: str, common: dict[str, Any], split: Split = "train", **options: Any) -> str:
    """Return the name of the folder in which a data set looks for the table of a split."""
    cls, own = KINDS[kind]
    with patch.object(base, "cached_table", lambda folder, make: (None, {})):  # neither tokenised nor written
        return cls(**common | own | options).table(split)[1]["fingerprint"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_options_of_rows_from_the_hub_count_too(kind: str, common: dict[str, Any]) -> None:
    rows = SimpleNamespace(_fingerprint="rows", features={})
    hub = {name: item for name, item in common.items() if not name.endswith("_file")} | {"dataset": "user/name"}
    with patch.object(TabularData, "hub_rows", lambda data, split: rows):
        keys = [key(kind, hub), *(key(kind, hub, **change) for change in CHANGES[kind])]
        assert len(set(keys)) == len(keys)
        rows._fingerprint = "other rows"
        assert key(kind, hub) not in keys


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_that_changes_rows_changes_the_key_and_no_other_does(kind: str, common: dict[str, Any]) -> None:
    keys = [key(kind, common), *(key(kind, common, **change) for change in CHANGES[kind])]
    assert len(set(keys)) == len(keys)
    assert {key(kind, common, **same) for same in HARMLESS} == {keys[0]}


@pytest.mark.parametrize("streaming", [False, True])
def test_every_byte_of_a_file_counts_unless_it_is_streamed(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_files, "SAMPLED", 20)
    text = "text\n" + "a b\n" * 30
    sources = []
    for changed in (None, 8, 60, 120):
        file = tmp_path / f"{changed}.csv"
        file.write_text(text if changed is None else f"{text[:changed]}c{text[changed + 1 :]}")
        data = Text(train_file=str(file), val_file=str(file), streaming=streaming)
        sources.append([data.source_of_rows(split)["file"] for split in ("train", "val")])
    train, val = ([found[number] for found in sources] for number in (0, 1))
    assert len(set(val)) == 4
    assert len(set(train)) == (3 if streaming else 4)
    assert (train[0] == train[2]) == streaming  # not the first or last bytes


def test_each_split_of_generated_questions_has_a_table_of_its_own(common: dict[str, Any]) -> None:
    """Splits of as many rows must not share one; what is asked in `predict` is what is asked in `test`."""
    few = {"train_rows": 4, "val_rows": 4, "test_rows": 4}
    own = {name: value for name, value in common.items() if not name.endswith("_file")}
    changes = [{}, {"digits": 1}, {"operations": ["add"]}, dict.fromkeys(few, 5)]
    with patch.object(base, "cached_table", lambda folder, make: (None, {})):  # neither tokenised nor written
        sets = [ArithmeticInstructions(**own | few | change) for change in changes]
        keys = [
            {split: data.table(split)[1]["fingerprint"] for split in ("train", "val", "test", "predict")}
            for data in sets
        ]
    assert all(found.pop("predict") == found["test"] for found in keys)
    assert len({key for found in keys for key in found.values()}) == 3 * len(changes)


def test_the_order_of_what_a_table_depends_on_does_not_count() -> None:
    """Facts have the order in which code or a file names them; the order of a list is one of the facts."""
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
    assert fingerprint("a", "b") != fingerprint("b", "a")


@pytest.mark.parametrize(
    ("kind", "version"), [*[(kind, (cache, "FORMAT")) for kind in KINDS], ("conversations", (chats, "RULES"))]
)
def test_no_table_of_an_earlier_format_is_read(kind: str, version: tuple[Any, str], common: dict[str, Any]) -> None:
    module, name = version
    found = [key(kind, common)]
    for earlier in range(getattr(module, name)):
        with patch.object(module, name, earlier):
            found.append(key(kind, common))
    assert len(set(found)) == len(found) > 1


def test_the_limits_of_a_target_count() -> None:
    """A row outside of the limits is bad, so tables with other limits have other rows."""
    rules = [NumberLabels(None, ["score"], limits=limits).rules("train") for limits in (None, (0, 5), (0, 4), (1, 5))]
    assert len({fingerprint(each) for each in rules}) == 4


NAMES = {"label_names": ["good", "bad"]}
KNOWN: dict[str, dict[str, Any]] = {"classes": NAMES, "sets": NAMES}  # else they are taken from the training rows


@pytest.mark.parametrize("kind", KINDS)
def test_rows_to_predict_have_a_table_of_their_own(kind: str, common: dict[str, Any]) -> None:
    """Without a file they are the test rows, but their labels and answers are left out."""
    given = {"test_file": common["train_file"]} | KNOWN.get(kind, {})
    assert key(kind, common, "predict", **given) != key(kind, common, "test", **given)


IMAGES_CHANGE = [{"label_names": ["b", "a"]}, {"on_bad_row": "skip"}]
TABLES_CHANGE = [*IMAGES_CHANGE, {"image_column": "other"}, {"label_column": "other"}, {"columns": ["image", "label"]}]
SAME_IMAGES: list[dict[str, Any]] = [{"batch_size": 2}, {"random_crop": None}, {"random_flip": 0.0}, {"tokenizer": "x"}]


def key_of_images(split: Split = "train", **options: Any) -> str:
    with patch.object(base, "cached_table", lambda folder, make: (None, {"label_names": ["a", "b"]})):
        return ImageFolder(**options).table(split)[1]["fingerprint"]


@pytest.mark.parametrize(("kind", "changes"), [("folder", IMAGES_CHANGE), ("table", TABLES_CHANGE)])
def test_what_changes_the_rows_of_images_changes_the_key(
    kind: str, changes: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(b"image")
    (folder / "table.csv").write_text("image,label,other\na/0.png,a,b\nb/0.png,b,a\n")
    path = str(folder if kind == "folder" else folder / "table.csv")
    files = dict.fromkeys(("train_file", "test_file"), path)
    first = key_of_images(**files)
    assert {key_of_images(**files | same) for same in SAME_IMAGES} == {first}
    keys = [first, *(key_of_images(**files | change) for change in changes)]
    keys += [key_of_images("test", **files), key_of_images("predict", **files)]  # of the same images, without labels
    assert len(set(keys)) == len(keys)
    if kind == "table":
        (folder / "a" / "0.png").write_bytes(b"another")
        assert key_of_images(**files) == first
        assert key_of_images(**files, on_bad_row="skip") not in keys  # an image that was left out may be mended
        (folder / "table.csv").write_text("image,label,other\na/0.png,b,b\nb/0.png,a,a\n")
        assert key_of_images(**files) != first
        return
    monkeypatch.chdir(tmp_path)
    here = dict.fromkeys(files, "images")
    keys.append(key_of_images(**here))
    shutil.copytree(folder, tmp_path / "copy" / "images", copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path / "copy")  # the same relative paths of other images
    keys.append(key_of_images(**here))
    before = (folder / "a" / "0.png").stat()
    (folder / "a" / "0.png").write_bytes(b"an image")  # another size
    os.utime(folder / "a" / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    keys.append(key_of_images(**files))
    (folder / "a" / "0.png").write_bytes(b"image")
    os.utime(folder / "a" / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    keys.append(key_of_images(**files))
    os.utime(folder / "a" / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert key_of_images(**files) == first
    (folder / "b" / "0.png").rename(folder / "b" / "1.png")
    keys.append(key_of_images(**files))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("kind", KINDS)
def test_two_tokenizers_of_one_class_share_no_table(kind: str, common: dict[str, Any], tmp_path: Path) -> None:
    swapped = [{"cat": "sat", "sat": "cat"}.get(word, word) for word in WORDS]
    other = save_tokenizer(tmp_path / "swapped", swapped)
    same = save_tokenizer(tmp_path / "same")
    assert key(kind, common, tokenizer=other) != key(kind, common) == key(kind, common, tokenizer=same)


@pytest.mark.parametrize(
    "option",
    [{"truncation_side": "left"}, {"split_special_tokens": True}],
)
def test_options_of_a_tokenizer_that_are_not_in_its_rules_count(
    option: dict[str, Any], common: dict[str, Any], tmp_path: Path
) -> None:
    PreTrainedTokenizerFast.from_pretrained(common["tokenizer"], **option).save_pretrained(tmp_path / "other")
    assert key("classes", common, tokenizer=str(tmp_path / "other")) != key("classes", common)


def test_how_a_compressed_file_is_read_counts(common: dict[str, Any], tmp_path: Path) -> None:
    rows = gzip.compress(b"text,label\na,1\nb,2\n")
    keys = []
    for names in (["a.csv.gz"], ["a.tsv.gz"], ["a.csv.gz", "b.csv.gz"], ["a.csv.gz", "b.tsv.gz"]):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(rows)
        keys.append(key("text", common, train_file=str(folder / "*.gz")))
    assert len(set(keys)) == 4


def test_a_template_like_none_is_none(common: dict[str, Any], tmp_path: Path) -> None:
    """Both have one key, so conversations of several turns must be the same."""
    (tmp_path / "own.yaml").write_text(json.dumps(NONE))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(common["tokenizer"])
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    none, own = (find_template(name, tokenizer)[0] for name in ("none", str(tmp_path / "own.yaml")))
    assert none.prompt(turns) == own.prompt(turns)
    assert none.jinja_text() == own.jinja_text()


@pytest.mark.parametrize("kind", ["conversations", "text"])
def test_another_end_of_text_token_gives_another_table(kind: str, common: dict[str, Any], tmp_path: Path) -> None:
    assert key(kind, common, tokenizer=save_tokenizer(tmp_path / "end", end="[PAD]")) != key(kind, common)


def test_the_template_for_tools_counts_and_so_does_that_of_an_input(common: dict[str, Any], tmp_path: Path) -> None:
    keys = set()
    plain = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    for tools in ("{{ tools }}", "{{- tools }}"):
        saved = PreTrainedTokenizerFast.from_pretrained(common["tokenizer"])
        saved.chat_template = {"default": plain, "tool_use": plain + tools}
        saved.save_pretrained(tmp_path / "named")
        keys.add(key("conversations", common, tokenizer=str(tmp_path / "named"), template="chat"))
    for middle in ("Input:", "Text:"):
        texts = {"prompt_no_input": "{instruction} A:", "prompt_input": "{instruction} " + middle + " {input} A:"}
        (tmp_path / f"{middle[0]}.json").write_text(json.dumps(texts))
        keys.add(key("conversations", common, template=str(tmp_path / f"{middle[0]}.json")))
    assert len(keys) == 4


def test_the_rows_of_an_encoder_decoder_model_have_a_table_of_their_own(common: dict[str, Any]) -> None:
    columns = {}
    for encoder in (False, True):
        data = Conversations(**common | CHAT)
        task = SimpleNamespace(encoder_decoder=encoder, model_name=None)
        data.trainer = SimpleNamespace(lightning_module=task, state=SimpleNamespace(fn=None))
        table = data.table("train")[0]
        columns[encoder] = set(table.column_names)
        if encoder:
            tokenizer = data.tokenizer
            expected = [
                [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                for answer in table["answer"]
            ]
            assert [list(row) for row in table["response"]] == expected
            assert tokenizer.eos_token_id is not None
    assert "response" in columns[True]
    assert "ids" in columns[False]


def test_the_key_does_not_depend_on_what_the_tokenizer_was_called_with(common: dict[str, Any]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(common["tokenizer"])
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["the cat sat"], truncation=True, max_length=2, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before


def test_the_vocabulary_of_a_slow_tokenizer_counts() -> None:
    def slow(**vocabulary: int) -> Any:
        return SimpleNamespace(get_vocab=lambda: vocabulary, special_tokens_map={"pad_token": "x"})

    assert tokenizer_fingerprint(slow(a=0, b=1)) != tokenizer_fingerprint(slow(a=1, b=0))
    assert tokenizer_fingerprint(slow(a=0, b=1)) == tokenizer_fingerprint(slow(a=0, b=1))
    lower, upper = (slow(a=0, b=1) for _ in range(2))
    lower.init_kwargs = {"do_lower_case": True, "vocab_file": "x"}
    upper.init_kwargs = {"do_lower_case": False, "vocab_file": "x"}
    assert tokenizer_fingerprint(lower) != tokenizer_fingerprint(upper)
    upper.init_kwargs = {"do_lower_case": True, "vocab_file": "y"}
    assert tokenizer_fingerprint(lower) == tokenizer_fingerprint(upper)


def test_the_largest_token_may_be_in_any_chunk_and_a_damaged_table_is_made_again(tmp_path: Path) -> None:
    chunks = [
        pa.table({"input_ids": pa.array([[token]], pa.list_(pa.int32())), "label": [0]}) for token in (3, 123456, 4)
    ]
    table = dataset_of(pa.concat_tables(chunks))
    assert highest_token(table) == 123456
    made = []

    def make() -> tuple[Any, dict[str, Any]]:
        made.append(1)
        return table, {}

    for _ in range(2):
        found, facts = cached_table(tmp_path / "table", make)
        assert (found["input_ids"][:], facts["highest_token"]) == ([[3], [123456], [4]], 123456)
    assert len(made) == 1
    file = next((tmp_path / "table").rglob("*.arrow"))
    number = (123456).to_bytes(4, "little")
    file.write_bytes(file.read_bytes().replace(number, (123457).to_bytes(4, "little")))  # still a valid file
    assert cached_table(tmp_path / "table", make)[0]["input_ids"][:] == [[3], [123456], [4]]
    assert len(made) == 2


def test_of_two_processes_that_write_one_table_the_first_to_finish_wins(tmp_path: Path) -> None:
    """The other one may be read already."""
    table = datasets.Dataset.from_dict({"label": [1]})

    def slow() -> tuple[Any, dict[str, Any]]:
        cached_table(tmp_path / "table", lambda: (table, {"made_by": "another process"}))
        return table, {"made_by": "this process"}

    assert cached_table(tmp_path / "table", slow)[1]["made_by"] == "another process"
