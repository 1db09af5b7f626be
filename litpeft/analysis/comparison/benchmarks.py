"""Benchmark scores as figures of a comparison.

`BENCHMARK_METRIC` is the score of the selected checkpoint, `BENCHMARK_METRIC_before` the score before training, and
`BENCHMARK_METRIC_change` the difference of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.results import Figure, Run
from litpeft.errors import UserError
from litpeft.runs.benchmark_results import final_evaluation, scores
from litpeft.runs.record_schema import ITEMS, schema_error
from litpeft.runs.safe_read import read_json_file

BEFORE, CHANGE = "_before", "_change"


def all_figures(record: dict[str, Any]) -> dict[str, float]:
    """Return the scores in a record by figure name; before and change only for benchmarks with the same items."""
    last = final_evaluation(record)
    if last is None:
        return {}
    found, first = scores(last), record["benchmarks"][0]
    if first["step"] != 0 or last["step"] == 0:
        return found
    prints = {name: result["fingerprint"] for name, result in first["results"].items()}
    same = [name for name, result in last["results"].items() if (name, result["fingerprint"]) in prints.items()]
    before = scores({"results": {name: first["results"][name] for name in same}})
    changes = {figure + CHANGE: found[figure] - score for figure, score in before.items() if figure in found}
    return found | {figure + BEFORE: score for figure, score in before.items()} | changes


def columns(runs: Iterable[Run]) -> list[str]:
    """Return the figures to show by default: a group of tasks without its single tasks."""
    found: dict[str, None] = {}
    for run in runs:
        results = (final_evaluation(run.record) or {"results": {}})["results"]
        in_groups = {task for result in results.values() for task in result["tasks"]}
        found |= {
            f"{name}_{metric}": None
            for name, result in results.items()
            if name not in in_groups
            for metric in result["scores"]
        }
    return list(found)


def result_of(record: dict[str, Any], figure: str) -> dict[str, Any] | None:
    """Return the result of the benchmark that a figure belongs to, or None."""
    plain = figure.removesuffix(BEFORE).removesuffix(CHANGE)
    results = (final_evaluation(record) or {"results": {}})["results"]
    named = ((name, result) for name, result in results.items() if plain.startswith(f"{name}_"))
    return next((result for name, result in named if plain.removeprefix(f"{name}_") in result["scores"]), None)


def items(result: dict[str, Any], figure: str) -> int | None:
    """Return the number of items of a benchmark's result over which a figure is a mean; None if unknown."""
    plain = figure.removesuffix(BEFORE).removesuffix(CHANGE)
    some = (number for metric, number in (result.get("items_of") or {}).items() if plain.endswith(f"_{metric}"))
    return next(some, result["items"])


def comparable_figures(
    runs: Sequence[Run], figures: Sequence[Figure], requested: bool
) -> tuple[list[Figure], list[str]]:
    """Return the figures whose benchmark had the same items in all runs, and a warning for each other figure.

    Raises:
        UserError: the user requested the figures, and two runs have different items.
    """
    comparable, warnings = [], []
    runs = [run for run in runs if run.record.get("benchmarks")]
    for figure in figures:
        prints: dict[str, Run] = {}
        for run in runs:
            if (result := result_of(run.record, figure.name)) is not None:
                prints.setdefault(str(result["fingerprint"]), run)
        if len(prints) < 2:
            comparable.append(figure)
            continue
        first, second, *_ = prints.values()
        reason = f"{first.folder} and {second.folder} used different items (limit, num_fewshot or files differ)"
        if requested:
            raise UserError(f"--figures {figure.name}: {reason}; evaluate them with the same options.")
        warnings.append(f"{figure.name} is left out: {reason}; evaluate them with the same options.")
    return comparable, warnings


def item_scores(run: Run, figure: str) -> tuple[str, list[float]] | None:
    """Return (fingerprint of the items, score of each item); None if the run did not keep the item scores.

    Raises:
        UserError: the file of item scores cannot be read.
    """
    result, last = result_of(run.record, figure), final_evaluation(run.record)
    path = run.folder / "benchmark_items" / f"step-{last['step']:06d}.json" if last else None
    if result is None or figure.endswith((BEFORE, CHANGE)) or not path.is_file():
        return None
    name = next(name for name, each in last["results"].items() if each is result)
    saved = _read_items(path, path.stat().st_mtime_ns).get(name, {})
    values = saved.get(figure.removeprefix(f"{name}_"))
    known = result["fingerprint"] is not None and saved.get("fingerprint") == result["fingerprint"]
    return (saved["fingerprint"], values) if values and known else None


@cache
def _read_items(path: Path, modified: int) -> dict[str, Any]:
    """Read a file of item scores; the modification time is part of the cache key."""
    saved = read_json_file(path)
    if error := schema_error(saved, ITEMS):
        raise UserError(f"{path} is not a valid file of benchmark item scores: {error}.")
    return saved or {}
