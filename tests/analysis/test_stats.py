"""Statistics compared with scipy.stats and statsmodels, and on simulated comparisons."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as reference
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from litpeft.analysis.power import pairs_needed, pairs_to_decide
from litpeft.analysis.stats import LEVEL, holm, mcnemar, mean_interval, paired_bootstrap, paired_t
from tests.analysis.simulation import KINDS, over_rows, over_seeds

SANE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(SANE, SANE), min_size=2, max_size=12)


@given(st.lists(SANE, min_size=2, max_size=20))
def test_the_interval_of_a_mean_equals_scipy(values: list[float]) -> None:
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if (error := reference.sem(values)) > 1e-6:
        expected = reference.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_one_value_has_no_interval_and_no_value_is_an_error() -> None:
    assert mean_interval([3.5]) == (3.5, None, None)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


@given(PAIRS)
def test_paired_t_equals_scipy(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    differences = np.subtract(first, second)
    found = paired_t(first, second)
    if differences.std() > 1e-6:
        expected = reference.ttest_rel(first, second)
        interval = expected.confidence_interval()
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)
        assert found.sd == pytest.approx(differences.std(ddof=1))
    assert found.pairs == len(pairs)


def test_equal_differences_are_significant_unless_values_are_rounded() -> None:
    exact = paired_t([300, 300, 300], [400, 400, 400])
    assert (exact.mean, exact.low, exact.high, exact.p, exact.sd) == (-100, -100, -100, 0, 0)
    same = paired_t([300, 300], [300, 300])
    assert (same.p, same.low, same.high) == (1, 0, 0)
    step = 1 / 872  # two seeds, each better by one row
    chance = paired_t([0.85 + step, 0.86 + step], [0.85, 0.86], resolution=step)
    assert chance.sd == pytest.approx(step / 6**0.5)
    assert chance.p > 0.1
    low, high = mean_interval([0.85, 0.85], resolution=step)[1:]
    assert high - low == pytest.approx(2 * 12.706 * step / 12**0.5 / 2**0.5, rel=1e-4)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_paired_t_refuses_unpaired_values(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="two pairs or more"):
        paired_t(first, second)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
@example([(1, 0)] * 5 + [(1, 1)] * 20)  # p is 0.06, and the score interval alone would exclude 0
@example([(0, 1)] * 5 + [(0, 0)] * 20)
def test_mcnemar_equals_statsmodels_and_its_interval_agrees(rows: list[tuple[int, int]]) -> None:
    first, second = np.array(rows).T
    table = [[int(((first == a) & (second == b)).sum()) for b in (1, 0)] for a in (1, 0)]
    found = mcnemar(first, second)
    assert found.p == pytest.approx(reference_mcnemar(table, exact=True).pvalue if table[0][1] + table[1][0] else 1)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.low <= found.mean <= found.high
    assert (found.p < LEVEL) == (found.low > 0 or found.high < 0)
    assert -1 <= found.low <= found.high <= 1


def score(gained: int, lost: int, rows: int, difference: float) -> float:
    """Return z with the variance at the constrained maximum of the likelihood, found numerically (Tango 1998)."""

    def unlikely(share: float) -> float:  # of lost rows; of gained rows: share + difference
        shares = share + difference, share, 1 - 2 * share - difference
        return -sum(
            n * np.log(max(s, 1e-300)) for n, s in zip((gained, lost, rows - gained - lost), shares, strict=True)
        )

    ends = max(0, -difference), (1 - difference) / 2
    share = optimize.minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - rows * difference) / (rows * (2 * share + difference * (1 - difference))) ** 0.5


@pytest.mark.parametrize(("gained", "lost", "rows"), [(12, 2, 50), (2, 12, 50), (30, 22, 400), (3, 1, 9), (0, 9, 30)])
def test_the_interval_and_the_tails_of_mcnemar_are_those_of_the_score_test(gained: int, lost: int, rows: int) -> None:
    first = [1] * gained + [0] * lost + [1] * (rows - gained - lost)
    second = [0] * gained + [1] * lost + [1] * (rows - gained - lost)
    found = mcnemar(first, second, 0.05)
    for end in (found.low, found.high):
        if end not in (0, 1, -1):
            assert abs(score(gained, lost, rows, end)) == pytest.approx(1.959964, abs=1e-3)
    assert found.p_low == pytest.approx(reference.norm.sf(score(gained, lost, rows, -0.05)), abs=1e-4)
    assert found.p_high == pytest.approx(reference.norm.cdf(score(gained, lost, rows, 0.05)), abs=1e-4)


def test_a_difference_of_all_rows_is_excluded_unless_all_rows_differ() -> None:
    some = mcnemar([1, 0, 1], [0, 0, 1], margin=1.0)
    assert (some.p_low, some.p_high) == (0, 0)
    every = mcnemar([1, 1, 1], [0, 0, 0], margin=1.0)
    assert (every.p_low, every.p_high) == (0, 0.5)
    assert mcnemar([1, 0], [1, 0], margin=1.0).p_high == 0


@given(PAIRS, st.floats(0.01, 1e6))
def test_the_tails_of_paired_t_equal_two_one_sided_tests_of_statsmodels(pairs: list[tuple], margin: float) -> None:
    first, second = map(np.array, zip(*pairs, strict=True))
    found = paired_t(first, second, margin=margin)
    if (first - second).std() > 1e-6:
        _, lower, upper = ttost_paired(first, second, -margin, margin)
        assert (found.p_low, found.p_high) == pytest.approx((lower[1], upper[1]), rel=1e-6, abs=1e-9)
    inside = -margin < found.low and found.high < margin  # the interval that is shown
    assert inside == (max(found.p_low, found.p_high) < 0.025) or found.sd < 1e-6


def test_without_noise_a_difference_is_inside_the_margin_or_not() -> None:
    inside, outside = (paired_t([3, 4], [2, 3], margin=margin) for margin in (1.5, 1.0))
    assert (inside.p_low, inside.p_high) == (0, 0)
    assert (outside.p_low, outside.p_high) == (0, 1)
    assert paired_t([3, 4], [2, 3]).p_low is None


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_rows_that_all_agree_do_not_show_equivalence(seeds: int) -> None:
    """39 rows without a difference leave up to 3 / 39 of further rows open (the rule of three)."""
    for rows, shown in ((39, False), (1000, True)):
        right = [[1] * rows] * seeds
        tests = [
            paired_bootstrap(right, right, margin=0.01),
            *([mcnemar(*right, *right, margin=0.01)] if seeds == 1 else []),
        ]
        for found in tests:
            assert found.low < 0 < found.high
            assert (max(found.p_low, found.p_high) < 0.025) == shown


def test_the_tails_of_the_bootstrap_agree_with_a_normal_approximation() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.52, 0.3, (2, 500)), draw.normal(0.5, 0.3, (2, 500))
    found, by_row = paired_bootstrap(first, second, margin=0.03), (first - second).mean(axis=0)
    error = by_row.std() / 500**0.5
    assert found.p_low == pytest.approx(reference.norm.sf((by_row.mean() + 0.03) / error), abs=0.01)
    assert found.p_high == pytest.approx(reference.norm.cdf((by_row.mean() - 0.03) / error), abs=0.01)


def test_mcnemar_of_different_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="same rows"):
        mcnemar([1, 0], [1])
    with pytest.raises(ValueError, match="same rows"):
        paired_bootstrap([[0.1, 0.2]], [[0.1]])


@pytest.mark.parametrize("kind", ["losses", "rights"])
def test_the_bootstrap_agrees_with_scipy(kind: str) -> None:
    draw = np.random.default_rng(1)
    shape = (3, 300)
    first, second = draw.normal(0.5, 0.4, shape), draw.normal(0.45, 0.4, shape)
    if kind == "rights":
        first, second = (first > 0.4).astype(int), (second > 0.4).astype(int)
    found = paired_bootstrap(first, second)
    by_row = (first - second).mean(axis=0)
    expected = reference.bootstrap(
        (by_row,), np.mean, n_resamples=10_000, method="percentile", random_state=np.random.default_rng(2)
    ).confidence_interval
    error = by_row.std() / len(by_row) ** 0.5
    assert found.mean == pytest.approx(by_row.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=error / 10)
    assert found.p == pytest.approx(
        2 * reference.norm.sf(abs(by_row.mean()) / error), abs=0.02
    )  # approximately normal with 300 rows
    assert found == paired_bootstrap(first, second)
    assert found != paired_bootstrap(first, second, seed=1)


def test_the_bootstrap_resamples_rows_instead_of_seeds() -> None:
    """Ten copies of one seed give the interval of one seed; pooling them would shrink it by sqrt(10)."""
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=200), draw.normal(size=200)
    assert paired_bootstrap([first] * 10, [second] * 10).low == pytest.approx(paired_bootstrap(first, second).low)


def test_the_bootstrap_of_no_difference_and_of_a_constant_one() -> None:
    same = paired_bootstrap([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert paired_bootstrap([1.0] * 50, [0.0] * 50).p == pytest.approx(2 / 10_001)
    rows = np.random.default_rng(0).normal(1, 0.1, 70_000)  # needs several chunks
    assert paired_bootstrap(rows, rows - 1, draws=200).low == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 2, 5, 15])
def test_holm_equals_statsmodels(count: int) -> None:
    ps = np.random.default_rng(count).beta(0.3, 2, count).round(3).tolist()  # many small values, some equal
    assert holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]))


def test_holm_of_no_p_values_is_empty() -> None:
    assert holm([]) == []


def upper_power(effect: float, pairs: int, level: float) -> float:
    """Return the power of the upper tail, nearly all of the two-sided power, whose lower tail is sometimes NaN."""
    return TTestPower().power(effect, pairs, level / 2, alternative="larger")


@settings(deadline=None)
@given(st.floats(0.12, 5), st.sampled_from([0.05, 0.0125]))
def test_pairs_needed_reach_a_power_of_80_percent_in_statsmodels(effect: float, level: float) -> None:
    found = pairs_needed(-effect, 1.0, level)
    assert found is not None
    assert upper_power(effect, found, level) >= 0.8 - 1e-6
    assert found == 2 or upper_power(effect, found - 1, level) < 0.8 + 1e-6


def test_pairs_needed_of_known_cases() -> None:
    assert pairs_needed(0.5, 1.0) == np.ceil(TTestPower().solve_power(0.5, power=0.8, alpha=0.05)) == 34
    assert [pairs_needed(effect, 1.0) for effect in (1.5, 2, 3.3, 50, 1e9)] == [
        6,
        5,
        3,
        2,
        2,
    ]  # scipy returns NaN for some effects in between
    assert upper_power(3.3, 3, 0.05) > 0.8
    assert pairs_needed(0.05, 1.0) is None  # would be 3,142
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(1.0, None) is None
    assert pairs_needed(1.0, 0.0) == 2


@pytest.mark.parametrize("ratio", [0.7, 2.0, 5.0])
def test_pairs_to_decide_show_equivalence_and_find_the_margin_with_80_percent_power(ratio: float) -> None:
    pairs = pairs_to_decide(ratio, 1.0)
    draw = np.random.default_rng(1)

    def decided(count: int, true: float) -> float:
        tests = [paired_t(row, [0.0] * count, margin=ratio) for row in draw.normal(true, 1, (1500, count)).tolist()]
        return float(np.mean([test.p < 0.05 if true else max(test.p_low, test.p_high) < 0.025 for test in tests]))

    assert decided(pairs, 0.0) > 0.77
    assert decided(pairs, ratio) > 0.77
    assert pairs == 2 or decided(pairs - 1, 0.0) < 0.83


@settings(deadline=None)
@given(st.floats(0.12, 5), st.sampled_from([0.025, 0.0125]))
def test_pairs_to_decide_reach_a_power_of_80_percent_in_scipy(ratio: float, level: float) -> None:
    """Phillips 1990: 1 - 2 P(T < t(n - 1; 1 - level)), T noncentral t."""

    def power(pairs: int) -> float:
        critical = reference.t.ppf(1 - level, pairs - 1)
        return 1 - 2 * reference.nct.cdf(critical, pairs - 1, ratio * pairs**0.5)

    found = pairs_to_decide(ratio, 1.0, level)
    assert power(found) >= 0.8 - 1e-6
    assert found == 2 or power(found - 1) < 0.8 + 1e-6


def test_pairs_to_decide_of_known_cases() -> None:
    assert pairs_to_decide(1.0, None) is None
    assert pairs_to_decide(0.0, 1.0) is None
    assert pairs_to_decide(0.05, 1.0) is None
    assert [pairs_to_decide(1.0, sd) for sd in (0.0, 1e-9)] == [2, 2]
    assert pairs_to_decide(1.0, 1.0, 0.0125) > pairs_to_decide(1.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_over_seeds_are_wrong_at_most_as_often_as_promised(kind: str) -> None:
    count = 400
    above = lambda rate: rate + 2.5 * (rate * (1 - rate) / count) ** 0.5  # noqa: E731
    none, edge = over_seeds(kind, 0.0, 0.05, count=count), over_seeds(kind, 0.05, 0.05, count=count)
    assert none["any better or worse"] <= above(0.05)
    assert edge["any small"] <= above(0.025)  # a difference of the margin is not called equivalent
    assert none["small"] > 0.05  # equal groups can be called so
    assert none["difference covered"] >= 0.93
    assert none["mean covered"] >= (0.86 if kind == "skewed" else 0.92)  # a mean of five skewed values is skewed itself


@pytest.mark.parametrize("seeds", [1, 3])
def test_verdicts_over_rows_are_wrong_at_most_as_often_as_promised(seeds: int) -> None:
    count = 200 if seeds == 1 else 60
    none, edge = over_rows(seeds, 0.0, 0.05, 400, count), over_rows(seeds, 0.05, 0.05, 400, count)
    assert none["any better or worse"] <= 0.05 + 2.5 * (0.05 * 0.95 / count) ** 0.5
    assert edge["any small"] <= 0.025 + 2.5 * (0.025 * 0.975 / count) ** 0.5
    assert none["small"] > 0.05
    assert none["difference covered"] >= 0.92


def simulated(gain: float, comparisons: int, seed: int) -> np.ndarray:
    """Simulate accuracies (comparisons, groups, seeds) on 872 rows with common effects of seeds and one better group."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(0, 0.005, (comparisons, 1, 5))
    specific = draw.normal(0, 0.005, (comparisons, 4, 5))
    specific[:, 3] += gain
    return np.round((0.85 + shared + specific) * 872) / 872


