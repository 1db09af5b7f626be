"""How means, intervals and differences are written."""

from __future__ import annotations

import pytest

from litpeft.analysis.comparison.number_format import format_estimate
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
