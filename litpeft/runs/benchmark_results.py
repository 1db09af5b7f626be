"""Read benchmark results from a run record: the final evaluation, its scores, and its table rows."""

from __future__ import annotations

from typing import Any


def final_evaluation(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the evaluation of the selected checkpoint, or the latest evaluation while there is no checkpoint."""
    found, checkpoint = record.get("benchmarks") or [], record.get("checkpoint")
    if checkpoint:
        found = [evaluation for evaluation in found if checkpoint.endswith(f"step-{evaluation['step']:06d}")]
    return found[-1] if found else None


def scores(evaluation: dict[str, Any]) -> dict[str, float]:
    """Return the scores of one evaluation, by BENCHMARK_METRIC."""
    return {
        f"{name}_{metric}": score
        for name, result in evaluation["results"].items()
        for metric, score in result["scores"].items()
        if score is not None
    }


def benchmark_rows(evaluation: dict[str, Any], before: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """Return (benchmark metric, score ± standard error) rows, and skipped benchmarks.

    A score on the same items before training stands beside the score.
    """
    rows = []
    for name, result in evaluation["results"].items():
        first = (before or {"results": {}})["results"].get(name, {})
        same = first.get("fingerprint") == result.get("fingerprint")
        for metric, score in result["scores"].items():
            error = result["standard_errors"].get(metric)
            text = "undefined" if score is None else f"{score:.4f}" + ("" if error is None else f" ± {error:.4f}")
            earlier = first.get("scores", {}).get(metric) if same else None
            text += "" if earlier is None else f" (before training {earlier:.4f})"
            rows.append((f"{name.removeprefix('litpeft_')} {metric}".replace("_", " "), text))
    skipped = evaluation["skipped"].items()
    return rows + [(name.removeprefix("litpeft_").replace("_", " "), f"skipped: {reason}") for name, reason in skipped]