def findings(accuracies: np.ndarray) -> np.ndarray:
    """Return which groups differ significantly from the first group: (comparisons, 3) bool."""
    ps = [[paired_t(group, one[0], 1 / 872).p for group in one[1:]] for one in accuracies.tolist()]
    return np.array([holm(row) for row in ps]) < LEVEL


def test_false_positives_are_at_most_5_percent_of_comparisons() -> None:
    rate = findings(simulated(0.0, 1000, seed=0)).any(axis=1).mean()
    error = (0.05 * 0.95 / 1000) ** 0.5
    assert rate <= 0.05 + 2 * error
    assert rate >= 0.02  # a test without any positives would pass the line above
    few = np.round(simulated(0.0, 1000, seed=1)[:, :, :2] * 50) / 50  # two seeds, 50 rows: many ties
    for step, too_often in ((1 / 50, False), (0.0, True)):  # the minimum variance prevents false positives
        ties = [[paired_t(group, one[0], step).p for group in one[1:]] for one in few.tolist()]
        assert ((np.array([holm(row) for row in ties]) < LEVEL).any(axis=1).mean() > 0.05 + 2 * error) == too_often


def test_a_simulated_difference_is_found_as_often_as_the_power() -> None:
    gain = 0.015
    spread = (2 * 0.005**2 + 1 / 872**2 / 6) ** 0.5
    power = TTestPower().power(gain / spread, 5, 0.05 / 3)  # lower limit of the power after Holm
    found = findings(simulated(gain, 1000, seed=2))
    assert power - 0.05 <= found[:, 2].mean() <= TTestPower().power(gain / spread, 5, 0.05) + 0.05
    assert found[:, :2].any(axis=1).mean() <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5


