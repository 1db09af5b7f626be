"""Benchmark results in a run record: which evaluation counts, its scores, and its rows for a table."""

from __future__ import annotations

from typing import Any


def final_evaluation(record: dict[str, Any]) -> dict[str, Any] | None:
    """The evaluation of the weights that a run stands for: its checkpoint's, the last ones before there is one."""
    found, checkpoint = record.get("benchmarks") or [], record.get("checkpoint")
    if checkpoint:
        found = [evaluation for evaluation in found if checkpoint.endswith(f"step-{evaluation['step']:06d}")]
    return found[-1] if found else None


def scores(evaluation: dict[str, Any]) -> dict[str, float]:
    """Figure -> score of one evaluation."""
    return {
        f"{name}_{metric}": score
        for name, result in evaluation["results"].items()
        for metric, score in result["scores"].items()
        if score is not None
    }


def benchmark_rows(evaluation: dict[str, Any], before: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """Scores and their standard errors, with those of another evaluation beside them, and what was skipped."""
    rows = []
    for name, result in evaluation["results"].items():
        for metric, score in result["scores"].items():
            error = result["standard_errors"].get(metric)
            told = "no number" if score is None else f"{score:.4f}" + ("" if error is None else f" ± {error:.4f}")
            earlier = (before or {"results": {}})["results"].get(name, {}).get("scores", {}).get(metric)
            told += "" if earlier is None else f" (before training {earlier:.4f})"
            rows.append((f"{name.removeprefix('litpeft_')} {metric}".replace("_", " "), told))
    skipped = evaluation["skipped"].items()
    return rows + [(name.removeprefix("litpeft_").replace("_", " "), f"none: {reason}") for name, reason in skipped]
