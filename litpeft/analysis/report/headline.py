"""Summarise the verdicts of a comparison in sentences."""

from __future__ import annotations

from litpeft.analysis.comparison import Comparison, Difference, Figure, Group
from litpeft.analysis.report.sentences import counted, difference_text, interval_text, listed, plain_title

COSTS = 3  # memory and speed figures in the answer; the table has all
NAMED = 6  # more groups than this are counted instead of named
VERDICTS = "better", "worse", "not significant", "not enough seeds"
OPPOSITE = {"higher": "lower", "lower": "higher"}


def answer(comparison: Comparison) -> list[str]:
    """Return the main result in one or a few sentences, followed by one sentence per group and cost figure."""
    base = next((group for group in comparison.groups if group.label == comparison.baseline), None)
    others = [group for group in comparison.groups if group is not base and group.runs]
    if base is None:
        return ["There is only one group, so there is nothing to compare."]
    tested = [f for f in comparison.figures if f.better and any(f.name in group.differences for group in others)]
    if not tested:
        return [f"Nothing could be tested: no other group has a figure in common with {_name(base)}."]
    first, *rest = sorted(tested, key=lambda figure: figure.kind != "quality")
    costs = [figure for figure in rest if figure.kind in ("memory", "speed")][:COSTS]
    warning = "No clear answer: the groups differ in more than the axes. " if comparison.confounded else ""
    return [
        warning + _headline(base, others, first, costs),
        *_details(base, others, first),
        *(_cost(base, others, figure) for figure in costs if _by_verdict(others, figure)["not enough seeds"] != others),
    ]


def _headline(base: Group, others: list[Group], quality: Figure, costs: list[Figure]) -> str:
    """Describe all verdicts in the main metric, and the significant differences in costs."""
    by_verdict = _by_verdict(others, quality)
    name = plain_title(quality.title)
    parts = _significant(base, others, [quality])
    if unclear := by_verdict["not significant"]:
        seeds = _pairs(unclear, quality)
        if len(unclear) == len(others) > 1:
            parts.append(f"No group differs significantly from {_name(base)} in {name} ({seeds})")
        else:
            verb = "does" if len(unclear) == 1 else "do"
            parts.append(f"{_names(unclear)} {verb} not differ significantly from {_name(base)} in {name} ({seeds})")
    if untested := by_verdict["not enough seeds"]:
        parts.append(f"Not enough seeds to compare {_names(untested)} with {_name(base)} in {name}")
    parts += _significant(base, others, costs)
    return " ".join(f"{'F' + part[1:] if part.startswith('full fine-tuning') else part}." for part in parts)


def _significant(base: Group, others: list[Group], figures: list[Figure]) -> list[str]:
    """Describe the significant differences: `lora has lower peak host memory than full fine-tuning`."""
    by_groups: dict[tuple[str, str], list[str]] = {}
    for figure in figures:
        for verdict in VERDICTS[:2]:
            if groups := _by_verdict(others, figure)[verdict]:
                direction = figure.better if verdict == "better" else OPPOSITE[figure.better]
                key = _names(groups), "has" if len(groups) == 1 else "have"
                by_groups.setdefault(key, []).append(f"{direction} {plain_title(figure.title)}")
    return [f"{names} {verb} {listed(found)} than {_name(base)}" for (names, verb), found in by_groups.items()]


def _details(base: Group, others: list[Group], figure: Figure) -> list[str]:
    """Return a sentence with numbers for each group."""
    name = plain_title(figure.title)
    if len(_by_verdict(others, figure)["not enough seeds"]) == len(others):
        seen = [f"{group.label} {difference_text(figure.name, group.differences[figure.name])}" for group in others]
        return [
            f"Observed difference from {_name(base)} in {name}: {listed(seen)}. A test needs two seeds in both groups."
        ]
    sentences = []
    for group in others:
        difference = group.differences.get(figure.name)
        if difference is None:
            sentences.append(f"{group.label}: {name} is not known for a seed that {_name(base)} has too.")
            continue
        ends = interval_text(figure.name, difference)
        extras = [ends and f"95 % CI {ends}", difference.pairs and counted(difference.pairs, "paired seed")]
        amount = f"{difference_text(figure.name, difference)} in {name} ({', '.join(filter(None, extras))})"
        sentences.append(f"{group.label}: {amount}: {_verdict_text(difference)}.")
    return sentences


def _verdict_text(difference: Difference) -> str:
    if difference.verdict == "not enough seeds":
        return "not enough seeds, a test needs two seeds in both groups"
    if difference.verdict == "not significant" and difference.seeds_needed:
        needed = counted(difference.seeds_needed, "seed")
        return f"not significant; about {needed} would show a difference of this size with 80 % power"
    return difference.verdict


def _cost(base: Group, others: list[Group], figure: Figure) -> str:
    """Return a sentence with the verdicts of all groups in one cost figure."""
    found = _by_verdict(others, figure)
    name = plain_title(figure.title)
    if len(found["not significant"]) == len(others):
        return f"No group differs significantly from {_name(base)} in {name}."
    parts = []
    for verdict in VERDICTS:
        labels = [g.label for g in found[verdict]]
        if verdict in VERDICTS[:2]:
            labels = [f"{g.label} ({difference_text(figure.name, g.differences[figure.name])})" for g in found[verdict]]
        parts += [f"{verdict}: {listed(labels)}"] if labels else []
    return f"{name[:1].upper()}{name[1:]}, compared with {_name(base)}: {'; '.join(parts)}."


def _by_verdict(groups: list[Group], figure: Figure) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {verdict: [] for verdict in VERDICTS}
    for group in groups:
        if figure.name in group.differences:
            found[group.differences[figure.name].verdict].append(group)
    return found


def _name(group: Group) -> str:
    return "full fine-tuning" if group.label == "full" else group.label


def _names(groups: list[Group]) -> str:
    return listed([_name(group) for group in groups]) if len(groups) <= NAMED else f"{len(groups)} groups"


def _pairs(groups: list[Group], figure: Figure) -> str:
    counts = sorted({group.differences[figure.name].pairs for group in groups})
    return counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