def test_neither_torch_nor_scipy_stats_is_imported() -> None:
    code = "import sys; from litpeft.analysis.stats import *; from litpeft.analysis.power import *; "
    code += "paired_t([1, 2], [2, 5]); pairs_needed(1, 2); pairs_to_decide(1, 2); "
    code += "mcnemar([1], [0]); paired_bootstrap([1.0], [0.0]); "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'scipy.stats')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_equal_values_have_no_variance() -> None:
    mean, low, high = mean_interval([0.4, 0.4, 0.4])
    assert low == mean == high
    assert paired_t([0.7] * 3, [0.4] * 3).sd == 0


def test_a_margin_of_all_rows_is_only_exceeded_by_a_gain_of_all_rows() -> None:
    nine, ten, none = [1] * 9 + [0], [1] * 10, [0] * 10
    assert (mcnemar(nine, none, 1.0).p_high, mcnemar(none, nine, 1.0).p_low) == (0.0, 0.0)
    assert (mcnemar(ten, none, 1.0).p_high, mcnemar(none, ten, 1.0).p_low) == (0.5, 0.5)


def test_no_share_of_resamples_is_0() -> None:
    found = paired_bootstrap([2.0] * 5, [0.0] * 5, draws=99, margin=0.5)
    assert (found.p, found.p_low, found.p_high) == (2 / 100, 1 / 100, 1.0)
    found = paired_bootstrap([0.0] * 5, [2.0] * 5, draws=99, margin=2.0)
    assert (found.p, found.p_low, found.p_high) == (2 / 100, 1.0, 1 / 100)


