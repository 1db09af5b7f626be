"""Properties of the statistics: units and the order of values do not matter, and how often intervals and tests are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litpeft.analysis.stats import holm, mcnemar, mean_interval, paired_bootstrap, paired_t

few = settings(max_examples=30, deadline=None, derandomize=True)
PS = st.lists(st.floats(0, 1), min_size=1, max_size=8)
RIGHT = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)
SIMULATED = 400  # data sets of a simulation; the standard error of a share of 95 % is 1.1 points


@few
@given(ps=PS)
def test_corrected_p_values_are_monotone_no_smaller_and_at_most_1(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= corrected <= 1 for p, corrected in zip(ps, found, strict=True))
    order = sorted(range(len(ps)), key=ps.__getitem__)
    assert [found[i] for i in order] == sorted(found)
    assert found[order[0]] == min(1.0, len(ps) * min(ps))
    shuffled = holm([ps[i] for i in order])
    assert shuffled == [found[i] for i in order]


def test_two_large_p_values_stay_p_values() -> None:
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("factor", [3.0, 0.1])
def test_the_bootstrap_does_not_depend_on_the_unit(factor: float) -> None:
    draw = np.random.default_rng(1)
    first, second = draw.integers(0, 4, (2, 40)) / 10
    second[:20] = first[:20]
    plain, scaled = paired_bootstrap(first, second), paired_bootstrap(factor * first, factor * second)
    assert scaled.p == plain.p
    assert scaled.mean == pytest.approx(factor * plain.mean)
    ends = sorted((factor * plain.low, factor * plain.high))
    assert (scaled.low, scaled.high) == pytest.approx(ends)


def test_means_that_are_0_but_for_rounding_count_on_both_sides() -> None:
    """0.1 + 0.2 - 0.3 is 6e-17; the differences of these rows are 0.1, 0.2 and -0.3, in two units."""
    base = np.zeros(9)
    values = np.array([0.1, 0.2, -0.3] * 3)
    assert (
        paired_bootstrap(values, base).p
        == paired_bootstrap(10 * values, base).p
        == paired_bootstrap(values * 3, base).p
    )


@few
@given(rows=RIGHT, seed=st.integers(0, 9))
def test_the_order_of_rows_and_of_seeds_does_not_matter(rows: list[tuple[int, int]], seed: int) -> None:
    first, second = np.array(rows).T
    order = np.random.default_rng(seed).permutation(len(rows))
    assert mcnemar(first[order], second[order], 0.05) == mcnemar(first, second, 0.05)
    one, other = paired_bootstrap(first, second, 200), paired_bootstrap(first[order], second[order], 200)
    assert one == other
    ours, theirs = (first * 0.1).tolist(), (second * 0.3).tolist()
    again = paired_t([ours[i] for i in order], [theirs[i] for i in order], 0.01, 0.05)
    before = paired_t(ours, theirs, 0.01, 0.05)
    assert (again.p, again.low, again.high, again.p_low) == pytest.approx(
        (before.p, before.low, before.high, before.p_low)
    )


@few
@given(rows=RIGHT)
def test_the_other_way_round_everything_changes_its_sign(rows: list[tuple[int, int]]) -> None:
    first, second = np.array(rows).T
    for test in (
        lambda a, b: mcnemar(a, b, 0.1),
        lambda a, b: paired_t(a.tolist(), b.tolist(), 1 / len(rows), 0.1),
    ):
        found, other = test(first, second), test(second, first)
        assert (found.mean, found.low, found.high) == pytest.approx((-other.mean, -other.high, -other.low), abs=1e-9)
        assert (found.p, found.p_low, found.p_high) == pytest.approx((other.p, other.p_high, other.p_low), abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_of_a_mean_holds_the_true_mean_in_95_of_100_cases(count: int) -> None:
    draws = np.random.default_rng(count).normal(3.0, 2.0, (SIMULATED, count))
    ends = [mean_interval(row.tolist())[1:] for row in draws]
    covered = np.mean([low <= 3.0 <= high for low, high in ends])
    assert 0.915 <= covered <= 0.985  # three standard errors


@pytest.mark.parametrize("rows", [20, 872])
def test_the_interval_of_rounded_accuracies_holds_the_true_mean_at_least_as_often(rows: int) -> None:
    """Two seeds of equal skill often have the same number of right rows."""
    draws = np.random.default_rng(rows).binomial(rows, 0.9, (SIMULATED, 2)) / rows
    ends = [mean_interval(row.tolist(), 1 / rows)[1:] for row in draws]
    assert np.mean([low <= 0.9 <= high for low, high in ends]) >= 0.915


def test_a_test_without_a_true_difference_is_significant_in_at_most_5_of_100_cases() -> None:
    draw = np.random.default_rng(2)
    for test, values in (
        (lambda a, b: paired_t(a.tolist(), b.tolist()), draw.normal(0, 1, (SIMULATED, 2, 4))),
        (mcnemar, draw.integers(0, 2, (SIMULATED, 2, 60))),
        (lambda a, b: paired_bootstrap(a, b, 400), draw.normal(0, 1, (SIMULATED // 4, 2, 80))),
    ):
        significant = np.mean([test(first, second).p < 0.05 for first, second in values])
        assert significant <= 0.05 + 3 * (0.05 * 0.95 / len(values)) ** 0.5


def test_equivalence_is_shown_in_at_most_2_5_of_100_cases_if_the_difference_is_the_margin() -> None:
    draws = np.random.default_rng(3).normal(1.0, 1.0, (SIMULATED, 5))
    shown = [max((found := paired_t(row.tolist(), [0.0] * 5, margin=1.0)).p_low, found.p_high) < 0.025 for row in draws]
    assert np.mean(shown) <= 0.025 + 3 * (0.025 * 0.975 / SIMULATED) ** 0.5
