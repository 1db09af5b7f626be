"""Report which values of `tune` the trials of a sweep chose, and the results of all values tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from litpeft.analysis.comparison.caveats import shortlist
from litpeft.analysis.comparison.sweep_folder import Sweep, Tuned

FURTHER = {"lowest": "lower", "highest": "higher"}


def tuning_sentences(sweep: Sweep) -> tuple[list[str], list[str]]:
    """Return sentences on which values the trials chose, one per way to choose, and warnings, one per edge."""
    chosen: dict[tuple[str, ...], list[str]] = {}
    warnings = []
    at_edge: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for trial in sweep.trials:
        tuned = trial.tuned
        if tuned is None:
            continue
        if tuned.chosen is None:
            warnings.append(f"{trial.label}: no value of {_names(tuned)} has a result on all tuning seeds.")
            continue
        chosen.setdefault((_names(tuned), _how(tuned)), []).append(f"{trial.label} {_shown(tuned.chosen)}")
        for option, edge in tuned.edges.items():
            values = ", ".join(dict.fromkeys(_text(each.values.get(option)) for each in tuned.tried))
            at_edge.setdefault((_short(option), edge), []).append((trial.label, values))
    for (option, edge), labels in at_edge.items():
        grids = {values for _, values in labels}
        of = f" of {grids.pop()}" if len(grids) == 1 else " that they tried"
        warnings.append(
            f"{shortlist([label for label, _ in labels], 24)} chose the {edge} {option}{of}: "
            f"a {FURTHER.get(edge, 'further')} value may be better."
        )
    return [f"Tuned: {', '.join(groups)} ({names}, {how})." for (names, how), groups in chosen.items()], warnings


def _names(tuned: Tuned) -> str:
    """Return the short names of the tuned options: `lr, rank`."""
    return ", ".join(_short(option) for option in (tuned.tried[0].values if tuned.tried else tuned.chosen or ()))


def _how(tuned: Tuned) -> str:
    if len(tuned.tried) < 2:
        return "the only value"
    seeds = ", ".join(map(str, tuned.seeds))
    searched = sum(each.runs is not None for each in tuned.tried)
    among = f" among {searched} of {len(tuned.tried)} that a search tried" if searched < len(tuned.tried) else ""
    return f"chosen by {tuned.metric} on seed{'s' if len(tuned.seeds) > 1 else ''} {seeds}{among}"


def _shown(values: Mapping[str, Any]) -> str:
    """Return the value of a single option, or several as `lr=0.003 rank=8`."""
    if len(values) == 1:
        return _text(next(iter(values.values())))
    return " ".join(f"{_short(option)}={_text(item)}" for option, item in values.items())


def _short(option: str) -> str:
    return option.rpartition(".")[2]


def _text(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str)  # YAML has dates
