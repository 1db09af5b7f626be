"""Scores of benchmarks as figures: `BENCHMARK_METRIC` of the weights that a run stands for, as their curves are called.

`BENCHMARK_METRIC_before` is the score before training, `BENCHMARK_METRIC_change` what training has added to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.results import Figure, Run
from litpeft.errors import UserError
from litpeft.runs.benchmark_results import final_evaluation, scores
from litpeft.runs.record_schema import ITEMS, misfit
from litpeft.runs.safe_read import read_json_file

BEFORE, CHANGE = "_before", "_change"


def all_figures(record: dict[str, Any]) -> dict[str, float]:
    """Figure -> what the record says. Before training is told where the same items were asked then."""
    last = final_evaluation(record)
    if last is None:
        return {}
    found, first = scores(last), record["benchmarks"][0]
    if first["step"] != 0 or last["step"] == 0:
        return found
    prints = {name: result["fingerprint"] for name, result in first["results"].items()}
    alike = [name for name, told in last["results"].items() if name in prints and prints[name] == told["fingerprint"]]
    before = scores({"results": {name: first["results"][name] for name in alike}})
    changes = {figure + CHANGE: found[figure] - score for figure, score in before.items() if figure in found}
    return found | {figure + BEFORE: score for figure, score in before.items()} | changes


def columns(runs: Iterable[Run]) -> list[str]:
    """The figures to show without being asked for: of groups of tasks, the group's alone."""
    found: dict[str, None] = {}
    for run in runs:
        results = (final_evaluation(run.record) or {"results": {}})["results"]
        within = {task for result in results.values() for task in result["tasks"]}
        found |= {
            f"{name}_{metric}": None
            for name, result in results.items()
            if name not in within
            for metric in result["scores"]
        }
    return list(found)


def result_of(record: dict[str, Any], figure: str) -> dict[str, Any] | None:
    """What the record tells of the benchmark that a figure is of."""
    plain = figure.removesuffix(BEFORE).removesuffix(CHANGE)
    results = (final_evaluation(record) or {"results": {}})["results"]
    named = ((name, result) for name, result in results.items() if plain.startswith(f"{name}_"))
    return next((result for name, result in named if plain.removeprefix(f"{name}_") in result["scores"]), None)


def asked_alike(runs: Sequence[Run], figures: Sequence[Figure], asked: bool) -> tuple[list[Figure], list[str]]:
    """The figures whose runs were all asked the same items, and a warning for each of the others.

    Args:
        runs: those that are held against each other.
        figures: all of them.
        asked: whether they were asked for by name; then a difference is an error.

    Raises:
        UserError: names two runs that were asked other items, and what to do.
    """
    kept, warnings = [], []
    for figure in figures:
        prints: dict[str, Run] = {}
        for run in runs:
            if (result := result_of(run.record, figure.name)) is not None:
                prints.setdefault(str(result["fingerprint"]), run)
        if len(prints) < 2:
            kept.append(figure)
            continue
        first, second, *_ = prints.values()
        told = f"{first.folder} and {second.folder} were asked other items (limit, num_fewshot or files differ)"
        if asked:
            raise UserError(f"--figures {figure.name}: {told}; litpeft evaluate them alike.")
        warnings.append(f"{figure.name} is left out: {told}; litpeft evaluate them alike.")
    return kept, warnings


def items(run: Run, figure: str) -> tuple[str, list[float]] | None:
    """The fingerprint of the items, and what each gave; None where that was not kept.

    Raises:
        UserError: the file cannot be read.
    """
    result, last = result_of(run.record, figure), final_evaluation(run.record)
    path = run.folder / "benchmark_items" / f"step-{last['step']:06d}.json" if last else None
    if result is None or figure.endswith((BEFORE, CHANGE)) or not path.is_file():
        return None
    name = next(name for name, each in last["results"].items() if each is result)
    kept = _kept(path, path.stat().st_mtime_ns).get(name, {})
    values = kept.get(figure.removeprefix(f"{name}_"))
    known = result["fingerprint"] is not None and kept.get("fingerprint") == result["fingerprint"]
    return (kept["fingerprint"], values) if values and known else None


@cache
def _kept(path: Path, written: int) -> dict[str, Any]:
    """What a file says that was written then."""
    kept = read_json_file(path)
    if told := misfit(kept, ITEMS):
        raise UserError(f"{path} does not hold what items of benchmarks gave: {told}.")
    return kept or {}
