"""What classifiers confuse: the confusion matrix of each group, and its most confident wrong predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litpeft.analysis.comparison import Comparison, Group, Run
from litpeft.errors import UserError
from litpeft.runs.record import path_in_run_folder
from litpeft.runs.record_schema import VAL_EXAMPLES, schema_error
from litpeft.runs.safe_read import read_json_file

MOST_CLASSES = 12  # larger matrices do not fit; the files in the run folders have them
MOST_GROUPS = 12
MOST_WRONG = 5


def mistakes(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """Return for each group with such files the classes, the matrix summed over seeds, and wrong predictions.

    A matrix has a row per class of the label and a column per predicted class. The second value are sentences about
    what is left out: files that cannot be read, matrices that are too large, and groups after the twelfth.
    """
    found, notes = [], list[str]()
    for number, group in enumerate(comparison.groups):
        if len(found) == MOST_GROUPS:
            notes.append(f"Groups after the first {MOST_GROUPS} are not shown; their run folders have the files.")
            break
        matrix, wrong = _matrix(group, notes), _wrong(group, notes)
        if matrix or wrong:
            names, rows = matrix or ([], [])
            found.append({"group": number, "label": group.label, "names": names, "matrix": rows, "wrong": wrong})
    return found, notes


def _matrix(group: Group, notes: list[str]) -> tuple[list[str], list[list[int]]] | None:
    """Return the class names and the sum of the matrices of the runs; None without one, or with too many classes."""
    names: list[str] | None = None
    total: list[list[int]] = []
    for run in group.runs:
        content = _read(run, "confusion_matrix", notes)
        if content is None:
            continue
        if not _is_matrix(content):
            notes.append(_unreadable(run, "confusion_matrix"))
        elif len(content["label_names"]) > MOST_CLASSES:
            files = "the run folders have it as confusion_matrix.json."
            notes.append(f"The matrix of {group.label} has {len(content['label_names'])} classes; {files}")
            return None
        elif names is None:
            names, total = content["label_names"], content["rows"]
        elif names == content["label_names"]:
            total = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(total, content["rows"], strict=True)]
        else:
            notes.append(f"The matrix of {group.label} leaves out {run.folder}, which has other classes.")
    return (names, total) if names else None


def _is_matrix(content: dict[str, Any]) -> bool:
    names, rows = content.get("label_names"), content.get("rows")
    if not isinstance(names, list) or not isinstance(rows, list) or len(rows) != len(names):
        return False
    return all(isinstance(row, list) and [type(count) for count in row] == [int] * len(names) for row in rows)


def _wrong(group: Group, notes: list[str]) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest probability over the runs, with their seeds."""
    every = []
    for run in group.runs:
        content = _read(run, "val_examples", notes)
        if content is None:
            continue
        if schema_error(content, VAL_EXAMPLES):
            notes.append(_unreadable(run, "val_examples"))
        else:
            every += [each | {"seed": run.seed} for each in content.get("wrong") or () if _is_wrong(each)]
    by_row: dict[Any, dict[str, Any]] = {}
    for each in sorted(every, key=lambda each: -each["probability"]):
        by_row.setdefault(each.get("row"), each | {"seeds": []})["seeds"].append(each["seed"])
    return list(by_row.values())[:MOST_WRONG]


def _is_wrong(each: dict[str, Any]) -> bool:
    return isinstance(each.get("probability"), float) and all(key in each for key in ("text", "label", "prediction"))


def _unreadable(run: Run, field: str) -> str:
    return f"{Path(run.folder) / run.record[field]} cannot be read and is left out."


def _read(run: Run, field: str, notes: list[str]) -> dict[str, Any] | None:
    """Return the content of a file that the record names; None if there is none, or with a note if it is unreadable."""
    name = run.record.get(field)
    if not name or run.parts:
        return None
    try:
        content = read_json_file(path_in_run_folder(Path(run.folder), name))
    except (UserError, OSError):
        content = None
    if not isinstance(content, dict):
        notes.append(_unreadable(run, field))
        return None
    return content
