"""Check that runs are comparable: runs of a group differ only in the seed, groups differ only in the axes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from litpeft.analysis.comparison.caveats import shortlist
from litpeft.analysis.comparison.configs import (
    ABSENT,
    config_value,
    differing,
    fingerprint,
    harmless_files,
    is_covered,
    value_as_text,
)
from litpeft.analysis.comparison.options import Options, short_key
from litpeft.analysis.comparison.results import Group, Run
from litpeft.errors import UserError

SPLITS = {"train": "trained", "val": "validated", "test": "tested"}  # split -> what was done on its rows


def check_seeds(groups: Sequence[Group]) -> None:
    """Check that no two finished runs of a group have the same seed.

    Raises:
        UserError: two runs have the same seed.
    """
    for group in groups:
        seen: dict[Any, Run] = {}
        for run in group.runs:
            if run.seed in seen:
                raise UserError(
                    f"{seen[run.seed].folder} and {run.folder} are both {group.label} with seed {run.seed}; "
                    "leave one out, or name the option that differs with --by."
                )
            seen[run.seed] = run


def check_groups(groups: Sequence[Group], axes: Sequence[str]) -> None:
    """Check that the runs of each group differ only in the seed.

    Raises:
        UserError: other options differ; the message names them and the --by that separates the runs.
    """
    ignored = harmless_files([run for group in groups for run in group.runs])
    for group in groups:
        if len(group.runs) < 2:
            continue
        flats = [run.options for run in group.runs]
        if keys := differing(flats, ignored):
            listed = shortlist([f"{short_key(key)} is {_values(flats, key)}" for key in keys], 3, "; ")
            raise UserError(
                f"runs of {group.label} differ in more than the seed: {listed}; "
                f"give --by {','.join([*axes, *map(short_key, keys[:3])])}, or leave some runs out."
            )


def confounded(groups: Sequence[Group], covered: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the config keys, other than the axes, in which groups differ -> value by group label."""
    filled = [group for group in groups if group.runs]
    flats = {group.label: [run.options for run in group.runs] for group in filled}
    ignored = harmless_files([run for group in filled for run in group.runs])
    keys = differing([flat for group in flats.values() for flat in group], ignored) if flats else []
    return {
        short_key(key): {label: _values(group, key) for label, group in flats.items()}
        for key in keys
        if not is_covered(key, covered)
    }


def check_data(groups: Sequence[Group], covered: Collection[str]) -> list[str]:
    """Check that all runs used the same tables; return warnings if they differ and data or model is an axis.

    Raises:
        UserError: runs of a group, or groups where data is not an axis, used different tables.
    """
    may_differ = any(is_covered(name, ("data", "model.model_name")) or name == "model" for name in covered)
    warnings = []
    for split, done in SPLITS.items():
        tables: dict[str, Run] = {}
        for group in groups:
            known: dict[str, Run] = {}
            for run in group.different:
                if name := fingerprint(run.record, split):
                    known.setdefault(name, run)
            if len(known) > 1:
                first, second, *_ = known.values()
                raise UserError(
                    f"{first.folder} and {second.folder} are both {group.label}, but {done} on different tables "
                    f"({split} fingerprints): their mean has no meaning; leave one out."
                )
            tables |= known
        if len(tables) < 2:
            continue
        if not may_differ:
            first, second, *_ = tables.values()
            raise UserError(
                f"{first.folder} and {second.folder} were {done} on different tables ({split} fingerprints): their "
                "quality is not comparable; to compare data sets, name the data option that differs with --by."
            )
        warnings.append(
            f"The groups were {done} on {len(tables)} different tables (rows, tokens or maximum length differ): "
            "a difference in quality may come from the data. Losses and perplexities per token mean the same only with "
            "one tokenizer."
        )
    return warnings + _check_test_rows(groups, may_differ)


def _check_test_rows(groups: Sequence[Group], may_differ: bool) -> list[str]:
    """Check that runs tested on one table used as many of its rows: `litpeft test --data.test_samples` is in no config.

    Returns warnings if they did not and data or model is an axis.

    Raises:
        UserError: they did not, and neither is an axis.
    """
    tested: dict[str, dict[int, Run]] = {}  # table -> number of rows -> a run
    for run in (run for group in groups for run in group.different):
        rows = ((run.record.get("data_summary") or {}).get("rows") or {}).get("test")
        if rows and (table := fingerprint(run.record, "test")):
            tested.setdefault(table, {}).setdefault(rows, run)
    warnings = []
    for (few, first), (many, second), *_ in (sorted(found.items()) for found in tested.values() if len(found) > 1):
        told = (
            f"{first.folder} was tested on {few:,} rows and {second.folder} on {many:,} of the same table: their test "
            "figures are not comparable; test them again with the same --data.test_samples."
        )
        if not may_differ:
            raise UserError(told)
        warnings.append(told)
    return warnings


def _values(flats: Sequence[Options], key: str) -> str:
    different = {id(flat.shared): flat for flat in flats}.values()
    known = [value_as_text(item) for flat in different if (item := config_value(flat, key)) is not ABSENT]
    return " or ".join(dict.fromkeys(known)) or ABSENT
