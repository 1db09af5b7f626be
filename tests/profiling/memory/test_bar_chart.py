"""The picture of the memory split: bars in proportion, each with its phase and its sum, and a legend."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw, ImageFont

from litpeft.profiling.memory.bar_chart import COLOURS, split_image
from tests.drawn_text import find_text

MIB = 2**20
PHASES = {
    "load": {"tensor_bytes": {"base_weights": 3 * MIB, "gradients": 0}},
    "train": {"tensor_bytes": {"base_weights": 3 * MIB, "adapter_weights": MIB, "gradients": 2 * MIB}},
    "test": {"rss_bytes": 5},  # not tracked
}


def columns(picture: np.ndarray, name: str, top: int, bottom: int) -> np.ndarray:
    """Return the columns in which the colour of a category is found between two rows."""
    return np.flatnonzero((picture[top:bottom] == ImageColor.getrgb(COLOURS[name])).all(-1).any(axis=0))


def test_each_bar_has_its_phase_on_the_left_and_its_sum_on_the_right() -> None:
    picture = split_image(PHASES)
    lengths = {}
    for phase, total in (("load", "3.0 MiB"), ("train", "6.0 MiB")):
        (left, top), (right, at) = *find_text(picture, phase), *find_text(picture, total)
        parts = [columns(picture, name, top - 4, top + 8) for name in COLOURS]
        bar = np.concatenate(parts)
        assert abs(top - at) < 8
        assert left < bar.min() < bar.max() < right < bar.max() + 16
        assert len(bar) == len(set(bar.tolist())) == bar.max() - bar.min() + 1  # side by side, without a gap
        lengths[phase] = [len(part) for part in parts if len(part)]
    ((base,), (same, trained, gradients)) = lengths.values()
    assert base == same == pytest.approx(3 * trained, abs=2)
    assert gradients == pytest.approx(2 * trained, abs=2)
    assert not find_text(picture, "test")
    assert find_text(picture, "Live tensors at the peak of each phase, by kind")


def test_the_legend_names_each_colour_that_is_used_below_the_bars() -> None:
    picture = split_image({"fit": {"tensor_bytes": dict.fromkeys(COLOURS, MIB)}})
    below = find_text(picture, "9.0 MiB")[0][1] + 20
    tops = []
    for name in COLOURS:
        (left, top) = next(place for place in find_text(picture, name.replace("_", " ")) if place[1] > below)
        mark = columns(picture, name, top, top + 8)
        assert mark.max() < left < mark.max() + 16
        tops.append(top)
    assert tops == sorted(tops)
    assert min(np.diff(tops)) > 12
    unused = split_image(PHASES)
    assert not any(find_text(unused, name) for name in ("activations", "temporaries"))


def rectangles(picture: np.ndarray, name: str) -> list[tuple[int, int, int, int]]:
    """Return (left, top, width, height) of each filled rectangle in the colour of a category, from the top down."""
    coloured = (picture == ImageColor.getrgb(COLOURS[name])).all(-1)
    found = []
    rows = np.flatnonzero(coloured.any(axis=1))
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        across = np.flatnonzero(coloured[run[0]])
        assert (coloured[run] == coloured[run[0]]).all()  # a rectangle, and filled
        found.append((int(across[0]), int(run[0]), int(across[-1] - across[0] + 1), len(run)))
    return found


def all_rectangles(picture: np.ndarray, name: str) -> list[tuple[int, int, int, int]]:
    """Return the rectangles in the colour of a category, none if it has no pixel."""
    found = (picture == ImageColor.getrgb(COLOURS[name])).all(-1).any()
    return rectangles(picture, name) if found and COLOURS[name] != "#000000" else []


def test_bars_and_colour_marks_are_of_one_size_at_equal_distances() -> None:
    """Black is left out: it is the colour of the text too."""
    names = [name for name in COLOURS if COLOURS[name] != "#000000"]
    parts = {name: (1 + number) * MIB for number, name in enumerate(names)}
    picture = split_image({phase: {"tensor_bytes": parts} for phase in ("load", "first_step", "train")})
    found = {name: rectangles(picture, name) for name in names}
    assert {len(each) for each in found.values()} == {4}  # three bars and a mark in the legend
    bars = [[found[name][number] for name in names] for number in range(3)]
    for bar in bars:
        assert {(top, height) for _, top, _, height in bar} == {(bar[0][1], bar[0][3])}
        for (left, _, width, _), (following, *_) in pairwise(bar):
            assert left + width == following
        assert [width for _, _, width, _ in bar] == pytest.approx(
            [560 * size / sum(parts.values()) for size in parts.values()], abs=1
        )
    tops, height = [bar[0][1] for bar in bars], bars[0][0][3]
    assert tops[1] - tops[0] == tops[2] - tops[1] > 1.3 * height
    marks = [found[name][3] for name in names]
    assert {(left, width, height) for left, _, width, height in marks} == {(bars[0][0][0], 15, 15)}
    assert marks[0][1] > tops[2] + height
    assert len(set(np.diff([top for _, top, _, _ in marks]).tolist())) == 1 < 15 < marks[1][1] - marks[0][1]
    for edge in (picture[:6], picture[-6:], picture[:, :6], picture[:, -6:]):
        assert (edge == 255).all()  # nothing is cut off


def corner(picture: np.ndarray, text: str) -> tuple[int, int]:
    """Return where a text that stands once was drawn: left and top of its line, not of its ink."""
    canvas = Image.new("RGB", (400, 100), "white")
    ImageDraw.Draw(canvas).text((20, 20), text, "black", ImageFont.load_default())
    ((left, top),), ((ink_left, ink_top),) = find_text(picture, text), find_text(np.asarray(canvas), text)
    return left - ink_left + 20, top - ink_top + 20


def test_pictures_of_different_runs_can_be_laid_side_by_side() -> None:
    """Everything stands at the same places, so that an image slider shows what has grown."""
    mebibytes = {"base_weights": 3, "adapter_weights": 1, "gradients": 2, "activations": 0}
    phases = {"load": {"tensor_bytes": {"base_weights": 3 * MIB}}, "test": {"rss_bytes": 5}}
    phases["train"] = {"tensor_bytes": {name: size * MIB for name, size in mebibytes.items()}}
    picture = split_image(phases)
    assert picture.shape == (34 + 2 * 44 + 3 * 24 + 10, 110 + 560 + 110, 3)
    assert {name: found for name in COLOURS if (found := all_rectangles(picture, name))} == {
        "base_weights": [(110, 34, 280, 29), (110, 78, 280, 29), (110, 122, 15, 15)],
        "adapter_weights": [(390, 78, 93, 29), (110, 146, 15, 15)],
        "gradients": [(483, 78, 187, 29), (110, 170, 15, 15)],
    }
    assert corner(picture, "Live tensors at the peak of each phase, by kind") == (8, 10)
    for text, place in {
        "load": (8, 43), "train": (8, 87), "3.0 MiB": (398, 43), "6.0 MiB": (678, 87),
        "base weights": (132, 124), "adapter weights": (132, 148), "gradients": (132, 172),
    }.items():  # fmt: skip
        assert corner(picture, text) == place, text


def test_phases_without_a_byte_have_no_bar() -> None:
    for split in ({}, {"gradients": 0}):
        picture = split_image({"load": {"tensor_bytes": split}})
        assert picture.shape == (34 + 44 + 10, 780, 3)
        assert corner(picture, "0.0 MiB") == (118, 43)


@pytest.mark.parametrize(("mebibytes", "text"), [(1.5, "1.5 MiB"), (0.96, "1.0 MiB"), (0.04, "0.0 MiB")])
def test_a_sum_is_rounded_to_a_tenth(mebibytes: float, text: str) -> None:
    picture = split_image({"load": {"tensor_bytes": {"base_weights": round(mebibytes * MIB)}}})
    assert len(find_text(picture, text)) == 1


def test_the_longest_bar_and_its_sum_fit_into_the_picture() -> None:
    picture = split_image({"validate": {"tensor_bytes": {"base_weights": 123_456 * MIB}}, **PHASES})
    ((_, top, width, _), *_) = rectangles(picture, "base_weights")
    assert width == 560
    assert [abs(at - top) < 16 for _, at in find_text(picture, "123,456.0 MiB")] == [True]
    assert find_text(picture, "validate")


def test_without_a_tracked_phase_there_is_only_the_title() -> None:
    picture = split_image({"test": {"rss_bytes": 5}})
    assert find_text(picture, "Live tensors at the peak of each phase, by kind")
    assert not find_text(picture, "test")
