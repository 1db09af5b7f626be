"""Recommend a group by rule: the cheapest of those that are shown not to be worse than the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from litpeft.analysis.comparison.margins import COST
from litpeft.analysis.comparison.results import Comparison, Figure, Group
from litpeft.analysis.comparison.sentences import (
    difference_text,
    listed,
    name_of,
    names_of,
    plain_title,
    value_text,
    within_text,
)

TIMES = "train_seconds", "wall_seconds", "step_seconds_p50", "train_tokens_per_second", "train_samples_per_second"


def recommendation(comparison: Comparison, base: Group, others: Sequence[Group], main: Figure) -> str:
    """Return the recommendation with its reason, or why there is none.

    A group is shown not to be worse if it is better, or if a one-sided test shows that it is worse by less than the
    margin. Of groups that cost the same (within 5 %), the best one is taken. A cheaper group whose quality is undecided
    is never recommended, and keeps the baseline from being so. A group whose cost is unknown is named.

    Args:
        comparison: the comparison.
        base: its baseline.
        others: the other groups with finished runs.
        main: the figure of quality that decides.
    """
    if main.kind not in ("quality", "benchmark"):
        return ""
    if comparison.confounded:
        return "No recommendation: differences may come from options other than the axes."
    cost = _cost(comparison, base)
    if cost is None:
        return f"No recommendation: the {comparison.prefer} of {name_of(base)} is not among the figures."
    title, cost_title = plain_title(main.title), plain_title(cost.title)
    known = [group for group in others if main.name in group.differences and cost.name in group.estimates]
    fit = [group for group in known if _is_not_worse(group, main)]
    unclear = [group for group in known if group not in fit and group.differences[main.name].verdict != "worse"]
    cheapest = min((base, *fit), key=lambda group: _paid(group, cost))
    chosen = _chosen(cheapest, base, fit, main, cost)
    cheaper = [group for group in unclear if _paid(group, cost) < _paid(chosen, cost)]
    if chosen is base and cheaper:
        return f"No recommendation yet: {_open(cheaper, base, main)}, and a lower cost alone decides nothing."
    uncosted = [group for group in others if cost.name not in group.estimates]
    amount = value_text(cost.name, chosen.estimates[cost.name].mean)
    if chosen is base:
        less = [each for each in others if cost.name in each.estimates and _paid(each, cost) < _paid(base, cost)]
        unknown = [group for group in less if group not in known]
        none = "no other group is known to need less" if uncosted else "no other group needs less"
        reason = f"what needs less is worse in {title}" if less else none
        if unknown:
            verb = "needs less, but has" if len(unknown) == 1 else "need less, but have"
            reason = f"{names_of(unknown)} {verb} no {title} to compare"
        sentences = [f"Recommended: {name_of(base)} ({cost_title} {amount}); {reason}."]
    else:
        among = f"shown not worse than {name_of(base)} in {title}"
        if not chosen.differences[main.name].is_significant:
            among += f" ({within_text(main, chosen.differences[main.name])})"
        lowest = "lowest" if cost.better == "lower" else "highest"
        sentences = [f"Recommended: {name_of(chosen)}, the {lowest} {cost_title} ({amount}) of the groups {among}."]
        if chosen is not cheapest:
            gained = difference_text(main.name, chosen.differences[main.name])
            sentences = [
                f"Recommended: {name_of(chosen)}, the best in {title} ({gained}) of the groups with about the {lowest} "
                f"{cost_title} ({amount})."
            ]
    sentences += _worse_elsewhere(comparison, chosen, main)
    reached = 0.0 if chosen is base else abs(chosen.differences[main.name].mean)
    better = [group for group in fit if group.differences[main.name].verdict == "better"]
    better = [group for group in better if chosen is not group and abs(group.differences[main.name].mean) > reached]
    if better:
        best = max(better, key=lambda group: abs(group.differences[main.name].mean))
        times = best.estimates[cost.name].mean / chosen.estimates[cost.name].mean
        gained = difference_text(main.name, best.differences[main.name])
        sentences.append(f"Best in {title}: {name_of(best)} ({gained}), at {times:.2g} times the {cost_title}.")
    if cheaper:
        sentences.append(f"{_open(cheaper, base, main)}.")
    if uncosted:
        sentences.append(f"The {cost_title} of {names_of(uncosted)} is unknown.")
    return " ".join(sentences)


def _chosen(cheapest: Group, base: Group, fit: Sequence[Group], main: Figure, cost: Figure) -> Group:
    """Return the best of the groups that cost no more than the cheapest by the margin of the cost, or the cheapest."""
    least = _paid(cheapest, cost)
    better = [
        group
        for group in fit
        if group.differences[main.name].verdict == "better" and _paid(group, cost) - least <= COST * abs(least)
    ]
    return max(better, key=lambda group: abs(group.differences[main.name].mean), default=cheapest)


def _is_not_worse(group: Group, figure: Figure) -> bool:
    found = group.differences[figure.name]
    return found.verdict == "better" or found.is_not_worse


def _cost(comparison: Comparison, base: Group) -> Figure | None:
    """Return the figure of cost that is minimised; None if the comparison does not show one that the baseline has."""
    if comparison.prefer == "time":
        ordered = [figure for name in TIMES for figure in comparison.figures if figure.name == name]
    else:
        ordered = [figure for figure in comparison.figures if figure.kind == "memory"]
    return next((figure for figure in ordered if figure.name in base.estimates), None)


def _paid(group: Group, cost: Figure) -> float:
    mean = group.estimates[cost.name].mean
    return -mean if cost.better == "higher" else mean


def _open(groups: Sequence[Group], base: Group, main: Figure) -> str:
    """Say that groups are cheaper, but undecided, and how many seeds would decide."""
    needed = [group.differences[main.name].seeds_to_decide for group in groups]
    untested = any(group.differences[main.name].test is None for group in groups)
    seeds = "at least two" if untested else "more than 1,000" if None in needed else f"about {max(needed):,}"
    verb, they = ("needs", "it is") if len(groups) == 1 else ("need", "they are")
    return (
        f"{names_of(groups)} {verb} less, but whether {they} worse than {name_of(base)} in {plain_title(main.title)} "
        f"is undecided ({seeds} seeds would tell)"
    )


def _worse_elsewhere(comparison: Comparison, chosen: Group, main: Figure) -> list[str]:
    """Name other figures of quality in which the chosen group is worse."""
    named = [
        f"{plain_title(figure.title)} ({difference_text(figure.name, found)})"
        for figure in comparison.figures
        if figure.kind in ("quality", "benchmark")
        and figure is not main
        and (found := chosen.differences.get(figure.name))
        and found.verdict == "worse"
        and not found.is_small
    ]
    return [f"It is worse in {listed(named)}."] if named else []
