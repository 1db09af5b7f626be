"""Curves are read from event files that torch's SummaryWriter wrote."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from litpeft.analysis.comparison import Run
from litpeft.analysis.report.curves import MOST_POINTS, band, points_of_each, read_curves, thinned
from litpeft.runs.curve_file import FILE_NAME, append, start
from litpeft.runs.record import new_record


def write_events(folder: Path, second: int, scalars: dict[str, dict[int, float]]) -> None:
    """Write an event file of a process started at this second."""
    folder.mkdir(exist_ok=True)
    before = set(folder.glob("events*"))
    with SummaryWriter(str(folder)) as writer:
        for tag, points in scalars.items():
            for step, value in points.items():
                writer.add_scalar(tag, value, step)
    (written,) = set(folder.glob("events*")) - before
    os.rename(written, folder / f"events.out.tfevents.{second}.host.1.0")


def run(folder: Path, **record: object) -> Run:
    return Run(folder, new_record() | {"seed": 0} | record, {})


def test_steps_count_from_one_and_values_after_the_last_step_are_left_out(tmp_path: Path) -> None:
    write_events(
        tmp_path, 1, {"train_loss": {9: 0.5, 19: 0.25}, "train_tokens_per_second": {9: 100.0, 20: 7.0}, "x": {1: 1}}
    )
    curves = read_curves(run(tmp_path, steps=20))
    assert curves == {"train_loss": {10: 0.5, 20: 0.25}, "train_tokens_per_second": {10: 100.0}}


def test_steps_lost_before_a_resume_do_not_count(tmp_path: Path) -> None:
    write_events(tmp_path, 9, {"train_loss": {0: 4.0, 9: 3.0, 19: 2.0, 29: 1.0}, "val_loss": {9: 3.5, 24: 9.9}})
    write_events(tmp_path, 10, {"train_loss": {19: 2.5, 39: 1.5}, "val_loss": {39: 1.25}})  # "10" sorts before "9"
    assert read_curves(run(tmp_path)) == {
        "train_loss": {1: 4.0, 10: 3.0, 20: 2.5, 40: 1.5},
        "val_loss": {10: 3.5, 40: 1.25},
    }


def test_validations_come_from_the_record_if_it_has_them(tmp_path: Path) -> None:
    write_events(tmp_path, 1, {"val_loss": {4: 0.75}, "val_accuracy": {4: 0.5}})
    validations = [{"step": 6, "val_loss": 0.5}, {"step": 12, "val_loss": 0.25}]
    assert read_curves(run(tmp_path, validations=validations)) == {
        "val_loss": {6: 0.5, 12: 0.25},
        "val_accuracy": {5: 0.5},
    }


def test_a_truncated_file_is_read_up_to_its_end(tmp_path: Path) -> None:
    write_events(tmp_path, 1, {"train_loss": dict.fromkeys(range(20), 1.0)})
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-10])
    assert list(read_curves(run(tmp_path))["train_loss"]) == list(range(1, 20))


def test_nan_and_infinity_are_left_out(tmp_path: Path) -> None:
    assert read_curves(run(tmp_path)) == {}
    write_events(tmp_path, 1, {"train_loss": {0: 1.0, 1: float("nan"), 2: float("inf")}})
    assert read_curves(run(tmp_path)) == {"train_loss": {1: 1.0}}


def test_the_file_of_curves_replaces_event_files_from_its_first_step(tmp_path: Path) -> None:
    write_events(tmp_path, 1, {"train_loss": {4: 2.0, 9: 1.5}, "lr": {4: 0.5}})
    append(tmp_path, 10, 100, 1.0, {"train_loss": 1.25, "epoch": 0, "lr": float("inf")})
    append(tmp_path, 30, 300, 3.0, {"train_loss": 1.0})
    assert read_curves(run(tmp_path, steps=20)) == {"train_loss": {5: 2.0, 10: 1.25}, "lr": {5: 0.5}}
    (tmp_path / FILE_NAME).unlink()
    start(tmp_path)  # a run that wrote the file from its beginning
    append(tmp_path, 10, 100, 1.0, {"train_loss": 1.25})
    assert read_curves(run(tmp_path, steps=20)) == {"train_loss": {10: 1.25}}


def test_the_band_has_the_common_steps() -> None:
    found = band([{1: 1.0, 2: 2.0, 3: 9.0}, {1: 3.0, 2: 4.0}], lambda values: (min(values), max(values)))
    assert (found.steps, found.mean, found.low, found.high) == ([1, 2], [2.0, 3.0], [1.0, 2.0], [3.0, 4.0])


@pytest.mark.parametrize(("lines", "points"), [(0, 500), (1, 500), (40, 500), (100, 200), (500, 40), (10**6, 20)])
def test_many_lines_have_fewer_points_each(lines: int, points: int) -> None:
    assert points_of_each(lines) == points


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 10_000])
def test_thinning_keeps_the_ends_and_every_spike(count: int) -> None:
    values = [float(i % 7) for i in range(count)]
    values[count // 3] = 99.0
    drawn = thinned(values)
    assert len(drawn) <= MOST_POINTS
    assert drawn == sorted(set(drawn))
    assert {0, count // 3, count - 1} <= set(drawn)


@given(st.lists(st.integers(-9, 9), min_size=40, max_size=90), st.integers(4, 60))
def test_every_part_of_a_line_is_drawn_with_its_lowest_and_highest_value(values: list[int], most: int) -> None:
    drawn = thinned(values, most)
    assert len(drawn) <= max(most, 2)
    if len(values) <= most:
        assert drawn == list(range(len(values)))
        return
    length = -(-len(values) // (most // 2 - 1))  # of the longest segment
    for first in range(len(values) - 2 * length + 1):  # holds a whole segment
        window = range(first, first + 2 * length)
        assert set(window) & set(drawn)
    assert {min(values), max(values)} <= {values[i] for i in drawn}
    rising = thinned(range(len(values)), most)  # both ends of each segment
    assert max(b - a for a, b in itertools.pairwise(rising)) < length + 1
    assert len(rising) == 2 * (most // 2 - 1)
