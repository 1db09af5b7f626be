"""Caveats of a comparison, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from litpeft.analysis.comparison.figures import TARGET, values_in
from litpeft.analysis.comparison.results import Figure, Group, Run, distinct_by
from litpeft.analysis.comparison.training_length import still_falling

MACHINE = ("processor", "cpu_count", "threads", "device", "cuda")  # fields that affect speed and peak memory


def caveats(
    groups: Sequence[Group], baseline: Group | None, figures: Sequence[Figure], is_untuned: bool = True
) -> list[str]:
    """Return sentences about unfinished runs, seeds, missing figures, and differences of machines and versions."""
    # where a run stands for those of several tasks, these
    measured = [part for group in groups for run in group.runs for part in run.parts or (run,)]
    return [
        *(describe_unfinished(run, group.label) for group in groups for run in group.failed),
        *_seeds(groups, baseline),
        *(sentence for figure in figures for sentence in _unknown(groups, figure)),
        *(_shared_rate(groups) if is_untuned else ()),
        *_short(groups),
        *_machines(measured),
        *_versions(measured),
    ]


def describe_unfinished(run: Run, label: str | None) -> str:
    """Describe a run that did not finish, with its error message."""
    name = f"{label}, seed {run.seed}" if label and run.seed is not None else label or str(run.folder)
    error = " ".join(str(run.record.get("error") or "").split())
    reason = f": {error.rstrip('.')}" if error else ""
    status = run.record.get("status") or "interrupted"
    if status == "interrupted" and not error:  # the run was killed, or has not ended yet
        status = "interrupted or still running"
    return f"Left out, {status}: {name}{reason}."


def _seeds(groups: Sequence[Group], baseline: Group | None) -> list[str]:
    if baseline is None:
        return []
    sentences = []
    single = [group.label for group in groups if len(group.runs) == 1]
    if single:
        sentences.append(f"One seed only: {shortlist(single)}. One seed cannot separate the method from chance.")
    if not baseline.runs:
        return [*sentences, f"The baseline, {baseline.label}, has no finished run: no differences are shown."]
    baseline_seeds = {run.seed for run in baseline.runs}
    other_seeds: dict[frozenset[int | None], list[str]] = {}
    for group in groups:
        seeds = frozenset(run.seed for run in group.runs)
        if seeds and seeds != baseline_seeds:
            other_seeds.setdefault(seeds, []).append(group.label)
    for seeds, labels in other_seeds.items():
        common = len(seeds & baseline_seeds)
        used = f"use the {common} common seed{'' if common == 1 else 's'}" if common else "need a common seed"
        verb = "has" if len(labels) == 1 else "have"
        sentences.append(
            f"{shortlist(labels)} {verb} seeds {shortlist(sorted(map(str, seeds)))}, the baseline {baseline.label} "
            f"{shortlist(sorted(map(str, baseline_seeds)))}: differences {used}."
        )
    return sentences


def _unknown(groups: Sequence[Group], figure: Figure) -> list[str]:
    """Name the groups in which some runs lack a figure."""
    missing = {group.label: (values_in(group, figure.name).count(None), len(group.runs)) for group in groups}
    named = [f"{label} ({count} of {runs} runs)" for label, (count, runs) in missing.items() if count]
    if not named:
        return []
    if match := TARGET.fullmatch(figure.name):
        runs = sum(len(group.runs) for group in groups)
        reached = sum(count for count, _ in missing.values()) < runs
        effect = " The mean time leaves them out, so it is too low." if reached else ""
        return [f"Never reached {match['metric']} {match['value']}: {shortlist(named)}.{effect}"]
    return [f"{figure.name} is missing for {shortlist(named)}."]


def _short(groups: Sequence[Group]) -> list[str]:
    counts = {label: falling for label, falling in still_falling(groups).items() if falling[0]}
    named = [f"{label} ({falling} of {runs} runs)" for label, (falling, runs) in counts.items()]
    if not named:
        return []
    return [
        f"The validation loss was still falling at the end: {shortlist(named)}. Longer training (trainer.max_epochs) "
        "may change the answer."
    ]


def _shared_rate(groups: Sequence[Group]) -> list[str]:
    """Warn where methods that need different learning rates all have the same one."""
    filled = [group for group in groups if group.runs]
    methods = {str(run.record.get("adapter")) for group in filled for run in group.runs}
    rates = {rate for each in _settings(filled) for rate in _rates(each)}
    if len(methods) < 2 or len(rates) != 1:
        return []
    return [
        f"All methods have the learning rate {rates.pop():g}, and each method has another best one: this compares them "
        "at this rate, not at their best; give each its own (litpeft find_lr, or tune: in an experiment)."
    ]


def own_rates(groups: Sequence[Group]) -> list[str]:
    """Say the learning rate of each group if the groups have different ones."""
    by_group = {
        group.label: sorted({rate for each in _settings([group]) for rate in _rates(each)})
        for group in groups
        if group.runs
    }
    single = {label: rates[0] for label, rates in by_group.items() if len(rates) == 1}
    if len(set(single.values())) < 2:
        return []
    by_rate = {rate: [label for label, other in single.items() if other == rate] for rate in single.values()}
    shown = "; ".join(f"{rate:g} ({shortlist(labels)})" for rate, labels in by_rate.items())
    return [f"The groups have learning rates of their own: {shown}."]


def _settings(groups: Sequence[Group]) -> list[Any]:
    """Return the different settings of optimizers."""
    runs = distinct_by((run for group in groups for run in group.runs), "optimizer_settings")
    return [run.record.get("optimizer_settings") for run in runs]


def _rates(settings: Sequence[Any] | None) -> list[float]:
    """Return the learning rates that the parameter groups of a run started with, from the settings in its record."""
    found = [each.get("initial_lr", each.get("lr")) for each in settings or () if isinstance(each, dict)]
    return [float(rate) for rate in found if isinstance(rate, (int, float))]


def _machines(runs: Sequence[Run]) -> list[str]:
    machines = [run.record.get("machine") or {} for run in distinct_by(runs, "machine")]
    differing = [name for name in MACHINE if len({str(machine.get(name)) for machine in machines}) > 1]
    kinds = _kinds(", ".join(f"{name} {machine.get(name)}" for name in differing) for machine in machines)
    if len(kinds) < 2:
        return []
    return [
        f"{len(kinds)} kinds of machine: speed and peak memory are not comparable ({shortlist(kinds, separator='; ')})."
    ]


def _versions(runs: Sequence[Run]) -> list[str]:
    sentences = []
    packages = [run.record.get("packages") or {} for run in distinct_by(runs, "packages")]
    names = sorted(set().union(*packages)) if packages else []
    versions = {name: _kinds(installed.get(name) for installed in packages) for name in names}
    if mixed := [f"{name} {' and '.join(found)}" for name, found in versions.items() if len(found) > 1]:
        sentences.append(f"Versions differ: {shortlist(mixed)}.")
    commits = _kinds((run.record.get("git") or {}).get("commit") for run in distinct_by(runs, "git"))
    if len(commits) > 1:
        sentences.append(
            f"Runs come from {len(commits)} commits of the code: {shortlist([commit[:10] for commit in commits])}."
        )
    changed = sum(bool((run.record.get("git") or {}).get("dirty")) for run in runs)
    if changed:
        sentences.append(f"{changed} of {len(runs)} runs were made with uncommitted changes.")
    return sentences


def _kinds(found: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys("unknown" if item is None else str(item) for item in found))


def shortlist(items: Sequence[str], limit: int = 4, separator: str = ", ") -> str:
    """Join the first items: `a, b, c, d and 3 more`."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + rest
