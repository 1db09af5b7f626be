"""The data of a comparison as the report shows it: rows, classes, lengths and an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litpeft.analysis.comparison import Comparison

SPLITS = {"train": "training", "val": "validation", "test": "test"}
MOST = 12  # classes that are named
LONGEST = 600  # characters of the example


def data_facts(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the name, facts (name, text) and example [(text, whether it has loss)] of each data set, in order."""
    found: dict[str, dict[str, Any]] = {}
    runs = [run for group in comparison.groups for run in group.runs]
    for run in (part for whole in runs for part in whole.parts or (whole,)):
        summary = run.record.get("data_summary")
        if isinstance(summary, dict):
            facts = _facts(summary)
            name = str(run.record.get("data") or "data").rpartition(".")[2]
            # several tasks, or an axis of the data: one entry for each that differs
            found.setdefault(f"{name} {facts}", {"name": name, "facts": facts, "example": _example(summary)})
    return list(found.values())


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if counts := _by_split(summary, "rows", int):
        facts.append(("rows", ", ".join(f"{count:,} {split}" for split, count in counts.items())))
    if isinstance(reason := summary.get("val_cut_from_train"), str):
        facts.append(("validation rows", reason))
    by_class = _by_split(summary, "classes", dict)
    for split, classes in by_class.items():
        shown = [f"{name} {count:,}" for name, count in list(classes.items())[:MOST] if isinstance(count, int)]
        more = f" and {len(classes) - MOST} more" if len(classes) > MOST else ""
        facts.append((f"{split} rows of each class", f"{', '.join(shown)}{more}"))
    if not by_class and isinstance(names := summary.get("label_names"), list):
        facts.append(("targets", ", ".join(map(str, names[:MOST]))))
    for split, lengths in _by_split(summary, "tokens_per_row", dict).items():
        known = [f"{name} {size:,g}" for name, size in lengths.items() if isinstance(size, (int, float))]
        facts.append((f"tokens of a {split} row", ", ".join(known)))
    for split, count in _by_split(summary, "truncated_rows", int).items():
        if count:
            facts.append((f"truncated {split} rows", f"{count:,}"))
    return facts


def _by_split(summary: Mapping[str, Any], name: str, kind: type) -> dict[str, Any]:
    """Return {split: value} of the values of a kind."""
    found = summary.get(name)
    found = found if isinstance(found, dict) else {}
    return {SPLITS.get(split, str(split)): value for split, value in found.items() if isinstance(value, kind) and value}


def _example(summary: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the parts of an example, cut at the end."""
    found, left = [], LONGEST
    for part in summary.get("example") or ():
        if isinstance(part, dict) and isinstance(part.get("text"), str) and left > 0:
            found.append((part["text"][:left], bool(part.get("has_loss"))))
            left -= len(part["text"])
    return found
