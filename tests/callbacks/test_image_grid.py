"""The picture of validation images: four in a row, each with its label and its prediction below."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from litpeft.callbacks import image_grid
from litpeft.callbacks.image_grid import CAPTION, COLUMNS, RIGHT, SIDE, WRONG, grid
from tests.drawn_text import find_text

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (200, 0, 200)]
SIZES = [(300, 300), (300, 150), (20, 60), (128, 128), (500, 900), (40, 40)]
CAPTIONS = [("cat", "cat", 0.991), ("dog", "cat", 0.5), ("cow", "cow", 1.0), ("emu", "emu", 0.4), ("fox", "hen", 0.33),
            ("gnu", "gnu", 0.07)]  # fmt: skip


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    images = [Image.new("RGB", size, colour) for size, colour in zip(SIZES, COLOURS, strict=True)]
    return np.asarray(grid(images, CAPTIONS))


def cell(place: int) -> tuple[int, int]:
    """Return left and top of an image's place."""
    return place % COLUMNS * SIDE, place // COLUMNS * (SIDE + CAPTION)


def test_images_are_in_rows_of_four_and_keep_their_proportions(picture: np.ndarray) -> None:
    assert picture.shape[:2] == (2 * (SIDE + CAPTION), COLUMNS * SIDE) == (2 * 162, 4 * 128)
    for place, (colour, (width, height)) in enumerate(zip(COLOURS, SIZES, strict=True)):
        left, top = cell(place)
        rows, columns = np.nonzero((picture == colour).all(axis=-1))
        assert left < columns.min() <= columns.max() < left + SIDE - 1  # white between two images
        assert top < rows.min() <= rows.max() < top + SIDE - 1
        assert columns.min() + columns.max() == pytest.approx(2 * left + SIDE, abs=2)  # in the middle
        assert rows.min() + rows.max() == pytest.approx(2 * top + SIDE, abs=2)
        shown = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert shown[0] / shown[1] == pytest.approx(width / height, rel=0.05)
        assert max(shown) >= min(max(width, height), 120)  # a large image fills its place


def test_each_image_has_its_label_and_its_coloured_prediction_below(picture: np.ndarray) -> None:
    for place, (label, found, probability) in enumerate(CAPTIONS):
        left, top = cell(place)
        inside = picture[top : top + SIDE + CAPTION, left : left + SIDE]
        ((x, y),) = find_text(inside, f"label {label}", 13)
        colour, other = (RIGHT, WRONG) if label == found else (WRONG, RIGHT)
        ((below_x, below_y),) = find_text(inside, f"{found} {probability:.0%}", 13, colour)
        assert not find_text(inside, f"{found} {probability:.0%}", 13, other)
        assert y >= SIDE
        assert below_y > y + 8
        assert abs(x - below_x) <= 2


def test_images_and_captions_stand_at_the_same_places_in_every_picture() -> None:
    images = [Image.new("RGB", (200, 100), (9, 9, 9))] * 5
    long = "i" * 40
    picture = np.asarray(grid(images, [("cat", "cat", 0.5)] * 4 + [(long, long, 1.0)]))
    for place in range(5):
        left, top = place % 4 * 128, place // 4 * 162
        rows, columns = np.nonzero((picture[top : top + 128, left : left + 128] == (9, 9, 9)).all(axis=-1))
        assert (columns.min(), columns.max(), rows.min(), rows.max()) == (2, 125, 33, 94)
    first, last = picture[:162, :128], picture[162:, :128]
    ((x, y),) = find_text(first, "label cat", 13)
    ((below_x, below_y),) = find_text(first, "cat 50%", 13, RIGHT)
    assert (x, below_x) == (4, 4)
    assert 128 <= y < 128 + 8 <= 128 + 15 <= below_y < 128 + 15 + 8
    assert find_text(last, f"label {long}"[:26], 13)
    assert find_text(last, f"{long}"[:18] + " 100%", 13, RIGHT)
    assert grid(images[:4], [("cat", "cat", 0.5)] * 4).size == (512, 162)
    assert grid(images, [("cat", "cat", 0.5)] * 5).size == (512, 324)


@pytest.mark.parametrize(
    ("more", "written"),
    [
        ({}, True), ({"sanity_checking": True}, False), ({"state": SimpleNamespace(fn="validate")}, False),
        ({"state": SimpleNamespace(fn="fast")}, False), ({"is_global_zero": False}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shown", [True, False])
def test_the_picture_is_written_after_a_validation_and_sent(
    shown: bool, more: dict[str, Any], written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(image_grid, "send", lambda *given: sent.append(given))
    images = {3: Image.new("RGB", (50, 50), (0, 0, 200)), 5: Image.new("RGB", (50, 50), (200, 0, 0))}
    data = SimpleNamespace(rows={"val": SimpleNamespace(image=images.get)}, label_names=["cat", "dog"])
    given = {"is_global_zero": True, "sanity_checking": False, "state": SimpleNamespace(fn="fit")} | more
    trainer = SimpleNamespace(datamodule=data, default_root_dir=str(tmp_path), global_step=8, loggers=["one"], **given)
    task = SimpleNamespace(shown_images=[(5, 0, 1, 0.75), (3, 1, 1, 0.5)] if shown else [])
    callback = image_grid.ImageGrid()
    callback.on_validation_epoch_end(trainer, task)
    if not (written and shown):
        assert callback.measured() == {}
        assert (list(tmp_path.iterdir()), sent) == ([], [])
        return
    assert callback.measured() == {"image_grid": "val_images.jpg"}
    ((to, kind, name, picture, step),) = sent
    assert (to, kind, name, step) == (["one"], "image", "val_images", 7)  # Lightning counts from 0
    assert (picture == np.asarray(grid([images[5], images[3]], [("cat", "dog", 0.75), ("dog", "dog", 0.5)]))).all()
    stored = np.asarray(Image.open(tmp_path / "val_images.jpg")).astype(int)
    assert stored.shape == picture.shape
    assert abs(stored - picture).mean() < 5  # JPEG
