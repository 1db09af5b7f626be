"""Batches of images with a processor of numpy: what is drawn depends on seed, epoch and row, and on nothing else."""

from __future__ import annotations

import io
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from litpeft.data.image_rows import EpochBatches, ImageRows

HEIGHT, WIDTH = 8, 12


class Processor:
    """Makes all images equally large, unless told otherwise, and keeps the options that it was called with."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __call__(self, images: list[Image.Image], return_tensors: str, **options: Any) -> dict[str, np.ndarray]:
        self.options.append(options)
        if options.get("do_resize", True):
            images = [image.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST) for image in images]
        return {"pixel_values": np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) for image in images])}


def rows_of(crop: tuple[float, float] | None, flip: float, seed: int = 1, held: bool = True, folder: Any = None) -> Any:
    """Return rows 3, 0 and 1 of a table of four images; the first two have the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    cells = []
    for number in (0, 0, 1, 2):
        content = io.BytesIO()
        Image.fromarray(pixels[number]).save(content, "PNG")
        cells.append(content.getvalue())
    columns: dict[str, Any] = {"path": [f"{folder}/{number}.png" for number in range(4)], "label": [5, 6, 7, 8]}
    if held:
        columns |= {"path": [None] * 4, "bytes": cells}
    else:
        for number, content in enumerate(cells):
            (folder / f"{number}.png").write_bytes(content)
    return ImageRows(datasets.Dataset.from_dict(columns), np.array([3, 0, 1]), Processor(), seed, crop, flip), pixels


@pytest.mark.parametrize("held", [True, False])
def test_without_an_epoch_images_are_as_they_are(held: bool, tmp_path: Any) -> None:
    rows, pixels = rows_of((0.2, 0.5), 1.0, held=held, folder=tmp_path)
    batch = rows[[0, 1, 2]]
    assert (batch["row"].tolist(), batch["labels"].tolist(), len(rows)) == ([3, 0, 1], [8, 5, 6], 3)
    expected = torch.tensor(pixels[[2, 0, 0]], dtype=torch.float32).permute(0, 3, 1, 2)
    assert torch.equal(batch["pixel_values"], expected)
    assert rows.processor.options[1:] == [{}]
    assert (rows.height, rows.width, rows.lengths.tolist()) == (HEIGHT, WIDTH, [1, 1, 1])


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_no_image_or_each_image_is_flipped(flip: float) -> None:
    rows, _ = rows_of(None, flip)
    whole, drawn = rows[[0, 1, 2]]["pixel_values"], rows[3, [0, 1, 2]]["pixel_values"]
    assert torch.equal(drawn, whole.flip(3) if flip else whole)
    assert rows.processor.options[1:] == [{}, {}]


def test_about_half_of_the_images_are_flipped() -> None:
    rows, _ = rows_of(None, 0.5)
    whole = rows[[0]]["pixel_values"]
    flipped = [not torch.equal(rows[epoch, [0]]["pixel_values"], whole) for epoch in range(100)]
    assert 35 < sum(flipped) < 65


def test_what_is_drawn_depends_on_seed_epoch_and_row_alone() -> None:
    rows, _ = rows_of((0.2, 0.6), 0.5)
    together = rows[4, [1, 2]]["pixel_values"]
    assert together.shape == (2, 3, HEIGHT, WIDTH)
    assert rows.processor.options[1:] == [{"do_resize": False, "do_center_crop": False}]
    assert torch.equal(rows[4, [2, 0, 1]]["pixel_values"][[2, 0]], together)
    assert not torch.equal(together[0], together[1])  # two rows with the same image
    for other in (rows[5, [1, 2]], rows_of((0.2, 0.6), 0.5, seed=2)[0][4, [1, 2]]):
        assert not torch.equal(other["pixel_values"], together)
    assert torch.equal(rows_of((0.2, 0.6), 0.5)[0][4, [1, 2]]["pixel_values"], together)


@pytest.mark.parametrize("shuffle", [True, False])
def test_only_shuffled_batches_have_their_epoch(shuffle: bool) -> None:
    batches = EpochBatches(np.ones(5, int), 2, shuffle=shuffle)
    batches.set_epoch(3)
    found = list(batches)
    if shuffle:
        assert {epoch for epoch, _ in found} == {3}
        found = [rows for _, rows in found]
    assert sorted(row for rows in found for row in rows) == [0, 1, 2, 3, 4]
