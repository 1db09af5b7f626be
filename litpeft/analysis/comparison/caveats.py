"""What makes a comparison weaker than it looks, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from litpeft.analysis.comparison.figures import TARGET, value
from litpeft.analysis.comparison.results import Figure, Group, Run

MACHINE = ("processor", "cpu_count", "threads", "device", "cuda")  # what speed and peaks of memory depend on
LISTED = 4  # of several, named; the others are counted


def cautions(groups: Sequence[Group], baseline: Group | None, figures: Sequence[Figure]) -> list[str]:
    """Sentences about runs that ended early, seeds, figures that are not known, and surroundings that differ."""
    runs = [run for group in groups for run in group.runs]
    return [
        *(unfinished(run, group.label) for group in groups for run in group.failed),
        *_seeds(groups, baseline),
        *(sentence for figure in figures for sentence in _unknown(groups, figure)),
        *_machines(runs),
        *_versions(runs),
    ]


def unfinished(run: Run, label: str | None) -> str:
    """Of a run that did not end well, with the sentence that it ended with."""
    whose = f"{label}, seed {run.seed}" if label and run.seed is not None else label or str(run.folder)
    error = " ".join(str(run.record.get("error") or "").split())
    told = f": {error.rstrip('.')}" if error else ""
    status = run.record.get("status") or "interrupted"
    if status == "interrupted" and not error:  # nothing was left to say, or there was no time to say it
        status = "interrupted or still running"
    return f"Left out, {status}: {whose}{told}."


def _seeds(groups: Sequence[Group], baseline: Group | None) -> list[str]:
    if baseline is None:
        return []
    said = []
    single = [group.label for group in groups if len(group.runs) == 1]
    if single:
        said.append(f"One seed only: {_list(single)}. Chance in training cannot be told from the method.")
    if not baseline.runs:
        return [*said, f"The baseline, {baseline.label}, has no finished run: there are no differences to tell."]
    theirs = {run.seed for run in baseline.runs}
    for group in groups:
        own = {run.seed for run in group.runs}
        if own and own != theirs:
            kept = f"tested over {len(own & theirs)}" if own & theirs else "nothing to test over"
            said.append(
                f"The seeds of {group.label} ({_list(sorted(map(str, own)))}) are not those of {baseline.label} "
                f"({_list(sorted(map(str, theirs)))}): {kept} that both have."
            )
    return said


def _unknown(groups: Sequence[Group], figure: Figure) -> list[str]:
    """Groups in which some run lacks a figure; one that no run of any group has was not asked for."""
    lacking = {
        group.label: sum(value(run.record, figure.name) is None for run in group.runs) for group in groups if group.runs
    }
    told = [f"{label} ({count} of {len(_of(groups, label).runs)})" for label, count in lacking.items() if count]
    if not told:
        return []
    if match := TARGET.fullmatch(figure.name):
        return [
            f"Never met {match['metric']} {match['value']}: {_list(told)}. The time of the others is no mean over all: "
            "the slowest are missing from it."
        ]
    return [f"{figure.name} is not known of {_list(told)}."]


def _machines(runs: Sequence[Run]) -> list[str]:
    machines = [run.record.get("machine") or {} for run in runs]
    differing = [name for name in MACHINE if len({str(machine.get(name)) for machine in machines}) > 1]
    kinds = _kinds(", ".join(f"{name} {machine.get(name)}" for name in differing) for machine in machines)
    if len(kinds) < 2:
        return []
    return [f"{len(kinds)} kinds of machine: speed and peaks of memory are not comparable ({_list(kinds, '; ')})."]


def _versions(runs: Sequence[Run]) -> list[str]:
    said = []
    packages = [run.record.get("packages") or {} for run in runs]
    names = sorted(set().union(*packages)) if packages else []
    versions = {name: _kinds(told.get(name) for told in packages) for name in names}
    if mixed := [f"{name} {' and '.join(found)}" for name, found in versions.items() if len(found) > 1]:
        said.append(f"Versions differ: {_list(mixed)}.")
    commits = _kinds((run.record.get("git") or {}).get("commit") for run in runs)
    if len(commits) > 1:
        said.append(f"{len(commits)} commits of the code: {_list([commit[:10] for commit in commits])}.")
    changed = sum(bool((run.record.get("git") or {}).get("dirty")) for run in runs)
    if changed:
        said.append(f"{changed} of {len(runs)} runs were made with changes that no commit holds.")
    return said


def _kinds(found: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys("unknown" if item is None else str(item) for item in found))


def _of(groups: Sequence[Group], label: str) -> Group:
    return next(group for group in groups if group.label == label)


def _list(items: Sequence[str], between: str = ", ") -> str:
    rest = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return between.join(items[:LISTED]) + rest
