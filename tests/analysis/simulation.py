"""Simulate comparisons with known differences, and count verdicts and intervals: `python -m tests.analysis.simulation`.

Each comparison has a baseline and three groups with common effects of seeds. Figures are normal (as losses are), binomial
(accuracies on 200 rows: multiples of 1 / rows) or skewed (as seconds are: a lognormal error).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from litpeft.analysis.comparison.differences import PAIRED_T, Tested, corrected_differences
from litpeft.analysis.comparison.results import Difference, Figure
from litpeft.analysis.comparison.row_tests import BOOTSTRAP, MCNEMAR
from litpeft.analysis.stats import mcnemar, mean_interval, paired_bootstrap, paired_t

COMPARISONS, GROUPS, ROWS = 1000, 3, 200
FIGURE = Figure("style", "style", "higher", "quality")  # no limits, so that intervals are as computed
Draw = Callable[
    [np.random.Generator, float, int], np.ndarray
]  # generator, true difference, seeds -> (groups + 1, seeds)


def normal(draw: np.random.Generator, difference: float, seeds: int) -> np.ndarray:
    values = 0.8 + draw.normal(0, 0.01, (1, seeds)) + draw.normal(0, 0.01, (GROUPS + 1, seeds))
    values[1:] += difference
    return values


def binomial(draw: np.random.Generator, difference: float, seeds: int) -> np.ndarray:
    shares = np.clip(0.8 + draw.normal(0, 0.01, (GROUPS + 1, seeds)), 0, 1)
    shares[1:] += difference
    return draw.binomial(ROWS, shares) / ROWS


def skewed(draw: np.random.Generator, difference: float, seeds: int) -> np.ndarray:
    values = 0.8 + 0.02 * (draw.lognormal(0, 0.7, (GROUPS + 1, seeds)) - np.exp(0.7**2 / 2))
    values[1:] += difference
    return values


KINDS: dict[str, tuple[Draw, float]] = {
    "normal": (normal, 0.0),
    "binomial": (binomial, 1 / ROWS),
    "skewed": (skewed, 0.0),
}


def over_seeds(
    kind: str, difference: float, margin: float, seeds: int = 5, count: int = COMPARISONS
) -> dict[str, float]:
    """Return shares: comparisons with a better or worse group, equivalent groups, and intervals that cover the truth."""
    draw, (values_of, step) = np.random.default_rng(seeds), KINDS[kind]
    found: list[list[Difference]] = []
    covered = []
    for _ in range(count):
        values = values_of(draw, difference, seeds)
        tests = {
            str(i): Tested(PAIRED_T, paired_t(group, values[0], step, margin), seeds)
            for i, group in enumerate(values[1:].tolist())
        }
        found.append(list(corrected_differences(tests, FIGURE, margin).values()))
        _, low, high = mean_interval(values[1].tolist(), step)
        covered.append(low <= 0.8 + difference <= high)
    return _shares(found, difference) | {"mean covered": float(np.mean(covered))}


def over_rows(seeds: int, difference: float, margin: float, rows: int, count: int = COMPARISONS) -> dict[str, float]:
    """Return the same shares for tests over rows: McNemar's for one seed, else the bootstrap; rows are right or wrong."""
    draw = np.random.default_rng(seeds)
    found = []
    for _ in range(count):
        hard = draw.random(rows) < 0.3  # on these rows a model is right by chance, on the others the models agree
        share = difference / 0.3
        right = [~hard | (draw.random((seeds, rows)) < 0.5 + each) for each in (0, *(share,) * GROUPS)]
        tests = {}
        for i, group in enumerate(right[1:]):
            if seeds == 1:
                tests[str(i)] = Tested(MCNEMAR, mcnemar(group[0], right[0][0], margin), 1)
            else:
                bootstrap = paired_bootstrap(group.astype(int), right[0].astype(int), 2000, margin=margin)
                tests[str(i)] = Tested(BOOTSTRAP, bootstrap, seeds)
        found.append(list(corrected_differences(tests, FIGURE, margin).values()))
    return _shares(found, difference)


def _shares(found: list[list[Difference]], difference: float) -> dict[str, float]:
    groups = [each for comparison in found for each in comparison]
    return {
        "any better or worse": float(np.mean([any(each.is_significant for each in one) for one in found])),
        "any small": float(np.mean([any(each.is_small for each in one) for one in found])),
        "small": float(np.mean([each.is_small for each in groups])),
        "difference covered": float(np.mean([each.low <= difference <= each.high for each in groups])),
    }


def main() -> None:
    """Print a table of shares in per cent."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COMPARISONS
    cases = {
        f"{kind}, {seeds} seeds": (lambda d, m, k=kind, s=seeds: over_seeds(k, d, m, s, count))
        for kind in KINDS
        for seeds in (3, 5)
    }
    cases |= {
        f"{ROWS * 2} rows, {seeds} seed(s)": (lambda d, m, s=seeds: over_rows(s, d, m, ROWS * 2, count))
        for seeds in (1, 3)
    }
    heads = "no difference: any better or worse", "difference = margin: any equivalent", "no difference: equivalent"
    print(
        f"{count:,} comparisons of {GROUPS} groups with a baseline; margin 5 points; per cent",
        *heads,
        "difference covered",
        "mean covered",
        sep=" | ",
    )
    for name, run in cases.items():
        none, edge = run(0.0, 0.05), run(0.05, 0.05)
        shown = (
            none["any better or worse"],
            edge["any small"],
            none["small"],
            (none["difference covered"] + edge["difference covered"]) / 2,
        )
        cells = [*shown, *([none["mean covered"]] if "mean covered" in none else [])]
        print(name, *(f"{100 * cell:.1f}" for cell in cells), sep=" | ")


if __name__ == "__main__":
    main()
