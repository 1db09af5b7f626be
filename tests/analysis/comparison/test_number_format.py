"""How means, intervals and differences are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litpeft.analysis.comparison.number_format import MINUS, format_estimate, format_interval, format_value
from litpeft.analysis.comparison.results import Estimate


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.859, 0.847, 0.871, "85.9 ± 1.2"),
        (0.982, 0.915, 1.0, "98.2 (91.5 to 100.0)"),  # cut at the largest accuracy
        (0.012, 0.0, 0.051, "1.2 (0.0 to 5.1)"),
        (0.5, 0.45, 0.55 + 1e-9, "50.0 ± 5.0"),  # the middle but for rounding
        (0.859, None, None, "85.90"),
        (0.859, 0.859, 0.859, "85.90"),
    ],
)
def test_an_interval_is_shown_by_its_half_width_or_by_its_ends(
    mean: float, low: float | None, high: float | None, text: str
) -> None:
    assert format_estimate("val_accuracy", Estimate(mean, low, high, 3)) == text


def test_an_unknown_figure_has_a_sign_of_its_own() -> None:
    assert format_estimate("val_accuracy", None) == "—"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.1e-9, 0.6e-9, 1.6e-9), "1.10e-09 ± 5.0e-10"),
        ((1.23456e-8, None, None), "1.235e-08"),
        ((2e-6, None, None), "2.000e-06"),
        ((4.56e-5, None, None), "0.000046"),
        ((0.002, 0.0019, 0.0021), "0.00200 ± 0.00010"),
        ((0.0, None, None), "0"),
        ((3e-7, -2.0, 2.0), "0.0 ± 2.0"),
    ],
)
def test_a_small_value_is_not_shown_as_zero(values: tuple[float, float | None, float | None], text: str) -> None:
    """A squared error in the unit of a small target may be 1e-9."""
    assert format_estimate("val_mse", Estimate(*values, 3)) == text


def test_a_small_difference_has_its_sign() -> None:
    assert format_value("val_mse", -1.1e-9, 5e-10, signed=True) == f"{MINUS}1.10e-09"
    assert format_value("val_mse", 3e-8, signed=True) == "+3.000e-08"
    assert format_interval("val_mse", -1.2e-9, 2.2e-9) == f"{MINUS}1.2e-09 to +2.2e-09"


@given(st.floats(-1e12, 1e12), st.none() | st.floats(1e-15, 1e12))
def test_a_number_that_is_shown_is_rounded_where_its_interval_says(mean: float, half: float | None) -> None:
    shown = float(format_value("val_mse", mean, half).replace(",", "").replace(MINUS, "-"))
    digits = abs(mean) * 0.0005 if half is None else half / 10 * 0.5000001
    assert abs(shown - mean) <= max(digits * 1.0000001, 5.0000001e-7 if abs(mean) >= 1e-5 or not mean else 0)
