"""Batches of images: decoded and prepared when a batch is built, with random crops and flips in training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from litpeft.data.arrays import column_array
from litpeft.data.image_files import decode
from litpeft.data.sampler import LengthGroupedBatches

ASPECTS = (3 / 4, 4 / 3)  # of a random crop, width by height, as usual since Szegedy et al. 2014
TRIES = 10


class EpochBatches(LengthGroupedBatches):
    """Batches with the number of their epoch, on which random crops and flips depend."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield (self.epoch, batch) if self.shuffle else batch


class ImageRows(Dataset):
    """Rows of a table of images; indexing with a list of rows, or with (epoch, rows), gives a batch.

    With an epoch, each image is cropped and flipped at random. What is drawn depends only on seed, epoch and row, so it
    is the same after a resume and with any number of worker processes.

    Args:
        table: table with the columns `path`, perhaps `bytes`, and `label`.
        rows: row numbers in the table, in the order of this data set.
        processor: image processor of the model.
        seed: random seed.
        crop: smallest and largest area of a random crop, as shares of the image; None to prepare the whole image.
        flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        rows: np.ndarray,
        processor: Any,
        seed: int,
        crop: tuple[float, float] | None,
        flip: float,
    ) -> None:
        self._paths = table.data.column("path")
        self._bytes = table.data.column("bytes") if "bytes" in table.column_names else None
        self._labels = column_array(table, "label")
        self.rows, self.processor, self.seed, self.crop, self.flip = rows, processor, seed, crop, flip
        self.lengths = np.ones(len(rows), dtype=np.int64)  # all images become equally large
        whole = processor(images=[Image.new("RGB", (64, 64))], return_tensors="np")["pixel_values"]
        self.height, self.width = whole.shape[-2:]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Sequence[int] | tuple[int, Sequence[int]]) -> dict[str, Tensor]:
        """Return a batch: `pixel_values` (B, 3, H, W) fp32, `labels` and `row` (B,) int64."""
        epoch, indices = index if isinstance(index, tuple) else (None, index)
        rows = self.rows[indices]
        images = [self.image(int(row)) for row in rows]
        options: dict[str, Any] = {}
        if epoch is not None:
            images = [
                self._augmented(image, [self.seed, epoch, int(row)]) for image, row in zip(images, rows, strict=True)
            ]
            if self.crop is not None:
                options = {"do_resize": False, "do_center_crop": False}
        pixels = self.processor(images=images, return_tensors="np", **options)["pixel_values"]
        labels, numbers = (torch.from_numpy(values.astype(np.int64)) for values in (self._labels[rows], rows))
        return {"pixel_values": torch.from_numpy(pixels), "labels": labels, "row": numbers}

    def image(self, row: int) -> Image.Image:
        """Return an image, by its row number in the table, decoded to 8-bit RGB."""
        held = None if self._bytes is None else self._bytes[row].as_py()
        return decode(self._paths[row].as_py() if held is None else held)

    def _augmented(self, image: Image.Image, seed: list[int]) -> Image.Image:
        draw = np.random.default_rng(seed)
        if self.crop is not None:
            box = _crop(image.size, self.crop, draw)
            image = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        if draw.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def _crop(size: tuple[int, int], area: tuple[float, float], draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Return a random box: left, top, right, bottom, in pixels. Without a box that fits, it is the whole image."""
    width, height = size
    for _ in range(TRIES):
        share = draw.uniform(*area) * width * height
        aspect = math.exp(draw.uniform(*map(math.log, ASPECTS)))
        w, h = round(math.sqrt(share * aspect)), round(math.sqrt(share / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height
