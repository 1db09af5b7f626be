"""What the verdicts come to, in sentences: what is better, what is within noise, and what would be needed to tell."""

from __future__ import annotations

from litpeft.analysis.comparison import Comparison, Difference, Figure, Group
from litpeft.analysis.report.sentences import counted, difference_interval, difference_told, listed, plain_title

COSTS = 3  # figures besides the first that the answer goes into; the table has all
NAMED = 6  # groups of one verdict that are named; of more, how many
VERDICTS = "better", "worse", "within noise", "cannot tell"


def answer(comparison: Comparison) -> list[str]:
    """The answer in one sentence, then what it rests on. They say no more than the verdicts do."""
    base = next((group for group in comparison.groups if group.label == comparison.baseline), None)
    others = [group for group in comparison.groups if group is not base and group.runs]
    if base is None:
        return ["There is one group alone, so nothing is held against anything: the figures stand for themselves."]
    tested = [f for f in comparison.figures if f.better and any(f.name in group.differences for group in others)]
    if not tested:
        return [f"Nothing could be tested against {base.label}: no other group has figures that it has too."]
    first, *rest = sorted(tested, key=lambda figure: figure.kind != "quality")
    costs = [figure for figure in rest if figure.kind in ("memory", "speed")][:COSTS]
    warned = "No clean answer, for the groups differ in more than the named axes. " if comparison.confounded else ""
    return [
        warned + _headline(base, others, first, costs),
        *_details(base, others, first),
        *(_cost(base, others, figure) for figure in costs if _by_verdict(others, figure)["cannot tell"] != others),
    ]


def _headline(base: Group, others: list[Group], quality: Figure, costs: list[Figure]) -> str:
    """In quality all verdicts; of costs those that are known to differ."""
    by_verdict = _by_verdict(others, quality)
    name = plain_title(quality.title)
    parts = [
        f"{_groups(by_verdict[word])} {_are(by_verdict[word])} {word} than {base.label}"
        for word in VERDICTS[:2]
        if by_verdict[word]
    ]
    if noise := by_verdict["within noise"]:
        who = "all others are" if len(noise) == len(others) > 1 else f"{_groups(noise)} {_are(noise)}"
        parts.append(f"{who} within noise of {base.label} with {_pairs(noise, quality)}")
    if unknown := by_verdict["cannot tell"]:
        parts.append(f"nothing can be told of {_groups(unknown)}")
    sentence = f"In {name}, {'; '.join(parts)}."
    return " ".join(filter(None, [sentence, *(_sums(others, costs, verdict) for verdict in VERDICTS[:2])]))


def _sums(others: list[Group], costs: list[Figure], verdict: str) -> str:
    """Which groups are better, or worse, in which costs; nothing where none is."""
    by_groups: dict[str, list[str]] = {}
    for figure in costs:
        if groups := _by_verdict(others, figure)[verdict]:
            by_groups.setdefault(_groups(groups), []).append(plain_title(figure.title))
    told = [f"{groups} in {listed(titles)}" for groups, titles in by_groups.items()]
    return f"{verdict.capitalize()} in cost: {'; '.join(told)}." if told else ""


def _details(base: Group, others: list[Group], figure: Figure) -> list[str]:
    """A sentence for each group, with the numbers."""
    name, sentences = plain_title(figure.title), []
    found = _by_verdict(others, figure)
    if len(found["cannot tell"]) == len(others):
        seen = [f"{group.label} {difference_told(figure.name, group.differences[figure.name])}" for group in others]
        return [f"Seen in {name}, against {base.label}: {listed(seen)}. A test needs two seeds that both groups have."]
    for group in others:
        difference = group.differences.get(figure.name)
        if difference is None:
            sentences.append(f"{group.label}: {name} is not known of both it and {base.label}.")
            continue
        ends = difference_interval(figure.name, difference)
        seeds = counted(difference.pairs, "paired seed") if difference.pairs else None
        words = [f"{difference_told(figure.name, difference)} in {name}", ends and f"95 % interval {ends}", seeds]
        told = f"{group.label}: {', '.join(filter(None, words))}: {_verdict_told(difference)}."
        sentences.append(told)
    return sentences


def _verdict_told(difference: Difference) -> str:
    if difference.verdict == "cannot tell":
        return "cannot tell; a test needs two seeds that both have"
    if difference.verdict == "within noise" and difference.seeds_needed:
        needed = counted(difference.seeds_needed, "seed")
        return f"within noise; about {needed} would show a difference of this size in four of five tries"
    return difference.verdict


def _cost(base: Group, others: list[Group], figure: Figure) -> str:
    """One sentence a figure."""
    found = _by_verdict(others, figure)
    name = plain_title(figure.title)
    if len(found["within noise"]) == len(others):
        return f"In {name}, all are within noise of {base.label}."
    parts = []
    for verdict in VERDICTS:
        told = [f"{g.label} ({difference_told(figure.name, g.differences[figure.name])})" for g in found[verdict]]
        told = told if verdict in VERDICTS[:2] else [g.label for g in found[verdict]]
        parts += [f"{verdict}: {listed(told)}"] if told else []
    return f"In {name}, against {base.label}: {'; '.join(parts)}."


def _by_verdict(groups: list[Group], figure: Figure) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {verdict: [] for verdict in VERDICTS}
    for group in groups:
        if figure.name in group.differences:
            found[group.differences[figure.name].verdict].append(group)
    return found


def _groups(groups: list[Group]) -> str:
    labels = [group.label for group in groups]
    return listed(labels) if len(labels) <= NAMED else f"{len(labels)} groups"


def _are(groups: list[Group]) -> str:
    return "is" if len(groups) == 1 else "are"


def _pairs(groups: list[Group], figure: Figure) -> str:
    counts = sorted({group.differences[figure.name].pairs for group in groups})
    if counts == [0]:
        return "the runs at hand"
    return counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
