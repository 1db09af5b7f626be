"""Summarise a run record as the rows of a table."""

from __future__ import annotations

from typing import Any

from litpeft.runs.benchmark_results import benchmark_rows, final_evaluation
from litpeft.runs.strategy_names import shown_name


def summary(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the main figures of a run as (name, value with unit) pairs; unknown figures are left out."""
    trainable, total = record["trainable_params"], record["total_params"]
    rows = [
        ("status", record["status"]),
        ("adapter", record["adapter"] and shown_name(record["adapter"])),
        ("trainable params", f"{trainable:,} of {total:,} ({trainable / total:.2%})" if trainable and total else None),
        ("quantised", _quantised((record["adapter_summary"] or {}).get("quantised"))),
        ("model / adapter bytes", f"{_bytes(record['model_bytes'])} / {_bytes(record['adapter_bytes'])}"),
        ("peak GPU memory", _bytes(record["peak_allocated_bytes"])),
        ("peak host memory", _bytes(record["peak_rss_bytes"])),
        ("peak tensor memory", _bytes(record["peak_tensor_bytes"])),
        *((f"  {name.replace('_', ' ')}", _bytes(count)) for name, count in _largest_split(record)),
        (
            "steps",
            f"{record['steps']:,} in {record['train_seconds']:.1f} s"
            if record["steps"] and record["train_seconds"]
            else None,
        ),
        ("median step", _with_unit(record["step_seconds_p50"], ".3f", "s")),
        *(
            (f"  {part.replace('_', ' ')}", f"{seconds:.3f} s")
            for part, seconds in (record["step_split_seconds_p50"] or {}).items()
            if seconds is not None
        ),
        ("rows per second", _with_unit(record["train_samples_per_second"], ",.0f")),
        ("tokens per second", _with_unit(record["train_tokens_per_second"], ",.0f", "(padding not counted)")),
        ("model FLOP/s", _with_unit(record["model_flops_per_second"], ".3g", _share(record["flops_utilisation"]))),
        ("energy", _with_unit(record["energy_joules"], ",.0f", "J")),
        ("training loss", _with_unit(record["train_loss"], ".4f")),
        ("validation loss", _with_unit(record["val_loss"], ".4f")),
        ("validation accuracy", _with_unit(record["val_accuracy"], ".2%")),
        ("test accuracy", _with_unit(record["test_accuracy"], ".2%")),
        *other_metrics(record),
        *_benchmarks(record),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _quantised(counts: dict[str, int] | None) -> str | None:
    return counts and f"{counts['params']:,} params of {counts['layers']} layers, {_bytes(counts['bytes'])}"


def other_metrics(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the metrics of a record that have no field of their own as (name, value) pairs."""
    found = record.get("other_metrics") or {}
    long = {"val_": "validation ", "test_": "test "}
    rows = []
    for name, value in found.items():
        if value is not None:
            shown = next((long[part] + name.removeprefix(part) for part in long if name.startswith(part)), name)
            rows.append((shown.replace("_", " "), metric_text(name, value)))
    return rows


def metric_text(name: str, value: float) -> str:
    """Return a metric as text: accuracies and F1 scores as percentages, others with four decimal places or digits."""
    if name.endswith(("accuracy", "f1")):
        return f"{value:.2%}"
    return f"{value:.4g}" if 0 < abs(value) < 0.001 else f"{value:.4f}"


def _largest_split(record: dict[str, Any]) -> list[tuple[str, int]]:
    """Split the highest peak tensor memory of all phases by kind of tensor; empty kinds are left out."""
    phases = (record["memory_phases"] or {}).values()
    largest = max(phases, key=lambda phase: phase.get("peak_tensor_bytes") or 0, default={})
    return [(name, count) for name, count in (largest.get("tensor_bytes") or {}).items() if count]


def _benchmarks(record: dict[str, Any]) -> list[tuple[str, str]]:
    evaluation = final_evaluation(record)
    first = (record["benchmarks"] or [None])[0]
    return benchmark_rows(evaluation, first if first["step"] == 0 != evaluation["step"] else None) if evaluation else []


def _share(utilisation: float | None) -> str:
    return "" if utilisation is None else f"({utilisation:.0%} of the peak)"


def _with_unit(value: float | None, form: str, unit: str = "") -> str | None:
    return None if value is None else f"{value:{form}} {unit}".rstrip()


def _bytes(count: int | None) -> str | None:
    if count is None:
        return None
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}" if unit != "B" else f"{count} B"
        count /= 1024
    return None
