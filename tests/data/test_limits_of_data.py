"""Numbers at the edge of what is allowed: options, rows held out for validation, bad rows, crops, names of splits."""

from __future__ import annotations

import io
import json
import logging
import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from litpeft.data import SST2, Conversations, FineTuneData, Text, TextClassification
from litpeft.data.bad_rows import BadRows
from litpeft.data.base import MAX_VAL_ROWS
from litpeft.data.image_files import decode, images_in
from litpeft.data.image_rows import ASPECTS, _crop
from litpeft.data.labels import as_option, classes_needed, warn_of_similar
from litpeft.data.sampler import LengthGroupedBatches
from litpeft.data.token_batches import TokenBatches
from litpeft.errors import UserError
from tests.data.test_cache_keys import save_tokenizer

COUNTS = ("batch_size", "batch_tokens", "max_length", "train_samples", "val_samples", "test_samples")


@pytest.mark.parametrize("name", [*COUNTS, "seed"])
def test_counts_are_at_least_1_and_a_seed_may_be_0(name: str) -> None:
    least = 0 if name == "seed" else 1
    FineTuneData(**{name: least})
    why = "must not be negative" if name == "seed" else "must be at least 1"
    with pytest.raises(UserError, match=rf"^data\.{name} {why}, got {least - 1}\.$"):
        FineTuneData(**{name: least - 1})


def test_rows_may_be_as_long_as_the_tokenizer_supports(tmp_path: Path) -> None:
    name = save_tokenizer(tmp_path / "words")
    assert FineTuneData(tokenizer=name, max_length=64).tokenizer.model_max_length == 64
    with pytest.raises(UserError, match=r"^data.max_length 65 is more than the 64 tokens that .*words supports\.$"):
        _ = FineTuneData(tokenizer=name, max_length=65).tokenizer


@pytest.mark.parametrize("kind", [TextClassification, Text, Conversations])
def test_long_texts_are_told_of_in_our_words_alone(kind: type[FineTuneData], tmp_path: Path) -> None:
    """The tokenizer would warn of indexing errors in the model, which rows that are truncated do not cause."""
    texts = ["the cat " * 40, "the cat"]
    rows = [{"text": text, "label": label, "prompt": "say", "response": text} for label, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file, heard = str(tmp_path / "a.jsonl"), []
    handler = logging.Handler()
    handler.emit = heard.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        name = save_tokenizer(tmp_path / "words")
        data = kind(tokenizer=name, max_length=16, train_file=file, val_file=file, cache_dir=str(tmp_path / "cache"))
        data.setup("fit")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in heard] == []
    assert max(len(ids) for ids in data.train_dataloader().dataset[[0]]["input_ids"]) <= 16


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_a_row_of_max_length_is_not_truncated(extra: int, tmp_path: Path) -> None:
    lines = [f"{'the ' * words}\t{words % 2}\n" for words in (8, 7, 8 + extra)]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(lines))
    file, cache = str(tmp_path / "a.tsv"), str(tmp_path / "cache")
    name = save_tokenizer(tmp_path / "words")
    data = TextClassification(tokenizer=name, max_length=8, train_file=file, val_file=file, cache_dir=cache)
    data.setup("fit")
    table, facts = data.table("train")
    assert [len(ids) for ids in table["input_ids"]] == [8, 7, 8]
    assert table["truncated"][:] == [False, False, extra > 0]
    assert facts["truncated_rows"] == data.describe()["truncated_rows"]["train"] == int(extra > 0)


def cut_rows(rows: int, **samples: int | None) -> tuple[int, int]:
    """Return the numbers of training and validation rows of a data set without a validation split."""
    data = FineTuneData(**samples)
    table = datasets.Dataset.from_dict({"input_ids": [[1]] * rows, "label": [0] * rows})
    data._tables["train"] = table, {}
    data.source = lambda split: None
    train, val = (data._selected_rows(split).tolist() for split in ("train", "val"))
    assert train == sorted(set(train))
    assert val == sorted(set(val))
    assert not set(train) & set(val)
    return len(train), len(val)


