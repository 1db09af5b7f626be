"""The picture of the memory split: bars in proportion, each with its phase and its sum, and a legend."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor

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


def test_without_a_tracked_phase_there_is_only_the_title() -> None:
    picture = split_image({"test": {"rss_bytes": 5}})
    assert find_text(picture, "Live tensors at the peak of each phase, by kind")
    assert not find_text(picture, "test")
