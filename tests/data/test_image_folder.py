"""Images: every way to name them gives the same pixels, odd ones are right, damaged ones are named, order resumes."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

from litpeft.data import ImageFolder
from litpeft.data.image_files import decode
from litpeft.errors import UserError
from tests.data.image_files import SIZE, write_images, write_vision_model


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_vision_model(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_images(tmp_path_factory.mktemp("images") / "train"))


def read(vit: str, folder: Path, stage: str = "fit", **options: object) -> ImageFolder:
    data = ImageFolder(**{"tokenizer": vit, "cache_dir": str(folder / "cache"), "batch_size": 4, **options})
    data.prepare_data()
    data.setup(stage)
    return data


def test_validation_images_are_what_the_processor_makes_of_them(vit: str, images: Path, tmp_path: Path) -> None:
    data = read(vit, tmp_path, train_file=str(images), val_file=str(images))
    assert data.label_names == ["blue", "red"]
    assert data.describe()["classes"] == {"train": {"blue": 8, "red": 8}, "val": {"blue": 8, "red": 8}}
    processor = AutoImageProcessor.from_pretrained(vit, backend="pil")
    files = sorted(images.rglob("*.png"))
    for batch in data.val_dataloader():
        whole = processor([Image.open(files[row]) for row in batch["row"]], return_tensors="pt")["pixel_values"]
        assert torch.equal(batch["pixel_values"], whole)
        assert batch["labels"].tolist() == [int(files[row].parent.name == "red") for row in batch["row"]]


def test_without_validation_images_each_class_gives_a_share(vit: str, images: Path, tmp_path: Path) -> None:
    data = read(vit, tmp_path, train_file=str(images), val_samples=4)
    assert data.describe()["classes"] == {"train": {"blue": 6, "red": 6}, "val": {"blue": 2, "red": 2}}


@pytest.mark.parametrize("held", [0, 1, 4])
def test_the_table_has_the_bytes_of_images_that_no_file_has(held: int, vit: str, tmp_path: Path) -> None:
    files = sorted(Path(write_images(tmp_path / "images", per_class=2)).rglob("*.png"))
    cells = [
        {"bytes": file.read_bytes(), "path": None} if number < held else {"bytes": None, "path": str(file)}
        for number, file in enumerate(files)
    ]
    table = pa.table({"image": cells, "label": [file.parent.name for file in files]})
    parquet.write_table(table, tmp_path / "images.parquet")
    path = str(tmp_path / "images.parquet")
    data = read(vit, tmp_path, train_file=path, val_file=path)
    assert ("bytes" in data.table("val")[0].column_names) == (held > 0)
    whole = AutoImageProcessor.from_pretrained(vit, backend="pil")([Image.open(file) for file in files])
    assert torch.equal(data.rows["val"][[0, 1, 2, 3]]["pixel_values"], torch.tensor(np.stack(whole["pixel_values"])))


def test_equal_tables_in_two_folders_are_of_different_images(vit: str, tmp_path: Path) -> None:
    """Paths are relative to the table, so the prepared table of one folder is of no use for the other."""
    for number, name in enumerate(("one", "two")):
        folder = tmp_path / name
        files = sorted(Path(write_images(folder, per_class=2, seed=number)).rglob("*.png"))
        lines = [f"{file.relative_to(folder)},{file.parent.name}\n" for file in files]
        (folder / "table.csv").write_text("image,label\n" + "".join(lines))
        table = str(folder / "table.csv")
        rows = read(vit, tmp_path, train_file=table, val_file=table).rows["val"]
        whole = AutoImageProcessor.from_pretrained(vit, backend="pil")([Image.open(file) for file in files])
        assert torch.equal(rows[[0, 1, 2, 3]]["pixel_values"], torch.tensor(np.stack(whole["pixel_values"])))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "hub"])
def test_tables_give_the_same_images_as_folders(vit: str, images: Path, tmp_path: Path, form: str) -> None:
    files = sorted(images.rglob("*.png"))
    labels = [file.parent.name for file in files]
    relative = [str(file.relative_to(images)) for file in files]
    options: dict = {"val_samples": 4}
    if form == "csv":
        table = images / "table.csv"  # paths are relative to it
        table.write_text("image,label\n" + "".join(f"{p},{label}\n" for p, label in zip(relative, labels, strict=True)))
        options["train_file"] = str(table)
    elif form == "jsonl":
        table = tmp_path / "table.jsonl"
        rows = [json.dumps({"image": str(p), "label": label}) for p, label in zip(files, labels, strict=True)]
        table.write_text("\n".join(rows))
        options["train_file"] = str(table)
    else:
        rows = {"image": [str(file) for file in files], "label": labels}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})
        folder = tmp_path / "set"
        folder.mkdir()
        path = folder / "train.parquet"
        held = datasets.Dataset.from_dict(rows, features=features).map(lambda row: row)  # reads the bytes
        held.to_parquet(path)
        options |= {"train_file": str(path), "label_names": ["blue", "red"]}
        if form == "hub":
            options = {"dataset": str(folder), "val_samples": 4}
    one, other = read(vit, tmp_path, train_file=str(images), val_samples=4), read(vit, tmp_path, **options)
    (images / "table.csv").unlink(missing_ok=True)
    assert other.label_names == ["blue", "red"]
    batches = [sorted(zip(b["row"].tolist(), b["pixel_values"], b["labels"], strict=True), key=lambda r: r[0])
               for data in (one, other) for b in data.val_dataloader()]  # fmt: skip
    for (row, pixels, label), (row_2, pixels_2, label_2) in zip(*batches, strict=True):
        assert (row, label) == (row_2, label_2)
        assert torch.equal(pixels, pixels_2)


def test_crops_and_flips_depend_on_seed_epoch_and_row_only(vit: str, images: Path, tmp_path: Path) -> None:
    data = read(vit, tmp_path, train_file=str(images), val_samples=4, seed=3)
    rows = data.rows["train"]
    first, again, later, whole = rows[(0, [5, 2])], rows[(0, [2])], rows[(1, [2])], rows[[2]]
    assert first["pixel_values"].shape == (2, 3, SIZE, SIZE)
    assert torch.equal(first["pixel_values"][1], again["pixel_values"][0])
    assert not torch.equal(again["pixel_values"], later["pixel_values"])
    assert not torch.equal(again["pixel_values"], whole["pixel_values"])
    still = read(vit, tmp_path, train_file=str(images), val_samples=4, random_crop=None, random_flip=0.0)
    assert torch.equal(still.rows["train"][(7, [2])]["pixel_values"], whole["pixel_values"])
    flipped = read(vit, tmp_path, train_file=str(images), val_samples=4, random_crop=None, random_flip=1.0)
    assert torch.equal(flipped.rows["train"][(7, [2])]["pixel_values"], whole["pixel_values"].flip(-1))
    workers = list(DataLoader(rows, batch_size=None, sampler=[(0, [5, 2]), (1, [2])], num_workers=2))
    assert torch.equal(workers[0]["pixel_values"], first["pixel_values"])
    assert torch.equal(workers[1]["pixel_values"], later["pixel_values"])


def test_a_loader_gives_each_epoch_its_own_crops(vit: str, images: Path, tmp_path: Path) -> None:
    data = read(vit, tmp_path, train_file=str(images), val_samples=4)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(
            {
                int(row): pixels
                for batch in loader
                for row, pixels in zip(batch["row"], batch["pixel_values"], strict=True)
            }
        )
    assert epochs[0].keys() == epochs[1].keys()
    assert not any(torch.equal(epochs[0][row], epochs[1][row]) for row in epochs[0])


def odd(folder: Path) -> dict[str, np.ndarray]:
    """Write images of unusual kinds, and return what their pixels must become, by file name."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    grey = rng.integers(0, 65535, (6, 8), dtype=np.uint16)
    whole = Image.fromarray(pixels)
    expected = {}
    palette = whole.quantize(16)
    palette.save(folder / "palette.png")
    expected["palette.png"] = np.asarray(palette.convert("RGB"))
    Image.fromarray(grey).save(folder / "sixteen.png")
    expected["sixteen.png"] = np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2)
    clear = np.dstack([pixels, np.full((6, 8), 255, np.uint8)])
    clear[0, 0] = 0  # black, but transparent
    Image.fromarray(clear).save(folder / "clear.png")
    expected["clear.png"] = pixels.copy()
    expected["clear.png"][0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    whole.save(folder / "turned.png", exif=exif)
    expected["turned.png"] = np.rot90(pixels, -1)
    whole.convert("L").save(folder / "grey.png")
    expected["grey.png"] = np.repeat(np.asarray(whole.convert("L"))[..., None], 3, axis=2)
    whole.save(folder / "one.tiff")
    expected["one.tiff"] = pixels
    Image.fromarray(pixels[:1, :1]).save(folder / "tiny.png")
    expected["tiny.png"] = pixels[:1, :1]
    return expected


def test_unusual_images_are_decoded_as_a_person_sees_them(vit: str, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, expected in odd(folder).items():
        np.testing.assert_array_equal(np.asarray(decode(str(folder / name))), expected, err_msg=name)
    Image.new("CMYK", (9, 7), (0, 255, 255, 0)).save(folder / "print.jpg")
    red = np.asarray(decode(str(folder / "print.jpg"))).reshape(-1, 3).mean(0)
    assert red[0] > 200 > 60 > red[1:].max()
    frames = [Image.new("P", (5, 5), colour) for colour in (1, 2)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    data = read(vit, tmp_path, "predict", train_file=str(images), predict_file=str(folder))
    shapes = {tuple(batch["pixel_values"].shape[1:]) for batch in data.predict_dataloader()}
    assert shapes == {(3, SIZE, SIZE)}
    assert len(data.rows["predict"]) == 9


def damaged(folder: Path) -> Path:
    """Return a folder of images in which three cannot be read."""
    write_images(folder, per_class=4)
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8))
    whole.save(folder / "red" / "cut.jpg")
    data = (folder / "red" / "cut.jpg").read_bytes()
    (folder / "red" / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "blue" / "text.jpg").write_text("no image")
    return folder


def test_damaged_images_are_told_all_at_once_or_skipped(vit: str, tmp_path: Path) -> None:
    folder = damaged(tmp_path / "damaged")
    with pytest.raises(UserError) as error:
        read(vit, tmp_path, train_file=str(folder))
    message = str(error.value)
    assert message.startswith("3 of 11 rows cannot be used (")
    for name in ("red/cut.jpg", "red/empty.png", "blue/text.jpg"):
        assert f"{folder / name}: the image cannot be read" in message
    assert "--data.on_bad_row skip" in message
    data = read(vit, tmp_path, train_file=str(folder), on_bad_row="skip", val_samples=2)
    assert data.table("train")[1]["skipped_rows"] == 3
    assert len(data.table("train")[0]) == 8


def test_mistakes_are_one_sentence(vit: str, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,label\nnowhere.png,red\n,blue\n")
    cases = {
        "there is no file": {"train_file": str(table)},
        "one folder of images per class": {"train_file": str(images / "red")},
        "no column 'picture'": {"train_file": str(table), "image_column": "picture"},
        "data.random_crop": {"train_file": str(images), "random_crop": [0.5, 2.0]},
        "data.random_flip": {"train_file": str(images), "random_flip": 2.0},
        "data.dataset": {"dataset": "ethz/food101"},
    }
    for expected, options in cases.items():
        with pytest.raises(UserError, match=expected):
            read(vit, tmp_path, **options)
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "two" / "a" / "x.png")
    with pytest.raises(UserError, match="the folder b has no image"):
        read(vit, tmp_path, train_file=str(tmp_path / "two"))


def test_folders_with_numbers_are_classes_of_these_names(vit: str, tmp_path: Path) -> None:
    for name, colour in (("5", "red"), ("10", "blue"), ("9", "green")):
        (tmp_path / "numbers" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 9), colour).save(tmp_path / "numbers" / name / f"{number}.png")
    data = read(vit, tmp_path, train_file=str(tmp_path / "numbers"), val_samples=3)
    assert data.label_names == ["5", "9", "10"]
    assert data.describe()["classes"] == {
        split: dict.fromkeys(("5", "9", "10"), n) for split, n in (("train", 2), ("val", 1))
    }
    again = read(vit, tmp_path, train_file=str(tmp_path / "numbers"), val_samples=3)  # from the cache
    assert again.label_names == ["5", "9", "10"]


def test_a_changed_image_is_read_again(vit: str, tmp_path: Path) -> None:
    folder = Path(write_images(tmp_path / "images"))
    one = read(vit, tmp_path, train_file=str(folder), val_samples=4).table("train")[1]["fingerprint"]
    assert read(vit, tmp_path, train_file=str(folder), val_samples=4).table("train")[1]["fingerprint"] == one
    Image.new("RGB", (30, 30), "red").save(folder / "red" / "00.png")
    assert read(vit, tmp_path, train_file=str(folder), val_samples=4).table("train")[1]["fingerprint"] != one


def test_real_photographs(shared: Path, vit: str, tmp_path: Path) -> None:
    folder = shared / "data" / "images"
    data = read(vit, tmp_path, train_file=str(folder / "train"), val_file=str(folder / "test"))
    classes = data.describe()["classes"]
    assert classes["train"] == dict.fromkeys(("daisy", "roses", "sunflowers"), 80)
    assert classes["val"] == dict.fromkeys(("daisy", "roses", "sunflowers"), 30)
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].isfinite().all()
