"""Whether runs may be held against each other: in a group only the seed differs, between groups only the axes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from litpeft.analysis.comparison.configs import (
    ABSENT,
    config_value,
    differing,
    fingerprint,
    harmless_files,
    is_covered,
    short,
    shown,
)
from litpeft.analysis.comparison.results import Group, Run
from litpeft.errors import UserError

SPLITS = {"train": "trained", "val": "validated", "test": "tested"}


def check_seeds(groups: Sequence[Group]) -> None:
    """Refuse two finished runs of one group and seed.

    Raises:
        UserError: names both folders.
    """
    for group in groups:
        seen: dict[Any, Run] = {}
        for run in group.runs:
            if run.seed in seen:
                raise UserError(
                    f"{seen[run.seed].folder} and {run.folder} are both {group.label} with seed {run.seed}; "
                    "leave one out, or name with --by in what they differ."
                )
            seen[run.seed] = run


def check_within(groups: Sequence[Group], axes: Sequence[str]) -> None:
    """Refuse a group whose runs differ in more than the seed.

    Raises:
        UserError: names the options, their values, and the --by that would take them apart.
    """
    ignored = harmless_files([run for group in groups for run in group.runs])
    for group in groups:
        if len(group.runs) < 2:
            continue
        flats = [run.options for run in group.runs]
        if keys := differing(flats, ignored):
            told = "; ".join(f"{short(key)} is {_values(flats, key)}" for key in keys[:3])
            more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"runs of {group.label} differ in more than the seed: {told}{more}; "
                f"give --by {','.join([*axes, *map(short, keys[:3])])}, or leave some runs out."
            )


def confounded(groups: Sequence[Group], covered: Collection[str]) -> dict[str, dict[str, str]]:
    """Config keys in which groups differ besides the axes -> value by group label."""
    filled = [group for group in groups if group.runs]
    flats = {group.label: [run.options for run in group.runs] for group in filled}
    ignored = harmless_files([run for group in filled for run in group.runs])
    keys = differing([flat for group in flats.values() for flat in group], ignored) if flats else []
    return {
        short(key): {label: _values(group, key) for label, group in flats.items()}
        for key in keys
        if not is_covered(key, covered)
    }


def check_data(groups: Sequence[Group], covered: Collection[str]) -> list[str]:
    """Refuse runs on different tables, unless data or model is what is compared; then it is said.

    Returns:
        What to warn of.

    Raises:
        UserError: names the groups, and what to do.
    """
    may_differ = any(is_covered(name, ("data", "model.model_name")) or name == "model" for name in covered)
    warnings = []
    for split, done in SPLITS.items():
        tables: dict[str, Run] = {}
        for group in groups:
            known = {name: run for run in group.runs if (name := fingerprint(run.record, split))}
            if len(known) > 1:
                first, second, *_ = known.values()
                raise UserError(
                    f"{first.folder} and {second.folder} are both {group.label}, but {done} on different tables "
                    f"({split} fingerprints): a mean over them would mean nothing; leave one out."
                )
            tables |= known
        if len(tables) < 2:
            continue
        if not may_differ:
            first, second, *_ = tables.values()
            raise UserError(
                f"{first.folder} and {second.folder} were {done} on different tables ({split} fingerprints): their "
                "quality is not comparable; if that is the question, name the data option that differs with --by."
            )
        warnings.append(
            f"The groups were {done} on {len(tables)} different tables (rows, tokens or greatest length differ): "
            "a difference in quality may be one of the data."
        )
    return warnings


def _values(flats: Sequence[Mapping[str, Any]], key: str) -> str:
    known = [shown(item) for flat in flats if (item := config_value(flat, key)) is not ABSENT]
    return " or ".join(dict.fromkeys(known)) or ABSENT
