"""Targets that are numbers: which are read, which are refused, and what they are standardised with."""

from __future__ import annotations

import math
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from litpeft.data.bad_rows import BadRows
from litpeft.data.number_labels import NumberLabels
from litpeft.errors import UserError


def labels_of(values: list[list[float]] | None = None, streaming: bool = False, **options: Any) -> NumberLabels:
    """Return targets x and y, or only x, of a data set with these training rows."""
    rows = {} if values is None else {"train": values, "predict": []}
    data = SimpleNamespace(rows=rows, streaming=streaming, stored_labels=lambda split: np.array(rows[split]))
    return NumberLabels(data, ["x", "y"][: len(values[0]) if values else 1], **options)


@pytest.mark.parametrize(
    ("value", "number", "reason"),
    [
        (3, 3.0, None),
        ("3.5", 3.5, None),
        (" -1e2 ", -100.0, None),
        (True, 1.0, None),
        (0, 0.0, None),
        ("", math.nan, "target 'x' is missing"),
        (" NaN ", math.nan, "target 'x' is missing"),
        (None, math.nan, "target 'x' is missing"),
        (float("nan"), math.nan, "target 'x' is missing"),
        ("high", math.nan, "target 'x' is 'high', no number"),
        (float("inf"), math.inf, "target 'x' is inf, no number"),
        ("-inf", -math.inf, "target 'x' is '-inf', no number"),
        ([1], math.nan, "target 'x' is [1], no number"),
        ({"a": 1}, math.nan, "target 'x' is {'a': 1}, no number"),
        (date(2024, 1, 2), math.nan, "target 'x' is datetime.date(2024, 1, 2), no number"),
        (10**400, math.nan, f"target 'x' is {10**400}, no number"),
    ],
)
def test_a_target_is_a_finite_number(value: Any, number: float, reason: str | None) -> None:
    bad = BadRows(skip=True)
    found, facts = labels_of().encode("train", [(value,)], ["line 1"], bad)
    assert found.to_pylist() == [[pytest.approx(number, nan_ok=True)]]
    assert facts == {}
    assert bad.reasons == ({} if reason is None else {"line 1": reason})


@pytest.mark.parametrize(
    ("value", "fine"), [(0, True), (5, True), (2.5, True), (-0.01, False), (5.25, False), (-1, False), (6, False)]
)
def test_a_target_may_be_as_large_and_as_small_as_its_limits(value: float, fine: bool) -> None:
    bad = BadRows(skip=True)
    labels_of(limits=(0.0, 5.0)).encode("train", [(value,)], ["line 1"], bad)
    assert bad.reasons == ({} if fine else {"line 1": f"target 'x' is {value:g}, not from 0 to 5"})


def test_rows_have_their_targets_in_the_order_of_the_columns() -> None:
    bad = BadRows(skip=True)
    labels = labels_of([[1.0, 10.0], [3.0, 30.0]])
    found, _ = labels.encode("train", [(1, "10"), (3, 30)], ["line 1", "line 2"], bad)
    assert found.to_pylist() == [[1.0, 10.0], [3.0, 30.0]]
    assert (labels.names, labels.given) == (["x", "y"], ["x", "y"])
    assert (labels.mean, labels.deviation) == ([2.0, 20.0], [1.0, 10.0])
    assert labels.shown(np.array([1.0, 1 / 3])) == "x 1, y 0.333333"
    assert [[math.isnan(number) for number in row] for row in labels.blank(2)[0].to_pylist()] == [[True, True]] * 2
    assert labels.describe() == {
        "label_names": ["x", "y"],
        "target_ranges": {
            "train": {"x": {"lowest": 1.0, "highest": 3.0}, "y": {"lowest": 10.0, "highest": 30.0}},
        },
        "target_mean": [2.0, 20.0],
        "target_deviation": [1.0, 10.0],
    }


def test_given_numbers_replace_those_of_the_rows_also_if_they_are_0() -> None:
    labels = labels_of([[1.0], [3.0]], mean=0.0, deviation=[0.5])
    assert (labels.mean, labels.deviation) == ([0.0], [0.5])
    assert labels_of(mean=1.5, deviation=0.5).describe() == {
        "label_names": ["x"], "target_ranges": {}, "target_mean": [1.5], "target_deviation": [0.5],
    }  # fmt: skip
    assert labels_of().describe() == {"label_names": ["x"], "target_ranges": {}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"deviation": 0.0}, r"^data.target_deviation must be positive, got 0\.0\.$"),
        ({"deviation": [-1.0]}, r"^data.target_deviation must be positive, got \[-1\.0\]\.$"),
        ({"mean": [1.0, 2.0]}, r"^data.target_mean has 2 numbers for 1 targets \(x\)\.$"),
        ({"mean": []}, r"^data.target_mean has 0 numbers for 1 targets \(x\)\.$"),
        ({"deviation": [1.0, 2.0]}, r"^data.target_deviation has 2 numbers for 1 targets \(x\)\.$"),
    ],
)
def test_numbers_that_fit_no_target_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        labels_of(**options)


@pytest.mark.parametrize("columns", [[], ["x", "x"], ["x", "y", "x"]])
def test_a_target_is_named_once(columns: list[str]) -> None:
    with pytest.raises(UserError, match="^data.label_column needs one or several different columns, got "):
        NumberLabels(None, columns)


def test_equal_targets_teach_nothing() -> None:
    with pytest.raises(UserError, match="^data.label_column: all training rows have the same y; there is nothing to"):
        _ = labels_of([[1.0, 2.0], [3.0, 2.0]]).deviation
    with pytest.raises(UserError, match="^data.label_column: all training rows have the same y; there is nothing to"):
        _ = labels_of([[1.0, 0.1], [3.0, 0.1], [2.0, 0.1]]).deviation  # whose mean is not 0.1


@pytest.mark.parametrize("options", [{}, {"mean": 0.0}, {"deviation": 1.0}, {"mean": 0.0, "deviation": 1.0}])
def test_a_stream_must_be_told_both_numbers(options: dict[str, float]) -> None:
    bad = BadRows(skip=False)
    if len(options) == 2:
        labels_of(streaming=True, **options).encode("train", [(1,)], ["line 1"], bad)
    else:
        with pytest.raises(
            UserError, match="^data.target_mean and data.target_deviation are needed with data.streaming"
        ):
            labels_of(streaming=True, **options).encode("train", [(1,)], ["line 1"], bad)
    labels_of(streaming=False, **options).encode("train", [(1,)], ["line 1"], bad)