@pytest.mark.parametrize(
    ("rows", "val"), [(2, 1), (9, 1), (19, 1), (20, 2), (39, 3), (19_990, 1999), (20_000, 2000), (30_000, 2000)]
)
def test_a_tenth_of_the_rows_is_held_out_but_not_more_than_2000(rows: int, val: int) -> None:
    assert cut_rows(rows) == (rows - val, val)
    assert cut_rows(rows, train_samples=1) == (1, val)
    assert MAX_VAL_ROWS == 2000


@pytest.mark.parametrize("val", [1, 5, 9])
def test_as_many_rows_are_held_out_as_asked_for_and_the_others_are_trained_on(val: int) -> None:
    assert cut_rows(10, val_samples=val) == (10 - val, val)


@pytest.mark.parametrize(("rows", "val", "said"), [(10, 10, 10), (10, 11, 11), (1, None, 1)])
def test_a_row_to_train_on_must_be_left(rows: int, val: int | None, said: int) -> None:
    with pytest.raises(
        UserError, match=rf"^data.val_samples {said} leaves no training rows: .* cut from the {rows} training rows\.$"
    ):
        cut_rows(rows, val_samples=val)


def test_each_process_has_its_share_of_the_batches_and_an_unsharded_loader_all_rows(
    tiny_model: str, sentences: dict[str, str]
) -> None:
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], batch_size=5)
    data.setup("fit")
    assert data.num_train_batches == 20
    shares: dict[str, list[int]] = {"train": [], "val": []}
    for rank in (0, 1):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
        assert data.num_train_batches == len(data.train_dataloader()) == 10
        for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
            shares[split] += [row for batch in loader for row in batch["row"].tolist()]
        for split, rows in (("train", 96), ("val", 32)):
            found = [row for batch in data.unsharded_loader(split) for row in batch["row"].tolist()]
            assert sorted(found) == list(range(rows))
    assert {split: sorted(rows) for split, rows in shares.items()} == {"train": [*range(96)], "val": [*range(32)]}


@pytest.mark.parametrize(("variable", "seed", "used"), [(None, None, 0), ("7", None, 7), ("7", 3, 3), ("7", 0, 0)])
def test_the_seed_of_the_batches_is_that_of_the_run_unless_given(
    variable: str | None, seed: int | None, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if variable is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", variable)
    assert FineTuneData(seed=seed).seed_used == used


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 8), more=st.integers(0, 2), skip=..., may_skip=...)
@example(count=300, more=0, skip=True, may_skip=True)
@example(count=300, more=0, skip=False, may_skip=True)
@example(count=300, more=1, skip=False, may_skip=True)
def test_the_first_five_bad_rows_are_told_and_only_good_rows_are_left(
    count: int, more: int, skip: bool, may_skip: bool
) -> None:
    bad, rows = BadRows(skip, may_skip), count + more
    for number in range(count):
        bad.add(f"line {number}", f"reason {number}")
        bad.add(f"line {number}", "a second reason, which is not told")
    if not count or (skip and more):
        bad.check(rows)
        return
    with pytest.raises(UserError) as caught:
        bad.check(rows)
    listed = "; ".join(f"line {number}: reason {number}" for number in range(min(count, 5)))
    if count == 1:
        advice = ", or give --data.on_bad_row skip" if may_skip else ""
        assert str(caught.value) == f"{listed}; mend the row{advice}."
    else:
        dots, advice = "; ..." if count > 5 else "", ", or give --data.on_bad_row skip" if may_skip and more else ""
        assert str(caught.value) == f"{count} of {rows} rows cannot be used ({listed}{dots}); mend them{advice}."


