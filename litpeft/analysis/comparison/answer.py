"""Answer the question of a comparison: verdicts in sentences, and a recommendation by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litpeft.analysis.comparison.figures import value
from litpeft.analysis.comparison.number_format import number
from litpeft.analysis.comparison.recommendation import recommendation
from litpeft.analysis.comparison.relative import ratio
from litpeft.analysis.comparison.results import Comparison, Difference, Figure, Group
from litpeft.analysis.comparison.sentences import (
    NAMED,
    counted,
    difference_text,
    interval_text,
    listed,
    margin_text,
    name_of,
    names_of,
    opening,
    plain_title,
    seed_counts,
    within_text,
)
from litpeft.analysis.comparison.training_length import still_falling

COSTS = 3  # memory and speed figures in the answer; the table has all
UNDECIDED = "not enough seeds", "not enough rows"


@dataclass(frozen=True)
class Answer:
    """What a comparison says: the verdicts, what to choose, and one sentence per group and cost."""

    headline: str
    recommendation: str
    details: Sequence[str] = ()

    @property
    def first(self) -> list[str]:
        """The headline, and the recommendation if there is one."""
        return [self.headline, *([self.recommendation] if self.recommendation else [])]


def answer(comparison: Comparison) -> Answer:
    """Return the answer of a comparison."""
    base = comparison.baseline_group
    others = [group for group in comparison.groups if group is not base and group.runs]
    if base is None:
        return Answer("There is only one group, so there is nothing to compare.", "")
    tested = [f for f in comparison.figures if f.better and any(f.name in group.differences for group in others)]
    if not tested:
        return Answer(f"Nothing could be tested: no other group has a figure in common with {name_of(base)}.", "")
    main, *rest = sorted(tested, key=lambda figure: figure.kind != "quality")
    qualities = [figure for figure in rest if figure.kind in ("quality", "benchmark")]
    costs = [figure for figure in rest if figure.kind in ("memory", "speed")][:COSTS]
    sentences = ["there is no clear answer: the groups differ in more than the axes."] if comparison.confounded else []
    undecided = [group for group in others if _verdict(group, main) in UNDECIDED]
    sentences += _alarms(base, undecided, main, qualities)
    sentences += [
        text
        for verdict in ("better", "worse", "equivalent")
        if (text := _decided(base, [g for g in others if _verdict(g, main) == verdict], main, verdict))
    ]
    sentences += [*_undecided(base, undecided, main), *_elsewhere(base, undecided, qualities, "better")]
    falling, runs = map(sum, zip(*still_falling(comparison.groups).values(), strict=True))
    if undecided and 2 * falling > runs:
        sentences.append(
            f"in {falling} of {runs} runs the validation loss was still falling at the end: train longer "
            "(trainer.max_epochs) before you add seeds."
        )
    rows = _rows(comparison, main)
    if rows:
        sentences[0] = f"on {counted(rows, 'validation row')}, {sentences[0]}"
    details = [text for group in others if (text := _detail(base, group, main))]
    details += [text for figure in costs if (text := _cost(base, others, figure))]
    return Answer(" ".join(map(opening, sentences)), recommendation(comparison, base, others, main), details)


def _verdict(group: Group, figure: Figure) -> str | None:
    found = group.differences.get(figure.name)
    return found.verdict if found else None


def _alarms(base: Group, undecided: Sequence[Group], main: Figure, qualities: Sequence[Figure]) -> list[str]:
    """Say what is known to be worse or better of groups that are undecided over seeds in the main figure."""
    sentences = _elsewhere(base, undecided, qualities, "worse")
    parts = []
    for verdict in ("worse", "better"):
        named = [g for g in undecided if (d := g.over_examples.get(main.name)) and d.verdict == verdict]
        if named:
            parts.append(f"{_amounts(named, main)} {'is' if len(named) == 1 else 'are'} {verdict}")
    if parts:
        sentences.append(
            f"of the trained models, {listed(parts)} than {name_of(base)} in {plain_title(main.title)}; "
            "another seed may reverse this."
        )
    return sentences


def _elsewhere(base: Group, groups: Sequence[Group], figures: Sequence[Figure], verdict: str) -> list[str]:
    """Say in which of these figures which of the groups have this verdict."""
    found = [(figure, [group for group in groups if _verdict(group, figure) == verdict]) for figure in figures]
    return [text for figure, named in found if (text := _decided(base, named, figure, verdict))]


def _amounts(groups: Sequence[Group], figure: Figure) -> str:
    """Return groups with their differences over rows; many are counted."""
    texts = [difference_text(figure.name, group.over_examples[figure.name]) for group in groups]
    if len(groups) <= NAMED:
        return listed([f"{name_of(group)} ({text})" for group, text in zip(groups, texts, strict=True)])
    means = [group.over_examples[figure.name].mean for group in groups]
    ends = sorted(range(len(groups)), key=lambda place: abs(means[place]))
    return f"{len(groups)} groups ({texts[ends[0]]} to {texts[ends[-1]]})"


def _decided(base: Group, groups: Sequence[Group], figure: Figure, verdict: str) -> str | None:
    """Say a verdict on groups: `lora is better than full fine-tuning in validation accuracy (+2.1 points)`."""
    if not groups:
        return None
    found = [group.differences[figure.name] for group in groups]
    verb = "is" if len(groups) == 1 else "are"
    title = plain_title(figure.title)
    if verdict == "equivalent":
        return f"{names_of(groups)} {verb} equivalent to {name_of(base)} in {title}, {within_text(figure, found[0])}."
    amount = f" ({difference_text(figure.name, found[0])})" if len(groups) == 1 else ""
    small = ", though by less than matters" if all(each.is_small for each in found) else ""
    return f"{names_of(groups)} {verb} {verdict} than {name_of(base)} in {title}{amount}{small}."


def _undecided(base: Group, groups: Sequence[Group], figure: Figure) -> list[str]:
    if not groups:
        return []
    pairs = [group.differences[figure.name].pairs for group in groups]
    verb = "is" if max(pairs) == 1 else "are"
    pair = f"{names_of(groups)} from {name_of(base)}"
    start = f"{seed_counts(pairs)} {verb} not enough to tell {pair} in {plain_title(figure.title)}"
    needed = [group.differences[figure.name].seeds_to_decide for group in groups]
    if any(group.differences[figure.name].test is None for group in groups):
        return [f"{start}; a test needs two seeds in both groups."]
    most = "more than 1,000" if None in needed else f"about {max(needed):,}"
    within = margin_text(figure, groups[0].differences[figure.name])
    what, they_are = ("a difference", "it is") if len(groups) == 1 else ("differences", "they are")
    or_small = f", or that {they_are} within {within}" if within else ""  # no margin: a share of a baseline of 0
    return [f"{start}; {most} would show {what} of this size{or_small}."]


def _detail(base: Group, group: Group, figure: Figure) -> str | None:
    """Return a sentence with the numbers of one group in the main figure."""
    found = group.differences.get(figure.name)
    if found is None:
        return f"{group.label}: {plain_title(figure.title)} is not known for a seed that {name_of(base)} has too."
    ends = interval_text(figure.name, found)
    extras = [ends and f"95 % CI {ends}", counted(found.pairs, "paired seed")]
    amount = f"{difference_text(figure.name, found)} in {plain_title(figure.title)} ({', '.join(filter(None, extras))})"
    return f"{group.label}: {amount}: {verdict_text(figure, found)}."


def verdict_text(figure: Figure, found: Difference) -> str:
    """Return the verdict with its margin or with the seeds that would decide."""
    if found.verdict == "equivalent":
        return f"equivalent {within_text(figure, found)}"
    if found.is_significant:
        return f"{found.verdict}, but {within_text(figure, found)}" if found.is_small else found.verdict
    if found.test is None:
        return "not enough seeds, a test needs two seeds in both groups"
    if found.seeds_needed is None and found.seeds_for_margin is None:
        return found.verdict
    observed = f"about {found.seeds_needed:,}" if found.seeds_needed else "more than 1,000"
    parts = [f"{observed} would show a difference of this size"]
    if found.margin:
        decide = f"about {found.seeds_for_margin:,}" if found.seeds_for_margin else "more than 1,000"
        parts.append(f"{decide} decide whether it exceeds {margin_text(figure, found)}")
    return f"{found.verdict}; {', '.join(parts)} (80 % power)"


def _cost(base: Group, others: Sequence[Group], figure: Figure) -> str | None:
    """Return a sentence with a cost relative to the baseline, which is 100 %: of the common seeds, as in the table."""
    decided = [(group, group.differences[figure.name]) for group in others if figure.name in group.differences]
    shown = [
        f"{group.label} {100 * relative.mean:.0f} %" + (" (not enough seeds)" if found.verdict in UNDECIDED else "")
        for group, found in decided
        if (relative := ratio(group, base, figure))
    ]
    title = plain_title(figure.title)
    return f"{title[:1].upper()}{title[1:]}, {name_of(base)} = 100 %: {listed(shown)}." if shown else None


def _rows(comparison: Comparison, figure: Figure) -> int | None:
    """Return the number of validation rows behind a validation figure; None if unknown or not the same in all runs."""
    if not figure.name.startswith("val_"):
        return None
    runs = [run for group in comparison.groups for run in group.runs if value(run.record, figure.name) is not None]
    counts = {number(((run.record.get("data_summary") or {}).get("rows") or {}).get("val")) for run in runs}
    count = counts.pop() if len(counts) == 1 else None
    return int(count) if count else None
