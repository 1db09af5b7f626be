"""Sections of the page for single runs: figures, environment, and differences from the run of the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litpeft.analysis.comparison import Comparison, Group, Run
from litpeft.analysis.comparison.configs import ABSENT, NO_EFFECT, config_value, short_key, value_as_text
from litpeft.analysis.report.sentences import UNKNOWN, value_text
from litpeft.runs.record import FIELDS
from litpeft.runs.summary import summary

PEAKS = "peak_tensor_bytes", "peak_rss_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "allocator_retries"
CROWDED = 2**30  # bytes used on the GPU before the run; more than a CUDA context needs


def sections(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the contents of a section for each run, unfinished runs included, for the template of the page."""
    base = next((group for group in comparison.groups if group.label == comparison.baseline), None)
    return [
        _section(number, group, run, _partner(run, base))
        for number, group in enumerate(comparison.groups)
        for run in [*group.runs, *group.failed]
    ]


def _partner(run: Run, base: Group | None) -> Run | None:
    """Return the baseline run with the same seed, else the first baseline run; None for this run itself."""
    runs = [*base.runs, *base.failed] if base else []
    found = next((other for other in runs if other.seed == run.seed), runs[0] if runs else None)
    return None if found is run else found


def _section(number: int, group: Group, run: Run, partner: Run | None) -> dict[str, Any]:
    record = run.record
    facts = [(name.replace("  ", "· "), value) for name, value in summary(dict.fromkeys(FIELDS) | record)]
    return {
        "group": number,
        "label": group.label,
        "name": "no seed" if run.seed is None else f"seed {run.seed}",
        "finished": run in group.runs,
        "status": str(record.get("status") or UNKNOWN),
        "folder": str(run.folder),
        "notes": _notes(record),
        "facts": [(name, value) for name, value in facts if name != "status"],
        "differences": _differences(run, partner) if partner else [],
        "baseline_folder": str(partner.folder) if partner else None,
        "memory": _memory(record.get("memory_phases") or {}),
        "environment": _environment(record),
    }


def _differences(run: Run, partner: Run) -> list[tuple[str, str, str]]:
    """Return (option, value, value in the baseline run) of the options that affect results and differ."""
    keys = sorted(key for key in run.options.keys() | partner.options.keys() if not NO_EFFECT.fullmatch(key))
    rows = [(short_key(key), _option(run, key), _option(partner, key)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def _option(run: Run, key: str) -> str:
    value = config_value(run.options, key)
    return "not an option" if value is ABSENT else value_as_text(value)


def _notes(record: Mapping[str, Any]) -> list[str]:
    notes = [str(record["error"])] if record.get("error") else []
    others = record.get("others_bytes") or 0
    if others > CROWDED:
        notes.append(
            f"{value_text('others_bytes', others)} of GPU memory were in use before the run started: another process "
            "may have slowed the run down."
        )
    retries = sum((phase.get("allocator_retries") or 0) for phase in (record.get("memory_phases") or {}).values())
    if retries:
        notes.append(f"GPU memory was nearly full: the CUDA allocator freed its cache and retried {retries} times.")
    tables = ((record.get("data_summary") or {}).get("tables") or {}).items()
    notes += [
        f"{table['truncated_rows']:,} {split} rows were truncated to the maximum length."
        for split, table in tables
        if (table or {}).get("truncated_rows")
    ]
    if (record.get("git") or {}).get("dirty"):
        notes.append("The working directory had uncommitted changes.")
    return notes


def _memory(phases: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    """Return the headings and rows of the table of peak memory by phase; None if no peak is known."""
    known = [name for name in PEAKS if any(phase.get(name) is not None for phase in phases.values())]
    heads = ["phase", *(name.replace("_", " ").removesuffix(" bytes") for name in known)]
    rows = [
        [phase.replace("_", " "), *(value_text(name, at.get(name)) for name in known)] for phase, at in phases.items()
    ]
    return (heads, rows) if known else None


def _environment(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    git = record.get("git") or {}
    packages = ", ".join(f"{name} {version}" for name, version in (record.get("packages") or {}).items())
    machine = [(name.replace("_", " "), str(value)) for name, value in (record.get("machine") or {}).items() if value]
    return [
        ("started", str(record.get("started_at") or UNKNOWN)),
        *machine,
        ("commit", str(git.get("commit") or UNKNOWN)),
        ("packages", packages or UNKNOWN),
    ]