@pytest.mark.parametrize(
    ("labels", "listed"),
    [
        (["b", "a", "b", None, ["x"], {"y": 1}], "2 different ones: give all as --data.label_names '[a, b]'."),
        ([10, 9, "-1"], '3 different ones: give all as --data.label_names \'["-1", "9", "10"]\'.'),
        ([1, "a", 0], '3 different ones: give all as --data.label_names \'["0", "1", "a"]\'.'),
        (["9", "a", "10"], '3 different ones: give all as --data.label_names \'["10", "9", "a"]\'.'),
        ([*range(20)], f"20 different ones: give all as --data.label_names '{json.dumps([*map(str, range(20))])}'."),
        ([*range(21)], "21 different ones: give all as --data.label_names '[...]'."),
    ],
)
def test_a_stream_names_the_classes_that_it_found(labels: list[Any], listed: str) -> None:
    assert str(classes_needed(labels)).endswith(f"the first {len(labels)} rows have {listed}")


@pytest.mark.parametrize(
    "names", [["no", "yes"], ["1.10", "1.2"], ["a, b", "c"], ["it's", "b: c"], ["[", "]"], ["ä", "b"]]
)
def test_names_that_are_suggested_can_be_typed_as_they_are_shown(names: list[str]) -> None:
    (typed,) = shlex.split(as_option(names))
    assert yaml.safe_load(typed) == names


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["good", "bad"], []),
        (["good", "Good", "bad"], [["good", "Good"]]),
        (["not good", "not_good", "Not-Good!", "bad", "BAD"], [["not good", "not_good", "Not-Good!"], ["bad", "BAD"]]),
        (["+", "-"], []),  # names without a letter differ
    ],
)
def test_classes_whose_names_differ_in_case_or_punctuation_are_warned_of(
    names: list[str], warned: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_similar(names)
    assert capsys.readouterr().err.splitlines() == [
        f"litpeft: warning: data.label_column: {', '.join(map(repr, group))} count as {len(group)} classes."
        for group in warned
    ]


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), least=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_a_random_crop_lies_inside_of_the_image_and_has_the_area_and_shape_asked_for(
    width: int, height: int, least: float, seed: int
) -> None:
    left, top, right, bottom = _crop((width, height), (least, 1.0), np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if (left, top, right, bottom) == (0, 0, width, height):
        return  # perhaps none that fits was found
    w, h = right - left, bottom - top
    assert (w + 0.5) * (h + 0.5) >= least * width * height
    assert (w + 0.5) / max(h - 0.5, 0.5) >= ASPECTS[0]
    assert (w - 0.5) / (h + 0.5) <= ASPECTS[1]


def test_random_crops_reach_every_edge_and_both_shapes() -> None:
    boxes = np.array([_crop((40, 30), (0.3, 1.0), np.random.default_rng(seed)) for seed in range(400)])
    assert boxes[:, :2].min(0).tolist() == [0, 0]
    assert boxes[:, 2:].max(0).tolist() == [40, 30]
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shapes = np.log(widths / heights)
    assert math.log(3 / 4) - 0.1 < shapes.min() < -0.2
    assert 0.2 < shapes.max() < math.log(4 / 3) + 0.1
    areas = widths * heights / 1200
    assert 0.27 < areas.min() < 0.35
    assert 0.9 < areas.max() <= 1


def test_grey_values_of_16_bits_become_8_bits() -> None:
    def pixels(values: list[int], kind: Any) -> list[int]:
        held = io.BytesIO()
        Image.fromarray(np.array([values], dtype=kind)).save(held, "TIFF")
        image = np.asarray(decode(held.getvalue()))
        assert image.shape == (1, len(values), 3)
        assert (image == image[:, :, :1]).all()
        return image[0, :, 0].tolist()

    assert pixels([0, 256, 257, 514, 65534, 65535], np.uint16) == [0, 0, 1, 2, 254, 255]
    assert pixels([-300, 0, 257, 65535, 70000], np.int32) == [0, 0, 1, 255, 255]


def test_images_are_found_in_linked_folders_but_not_in_hidden_ones(tmp_path: Path) -> None:
    for name in (
        "away/b.JPG",
        "away/in/a.png",
        "images/c.webp",
        "images/.hidden/d.png",
        "images/.e.png",
        "images/f.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "away", target_is_directory=True)
    found = [str(path.relative_to(tmp_path / "images")) for path in images_in(tmp_path / "images")]
    assert found == ["c.webp", "link/b.JPG", "link/in/a.png"]


@pytest.mark.parametrize(
    ("names", "given", "found"),
    [
        (["train", "validation", "test"], {}, ["train", "validation", "test"]),
        (["train", "valid"], {}, ["train", "valid", None]),
        (["train", "val"], {}, ["train", "val", None]),
        (["train", "dev", "valid"], {}, ["train", "valid", None]),
        (["train", "dev"], {}, ["train", "dev", None]),
        (["train"], {}, ["train", None, None]),
        (["train", "test", "more"], {"val_split": "more"}, ["train", "more", "test"]),
        (
            ["all", "validation"],
            {"train_split": "all", "test_split": "validation"},
            ["all", "validation", "validation"],
        ),
    ],
)
def test_the_splits_of_a_set_of_the_hub_have_their_usual_names(
    names: list[str], given: dict[str, str], found: list[str | None]
) -> None:
    data = Text(dataset="user/set", **given)
    data._hub_dataset = {name: name for name in names}
    assert [data.hub_rows(split) for split in ("train", "val", "test")] == found
    assert [data.has_rows(split) for split in ("train", "val", "test")] == [name is not None for name in found]
    read = next((split for split, name in (("test", found[2]), ("val", found[1])) if name), "predict")
    assert data.split_to_read("predict") == read
    assert [data.split_to_read(split) for split in ("train", "val", "test")] == ["train", "val", "test"]


def test_a_set_of_the_hub_without_training_rows_is_told() -> None:
    data = Text(dataset="user/set")
    data._hub_dataset = {"validation": 1, "all": 2}
    with pytest.raises(UserError, match=r"^data.train_split is missing; user/set has validation, all\.$"):
        data.hub_rows("train")
    assert data.why_cut().endswith("(data.val_split may name another: validation, all)")


@pytest.mark.parametrize("given", [{"test_file": "a.txt", "val_file": "b.txt"}, {"val_file": "b.txt"}, {}])
def test_without_a_file_the_test_rows_or_else_the_validation_rows_are_predicted(given: dict[str, str]) -> None:
    data = Text(train_file="c.txt", dataset="user/set", **given)
    assert data.split_to_read("predict") == next(iter(given or {"predict_file": 0})).removesuffix("_file")
    assert Text(train_file="c.txt", predict_file="d.txt", **given).split_to_read("predict") == "predict"


SELECTED = {"train": [2, 3, 23, 34], "val": [4, 11, 24, 27]}
GROUPED = [[115], [49], [70], [11], [7], [95], [64], [40]]
BY_TOKENS = [[11, 104, 73, 64], [59, 81, 112, 50, 19], [109, 47, 7], [61, 8]]


def test_the_rows_and_the_batches_of_a_seed_are_the_same_in_every_version() -> None:
    """Results of one version are compared with those of another: both must have trained on the same rows."""
    data = FineTuneData(train_samples=4, val_samples=4)
    data._tables["train"] = datasets.Dataset.from_dict({"input_ids": [[1]] * 40}), {}
    data.source = lambda split: None
    assert {split: data._selected_rows(split).tolist() for split in ("train", "val")} == SELECTED
    lengths = np.arange(120) * 7 % 31 + 1
    assert list(LengthGroupedBatches(lengths, 1, seed=3))[:8] == GROUPED
    assert list(TokenBatches(lengths, 64, seed=3))[:4] == BY_TOKENS
