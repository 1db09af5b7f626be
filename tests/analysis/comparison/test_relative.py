"""Costs relative to the baseline: ratios paired by seed, in the table of `compare --relative`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as reference

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.figures import figure
from litpeft.analysis.comparison.relative import ratio, ratio_text, ratios
from litpeft.analysis.comparison.results import Estimate
from litpeft.analysis.comparison.tables import figures_table
from tests.analysis.comparison.build import write_run

SECONDS = {"none": [100.0, 120.0, 90.0], "lora": [60.0, 75.0, 50.0]}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for adapter, values in SECONDS.items():
        for seed, seconds in enumerate(values):
            more = {"train_seconds": seconds, "peak_tensor_bytes": 2**28 if adapter == "none" else 2**27}
            write_run(tmp_path / adapter / f"{seed}", adapter, seed, **more)
    return tmp_path


def test_a_ratio_is_the_geometric_mean_of_pairs_with_the_interval_of_the_logarithms(runs: Path) -> None:
    full, lora = compare([runs]).groups
    found = ratio(lora, full, figure("train_seconds"))
    logs = np.log(np.array(SECONDS["lora"]) / np.array(SECONDS["none"]))
    low, high = reference.t.interval(0.95, 2, logs.mean(), reference.sem(logs))
    assert (found.mean, found.low, found.high) == pytest.approx((np.exp(logs.mean()), np.exp(low), np.exp(high)))
    assert found.count == 3
    assert ratio(full, full, figure("train_seconds")).mean == 1


def test_only_costs_have_ratios(runs: Path) -> None:
    comparison = compare([runs])
    assert ratios(comparison, figure("val_accuracy")) == {}
    assert ratios(comparison, figure("peak_tensor_bytes"))[1].mean == 0.5


def test_ratios_are_of_the_common_seeds(runs: Path) -> None:
    write_run(runs / "lora" / "9", "lora", 9, train_seconds=1.0)
    shutil.rmtree(runs / "lora" / "0")
    found = ratio(*reversed(compare([runs]).groups), figure("train_seconds"))
    assert found.count == 2
    assert found.mean == pytest.approx((75 / 120 * 50 / 90) ** 0.5)


@pytest.mark.parametrize("unknown", [None, 0.0, -5.0])
def test_a_seed_without_a_positive_figure_on_both_sides_has_no_ratio(runs: Path, unknown: float | None) -> None:
    write_run(runs / "none" / "0", "none", 0, train_seconds=unknown)
    write_run(runs / "lora" / "1", "lora", 1, train_seconds=unknown)
    found = ratios(compare([runs]), figure("train_seconds"))
    assert (found[1].mean, found[1].low, found[1].high, found[1].count) == (pytest.approx(50 / 90), None, None, 1)
    assert found[0].count == 3 - 1
    write_run(runs / "lora" / "2", "lora", 2, train_seconds=unknown)
    assert 1 not in ratios(compare([runs]), figure("train_seconds"))


def test_the_table_shows_costs_in_per_cent_of_the_baseline(runs: Path) -> None:
    table = figures_table(compare([runs], relative=True))
    columns = dict(zip(table.headings, zip(*table.rows, strict=True), strict=True))
    assert columns["peak tensor memory, %"] == ("100 %", "50 %")
    assert columns["training time, %"][1].startswith("59.3 % (51.1 to")
    assert columns["validation accuracy, %"][0] == "85.000 ± 0.082"  # a quality stays as it is
    assert "costs in per cent of full" in table.title
    comparison = compare([runs], relative=True)
    comparison.published = {"rows": [{"label": "a paper", "train_seconds": 50.0, "val_accuracy": 0.9}]}
    table = figures_table(comparison)
    row = dict(zip(table.headings, table.rows[-1], strict=True))
    assert (row["training time, %"], row["validation accuracy, %"]) == ("—", "90.00")  # seconds are no per cent
    assert "per cent" not in figures_table(compare([runs])).title


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, "—"),
        (Estimate(0.5, None, None, 1), "50 %"),
        (Estimate(0.5, 0.5, 0.5, 3), "50 %"),
        (Estimate(0.623, 0.58, 0.66, 3), "62.3 % (58 to 66)"),
    ],
)
def test_ratios_as_text(found: Estimate | None, text: str) -> None:
    assert ratio_text(found) == text
