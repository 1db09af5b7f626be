"""Margins, limits of figures, and the verdict on equality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.figures import figure
from litpeft.analysis.comparison.margins import Margin, margin_of, possible, possible_difference, read_margin, within
from litpeft.commands import compare as compare_command
from litpeft.errors import UserError
from tests.analysis.comparison.build import write_grid, write_run

BOUND = st.none() | st.floats(-1, 1)


@pytest.mark.parametrize(
    ("name", "baseline", "requested", "expected"),
    [
        ("val_accuracy", 0.9, None, 0.01),
        ("val_accuracy", 0.9, "0.5", 0.005),  # in points, as the table is
        ("val_accuracy", 0.9, "2%", 0.018),  # of the baseline
        ("val_matthews", 0.5, None, 0.01),
        ("val_loss", 0.4, None, 0.004),
        ("val_loss", 0.4, "0.1", 0.1),
        ("bleu", 30.0, None, 0.3),
        ("peak_tensor_bytes", 400.0, None, 20.0),
        ("peak_tensor_bytes", 2.0**30, "10", 10 * 2.0**20),  # MiB
        ("train_tokens_per_second", 1000.0, None, 50.0),
        ("score_average", 0.7, None, 0.01),
        ("val_loss", 0.0, None, None),
        ("val_loss", 0.0, "1%", None),
    ],
)
def test_a_margin_is_in_the_unit_of_the_table(
    name: str, baseline: float, requested: str | None, expected: float | None
) -> None:
    wanted = dict([read_margin(f"{name}={requested}")]) if requested else {}
    assert margin_of(figure(name), baseline, wanted) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("text", ["val_loss", "val_loss=", "=1", "val_loss=0", "val_loss=-1", "val_loss=nan", "x=inf"])
def test_a_margin_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not FIGURE=AMOUNT, such as val_accuracy=0.5"):
        compare_command.main(["--margin", text, "runs"])


def test_a_margin_of_an_unknown_figure_is_refused(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.9, 0.9], "lora": [0.9, 0.9]})
    with pytest.raises(UserError, match=r"--margin val_acuracy: no such figure \(did you mean val_accuracy\?\)"):
        compare([tmp_path], margins={"val_acuracy": Margin(1, False)})
    with pytest.raises(UserError, match="--margin model_bytes: no such figure"):  # not tested
        compare([tmp_path], margins={"model_bytes": Margin(1, False)})


def test_equivalence_equals_two_one_sided_tests_with_holm_of_statsmodels(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    values = {name: (0.85 + draw.normal(shift, 0.0025, 6)).tolist() for name, shift in
              {"none": 0, "lora": 0, "dora": 0.004, "qlora-nf4": -0.008}.items()}  # fmt: skip
    groups = compare([write_grid(tmp_path, values)]).groups[1:]
    pairs = [(np.array(values[group.label]), np.array(values["none"])) for group in groups]
    equal = multipletests([ttost_paired(*pair, -0.01, 0.01)[0] for pair in pairs], 0.025, "holm")[0]
    lower = multipletests([ttost_paired(*pair, -0.01, 0.01)[1][1] for pair in pairs], 0.025, "holm")[0]
    found = [group.differences["val_accuracy"] for group in groups]
    assert [each.is_small for each in found] == equal.tolist()
    assert [each.is_not_worse for each in found] == lower.tolist()
    assert set(equal) == {True, False}
    for each in found:
        if each.verdict == "equivalent":
            assert -0.01 < each.low < each.high < 0.01  # the interval that is shown


def test_not_worse_follows_the_direction_of_the_figure(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path / f"a{seed}", "none", seed, val_loss=0.5 + seed / 100)
        write_run(tmp_path / f"b{seed}", "lora", seed, val_loss=0.4 + seed / 100 + seed % 2 / 1000)
        write_run(tmp_path / f"c{seed}", "dora", seed, val_loss=0.6 + seed / 100 + seed % 2 / 1000)
    _, dora, lora = compare([tmp_path]).groups
    assert (lora.differences["val_loss"].is_not_worse, lora.differences["val_loss"].is_small) == (True, False)
    assert not dora.differences["val_loss"].is_not_worse


def test_intervals_stay_inside_of_what_is_possible(tmp_path: Path) -> None:
    """Two seeds of 39 rows: 100 +- 6.7 % and 38 +- 98 % were shown before."""
    write_grid(tmp_path, {"none": [1.0, 1.0], "lora": [0.46, 0.31]}, data_summary={"rows": {"val": 39}})
    full, lora = compare([tmp_path]).groups
    assert full.estimates["val_accuracy"].high == 1
    assert 0 <= lora.estimates["val_accuracy"].low < 0.385 < lora.estimates["val_accuracy"].high <= 1
    assert -1 <= lora.differences["val_accuracy"].low < lora.differences["val_accuracy"].high <= 1
    assert lora.estimates["peak_tensor_bytes"].low >= 0


@given(ends=st.lists(st.floats(-2, 2), min_size=2, max_size=2).map(sorted), low=BOUND, high=BOUND)
def test_an_interval_is_cut_at_each_limit_that_there_is(
    ends: list[float], low: float | None, high: float | None
) -> None:
    cut = within(ends, (low, high))
    assert cut == (ends[0] if low is None else max(ends[0], low), ends[1] if high is None else min(ends[1], high))
    assert within((None, None), (low, high)) == (None, None)


def test_two_costs_that_differ_have_no_interval_below_zero(tmp_path: Path) -> None:
    for seed, (peak, loss) in enumerate([(1e8, 0.1), (3e8, 0.9)]):
        write_run(tmp_path / f"{seed}", "none", seed, peak_tensor_bytes=peak, val_loss=loss)
    (group,) = compare([tmp_path]).groups
    assert group.estimates["peak_tensor_bytes"].low == group.estimates["val_loss"].low == 0
    assert group.estimates["peak_tensor_bytes"].high > 1e9


@pytest.mark.parametrize(
    ("name", "limits", "of_a_difference"),
    [
        ("val_accuracy", (0, 1), (-1, 1)),
        ("val_pearson", (-1, 1), (-2, 2)),
        ("val_loss", (0, None), (None, None)),
        ("peak_rss_bytes", (0, None), (None, None)),
        ("val_style", (None, None), (None, None)),
        ("hellaswag_acc_change", (-1, 1), (-2, 2)),
        ("perplexity_bits_per_byte_change", (None, None), (None, None)),
        ("score_average", (-1, 1), (-2, 2)),  # it may hold Matthews and Pearson correlations
        ("val_r2", (None, None), (None, None)),
        ("val_judge_score_mean", (None, None), (None, None)),  # from 1 to 10, say: only score_TASK is an average
        ("flops_utilisation", (0, None), (None, None)),  # a measured peak may be too low
    ],
)
def test_limits_of_figures(name: str, limits: tuple, of_a_difference: tuple) -> None:
    assert possible(figure(name)) == limits
    assert possible_difference(figure(name)) == of_a_difference
