"""Images with one class each, from folders, tables of paths, Parquet files or the hub; Food101 is a preset of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from transformers import AutoImageProcessor

from litpeft.data.base import Split
from litpeft.data.cache import dataset_of
from litpeft.data.class_labels import ClassLabels
from litpeft.data.image_files import class_folders, images_in, problem, stamp
from litpeft.data.image_rows import EpochBatches, ImageRows
from litpeft.data.label_kind import LabelledData
from litpeft.data.sequences import batched
from litpeft.data.told import Part
from litpeft.errors import UserError
from litpeft.hub.hub import explaining_hub_errors, local_or_hub

BATCH = 256  # images that are checked together
Found = tuple[str, str | None, bytes | None, Any]  # place for messages, path, bytes, label


class FolderLabels(ClassLabels):
    """One class per image; of class folders, the names are those of the folders, also if they are numbers."""

    def names_in_source(self) -> list[str] | None:
        folder = self.data.folder("train") if self.data.files["train"] else None
        return super().names_in_source() or (list(class_folders(folder, "data.train_file")) if folder else None)


class ImageFolder(LabelledData):
    """Images with one class each.

    `train_file` (`val_file`, `test_file`) is a folder with one folder of images per class; or a .csv, .tsv or .jsonl
    file with paths, relative to the file; or a .parquet file with the bytes of the images. `predict_file` may also be a
    folder of images without classes. Images are prepared as the model's image processor says, by Pillow.

    All images are decoded once before training, to find damaged ones. Images are turned upright as their EXIF
    orientation says, transparent pixels become white, and of an animation the first frame is used.

    Args:
        tokenizer: hub id or folder of the image processor; by default that of the model.
        image_column: name of the column with the image: a path, bytes, or an image of `datasets`.
        label_column: name of the column with the label; `predict_file` does not need it.
        label_names: names of the classes, in the order of their numbers.
        random_crop: smallest and largest area of the random crop of a training image, as shares of the image; null to
            prepare training images like validation images.
        random_flip: probability that a training image is flipped horizontally.
        val_cut: how validation rows are cut from the training rows: `stratified` (each class in proportion) or
            `random`.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    batches = EpochBatches

    def __init__(
        self,
        tokenizer: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        label_names: list[str] | None = None,
        random_crop: tuple[float, float] | None = (0.5, 1.0),
        random_flip: float = 0.5,
        val_cut: Literal["stratified", "random"] = "stratified",
        **options: Any,
    ) -> None:
        super().__init__(tokenizer=tokenizer, max_length=1, streaming=False, **options)
        if random_crop is not None and not 0 < random_crop[0] <= random_crop[1] <= 1:
            raise UserError(f"data.random_crop must be two shares, 0 < least <= most <= 1, got {list(random_crop)}.")
        if not 0 <= random_flip <= 1:
            raise UserError(f"data.random_flip must be from 0 to 1, got {random_flip}.")
        self.image_column, self.label_column = image_column, label_column
        self.random_crop, self.random_flip = random_crop, random_flip
        self.labels = FolderLabels(self, label_column, label_names, 0, val_cut)

    @cached_property
    def processor(self) -> Any:
        """The image processor of the model."""
        name = self.tokenizer_name
        if name is None:
            raise UserError("data.tokenizer is missing, and there is no model to take the image processor from.")
        with explaining_hub_errors(name, "data.tokenizer", "a local folder (data.tokenizer, or model.model_name)"):
            path = local_or_hub(name, "data.tokenizer", "preprocessor_config.json")
            return AutoImageProcessor.from_pretrained(path, backend="pil")  # torchvision need not be installed

    def tokenizer_to_export(self) -> Any:
        """Return the image processor, which a user of the trained model needs."""
        return self.processor

    @cached_property
    def _tokenizer_fingerprint(self) -> str:
        return "images"  # the table does not depend on the processor

    def highest_token(self) -> int:
        return 0

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file, with `label_offset`."""
        return super().layout(path) | {"label_offset": 0}

    def folder(self, split: Split) -> Path | None:
        """Return the folder of images that a split is; None for files and for sets of the hub."""
        given = self.files[split]
        folder = Path(given).expanduser() if given else None
        has_images = folder is not None and folder.is_dir() and next(iter(images_in(folder)), None)
        return folder if has_images else None

    def source(self, split: Split) -> dict[str, Any] | None:
        labelled, split = split != "predict", self.split_to_read(split)
        options = {"images": self.image_column, "labelled": labelled} | self.labels.rules(split)
        if folder := self.folder(split):
            skip = {"skip": True} if self.on_bad_row == "skip" else {}
            at = str(folder.resolve())  # the table has whole paths
            moved = {"at": at} if at != str(folder) else {}
            return options | {"split": split, "folder": stamp(images_in(folder))} | skip | moved
        rows = self.source_of_rows(split)
        if rows and self.files[split]:
            options |= {"folder": str(Path(self.files[split]).expanduser().resolve().parent)}
            if self.on_bad_row == "skip":  # images that are mended are used
                options["images_at"] = [stamp([path]) if path.is_file() else None for path in self._paths(split)]
        return rows and options | rows

    def _paths(self, split: Split) -> Iterator[Path]:
        """Yield the paths of images in the rows of a file."""
        for _, row in self._rows(split, {self.image_column: "data.image_column"}):
            path, held = _image(row[self.image_column])
            if held is not None:  # a file of images is not read twice
                return
            if path is not None:
                yield self._beside(split, path)

    def _beside(self, split: Split, path: str) -> Path:
        """Return the path of an image of a row, which is relative to the file of the rows."""
        file = self.files[split]
        parent = Path(file).expanduser().resolve().parent if file else Path()
        return parent / Path(path).expanduser()

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        """Return the table of a split: `text` (path as shown), `path`, perhaps `bytes`, `width`, `height`, `label`."""
        labelled, read_split = split != "predict", self.split_to_read(split)
        bad, places, labels = self.bad_rows(split), [], []

        def checked() -> Iterator[dict[str, pa.Array]]:
            with ThreadPoolExecutor() as pool:
                for rows in batched(self._read(read_split, labelled), BATCH):
                    found = pool.map(problem, [held if held is not None else path for _, path, held, _ in rows])
                    sizes = []
                    for (place, _, _, label), (why, size) in zip(rows, found, strict=True):
                        places.append(place), labels.append((label,)), sizes.append(size)
                        if why is not None:
                            bad.add(place, f"{why} (see data.image_column)")
                    yield _columns(rows, sizes)

        table = self.stored(checked())
        if labelled:
            column, facts = self.labels.encode(read_split, labels, places, bad)
        else:
            column, facts = self.labels.blank(len(places))
        bad.check(len(places))
        table = table.append_column("label", column)
        if bad.reasons:
            table = table.filter(pa.array([place not in bad.reasons for place in places]))
        if not table["bytes"].null_count < len(table):
            table = table.drop_columns("bytes")
        facts |= {"total_rows": len(places), "unused_columns": self.unused_columns.get(read_split, [])}
        return dataset_of(table), facts | ({"skipped_rows": len(bad.reasons)} if bad.reasons else {})

    def _read(self, split: Split, labelled: bool) -> Iterator[Found]:
        """Yield the images of a split."""
        if folder := self.folder(split):
            if not labelled:
                yield from ((str(file), str(file.resolve()), None, None) for file in images_in(folder))
                return
            for name, files in class_folders(folder, f"data.{split}_file").items():
                yield from ((str(file), str(file.resolve()), None, name) for file in files)
            return
        required = {self.image_column: "data.image_column"}
        required |= {self.label_column: "data.label_column"} if labelled else {}
        for place, row in self.read(split, required):
            path, held = _image(row[self.image_column])
            path = path if path is None or held is not None else str(self._beside(split, path))
            yield place, path, held, row.get(self.label_column) if labelled else None

    def hub_rows(self, split: Split) -> datasets.Dataset | None:
        rows = super().hub_rows(split)
        is_image = rows is not None and isinstance(rows.features.get(self.image_column), datasets.Image)
        return rows.cast_column(self.image_column, datasets.Image(decode=False)) if is_image else rows

    def kept(self, split: Split, rows: np.ndarray) -> Any:
        crop = self.random_crop and tuple(self.random_crop)
        return ImageRows(self.table(split)[0], rows, self.processor, self.seed_used, crop, self.random_flip)

    def example(self, split: Split, index: int = 0) -> list[Part]:
        """Return the path of an image and its class, which has the loss."""
        table, row = self.table(split)[0], int(self.rows[split].rows[index])
        size = f"{table[row]['width']} x {table[row]['height']}"
        label = self.labels.shown(self.stored_labels(split)[index])
        return [(f"{table[row]['text']} ({size}) -> ", False), (label, True)]

    def describe(self) -> dict[str, Any]:
        sizes = {split: [rows.height, rows.width] for split, rows in self.rows.items()}
        facts = super().describe() | self.labels.describe() | {"image_size": next(iter(sizes.values()), None)}
        return facts | {"tokens_per_row": {}}


def _image(value: Any) -> tuple[str | None, bytes | None]:
    """Return path and bytes of a cell: text, bytes, or a mapping with `path` and `bytes` as `datasets` writes it."""
    if isinstance(value, dict):
        path, held = value.get("path"), value.get("bytes")
        return (path if isinstance(path, str) else None), (held if isinstance(held, bytes) else None)
    if isinstance(value, bytes):
        return None, value
    return (value if isinstance(value, str) and value.strip() else None), None


def _columns(rows: list[Found], sizes: list[tuple[int, int]]) -> dict[str, pa.Array]:
    shown = [place if path is None else path for place, path, _, _ in rows]
    return {
        "text": pa.array(shown, pa.string()),
        "path": pa.array([path for _, path, _, _ in rows], pa.string()),
        "bytes": pa.array([held for _, _, held, _ in rows], pa.binary()),
        "width": pa.array([width for width, _ in sizes], pa.int32()),
        "height": pa.array([height for _, height in sizes], pa.int32()),
    }
