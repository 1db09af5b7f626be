"""From paths to runs: the records below them, each with its values on the axes and the label that they make."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.configs import ABSENT, check_axes, short, shown, value_of
from litpeft.analysis.comparison.number_format import UNKNOWN
from litpeft.analysis.comparison.results import Run
from litpeft.analysis.comparison.sweep_folder import Sweep
from litpeft.errors import UserError
from litpeft.runs.record import FILE_NAME, read_record

STRATEGIES = ("none", "frozen", "lora", "dora", "qlora-nf4", "qlora-fp4", "qdora-nf4")  # in the order of tables
SPEAKS_FOR_ITSELF = ("adapter", "data", "model_name", "optimizer", "scheduler", "task", "run_name", "experiment")
WITH_THE_OPTIMIZER = {"optimizer", "scheduler", "effective_batch_size"}  # fields that are null until there is one
CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.(?P<name>[A-Z]\w*)")


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs below these folders, by path; one that lies below two of them counts once.

    Raises:
        UserError: a path is no folder, holds no run, or a record cannot be read.
    """
    folders: dict[str, Path] = {}
    for path in map(Path, paths):
        path = path.parent if path.name == FILE_NAME else path
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give run folders, or folders that hold some.")
        found = _below(path)
        if not found:
            raise UserError(f"{path}: no {FILE_NAME} in it or below it; give run folders, or folders that hold some.")
        folders |= {os.path.realpath(folder): folder for folder in found}
    return [Run(folder, read_record(folder), {}) for folder in folders.values()]


def place_by_axes(runs: Sequence[Run], axes: Sequence[str]) -> tuple[dict[str, list[Run]], list[Run]]:
    """Label -> runs, in an order that readers expect, and the runs that ended before their values were known.

    Args:
        runs: all of them; their `axes` are filled in.
        axes: record fields or dotted config keys.

    Raises:
        UserError: no run knows an axis.
    """
    check_axes(axes, runs)
    values = {id(run): [value_of(run, axis) for axis in axes] for run in runs}
    names = [_names([values[id(run)][place] for run in runs]) for place in range(len(axes))]
    own = {key: [name[_key(item)] for name, item in zip(names, row, strict=True)] for key, row in values.items()}
    groups: dict[str, list[Run]] = {}
    lost = []
    for run in sorted(runs, key=lambda run: list(map(_order, values[id(run)], own[id(run)]))):
        unbegun = run.record.get("optimizer") is None and WITH_THE_OPTIMIZER.intersection(axes)
        if run.record.get("status") != "ok" and (unbegun or not run.record.get("config")):
            lost.append(run)
            continue
        run.axes = {short(axis): item for axis, item in zip(axes, own[id(run)], strict=True)}
        groups.setdefault(_label(run.axes), []).append(run)
    return groups, lost


def place_by_sweep(runs: Sequence[Run], sweep: Sweep) -> tuple[dict[str, list[Run]], list[Run]]:
    """Label -> runs, in the order of the sweep, and the runs that are no trial's."""
    groups: dict[str, list[Run]] = {trial.label: [] for trial in sweep.trials}
    trials = {trial.name: trial for trial in sweep.trials}
    strangers = []
    for run in runs:
        trial = trials.get(Path(os.path.relpath(run.folder.parent, sweep.folder)).as_posix())
        if trial is None:
            strangers.append(run)
        else:
            run.axes = dict(trial.axes)
            groups[trial.label].append(run)
    return groups, strangers


def _below(path: Path) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(path):
        if FILE_NAME in files:
            found.append(Path(folder))
            subfolders.clear()  # what lies in a run folder is that run's
        subfolders.sort()
    return found


def _names(values: Iterable[Any]) -> dict[str, str]:
    """Value -> as shown. A class is shown without its module, unless two modules have one of that name."""
    long = {_key(item): UNKNOWN if item is ABSENT else shown(item) for item in values}
    last = {key: match["name"] if (match := CLASS_PATH.fullmatch(text)) else text for key, text in long.items()}
    taken = list(last.values())
    return {key: last[key] if taken.count(last[key]) == 1 else text for key, text in long.items()}


def _key(item: Any) -> str:
    return f"{type(item).__name__}:{item}"


def _label(axes: Mapping[str, str]) -> str:
    """`lora, lr=0.003`: what names itself stands alone."""
    parts = [item if axis in SPEAKS_FOR_ITSELF else f"{axis.rpartition('.')[2]}={item}" for axis, item in axes.items()]
    return ", ".join(parts)


def _order(item: Any, name: str) -> tuple[int, float, str]:
    """Strategies as in all tables, numbers by size, all else by name."""
    if isinstance(item, str) and item in STRATEGIES:
        return 0, STRATEGIES.index(item), ""
    return (1, item, "") if isinstance(item, (int, float)) else (2, 0, name)