def test_a_thousand_pairs_are_the_most_that_are_named() -> None:
    power = TTestPower()
    below, above = (float(np.squeeze(power.solve_power(nobs=n, alpha=0.05, power=0.8))) for n in (999.5, 1000.5))
    assert (pairs_needed(below, 1.0), pairs_needed(above, 1.0)) == (1000, None)


def test_resamples_without_a_difference_count_on_both_sides() -> None:
    """Half of the resamples of these two rows have the mean 0, a quarter each -1 and 1."""
    assert paired_bootstrap([1.5, 2.5], [2.5, 1.5]).p == 1.0
    assert paired_bootstrap([1.5, 2.5, 2.5], [2.5, 1.5, 2.5]).p == 1.0


@pytest.mark.parametrize("rows", [[0] * 8, [1] * 8, [0, 1] * 4, [1, 1, 0, 1, 1, 1, 1, 1]])
def test_rows_that_all_agree_are_no_proof_only_where_they_are_right_or_wrong(rows: list[int]) -> None:
    """For other values, equal differences are all that is known."""
    for seeds in (rows, [rows, rows[::-1]]):
        found = paired_bootstrap(seeds, seeds, draws=500)
        assert found.low < 0 == found.mean < found.high
        assert found.p == 1
    flipped = [1 - row for row in rows]
    for one, other in ((rows, flipped), (flipped, rows)):
        found = paired_bootstrap(one, other, draws=500)
        assert found.low < found.high
    for step in (0.5, 2, -0.5):
        found = paired_bootstrap([row + step for row in rows], rows, draws=500)
        assert found.low == found.mean == found.high == step
        found = paired_bootstrap(rows, [row + step for row in rows], draws=500)
        assert found.low == found.mean == found.high == -step
