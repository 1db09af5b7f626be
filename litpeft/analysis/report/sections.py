"""Sections of the page for single runs: figures, environment, and differences from the run of the baseline."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from litpeft.analysis.comparison import Comparison, Figure, Group, Run
from litpeft.analysis.comparison.configs import ABSENT, NO_EFFECT, config_value, short_key, value_as_text
from litpeft.analysis.comparison.figures import value
from litpeft.analysis.comparison.sentences import UNKNOWN, plain_title, value_text
from litpeft.runs.record import FIELDS
from litpeft.runs.summary import summary

PEAKS = "peak_tensor_bytes", "peak_rss_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "allocator_retries"
CROWDED = 2**30  # bytes used on the GPU before the run; more than a CUDA context needs


def sections(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the contents of a section for each run, unfinished runs included, for the template of the page."""
    base = comparison.baseline_group
    return [
        _section(number, group, run, _partner(run, group, base)) | {"scores": _scores(comparison.figures, run)}
        for number, group in enumerate(comparison.groups)
        for run in _members(group)
    ]


def _scores(figures: Sequence[Figure], run: Run) -> str:
    """Return the first figures of quality and of memory of a run, for its closed row."""
    chosen = [next((each for each in figures if each.kind == kind), None) for kind in ("quality", "memory")]
    known = [(each, found) for each in chosen if each and (found := value(run.record, each.name)) is not None]
    return ", ".join(f"{plain_title(each.title)} {value_text(each.name, found)}" for each, found in known)


def _members(group: Group) -> list[Run]:
    """Return the runs of a group, unfinished ones last; one that stands for several tasks as the runs of the tasks."""
    return [*(part for run in group.runs for part in run.parts or (run,)), *group.failed]


def _task(run: Run, group: Group) -> dict[str, str]:
    """Return the value of a run on the axis of the tasks, over which the group is averaged; empty without one."""
    return {axis: item for axis, item in run.axes.items() if axis not in group.axes}


def _partner(run: Run, group: Group, base: Group | None) -> Run | None:
    """Return the baseline run with the same task and seed, else the first with the task; None for this run itself."""
    runs = [other for other in _members(base) if _task(run, group).items() <= other.axes.items()] if base else []
    found = next((other for other in runs if other.seed == run.seed), runs[0] if runs else None)
    return None if found is run else found


def _section(number: int, group: Group, run: Run, partner: Run | None) -> dict[str, Any]:
    record = run.record
    facts = [(name.replace("  ", "· "), value) for name, value in summary(dict.fromkeys(FIELDS) | record)]
    seed = "no seed" if run.seed is None else f"seed {run.seed}"
    return {
        "group": number,
        "label": group.label,
        "name": ", ".join([*_task(run, group).values(), seed]),
        "finished": run not in group.failed,
        "status": str(record.get("status") or UNKNOWN),
        "folder": str(run.folder),
        "notes": _notes(record),
        "facts": [(name, value) for name, value in facts if name != "status"],
        "differences": _differences(run, partner) if partner else [],
        "baseline_folder": str(partner.folder) if partner else None,
        "picture": _picture(run),
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


def _picture(run: Run) -> str | None:
    """Return the picture of the run's validation images as a data URL; None without one."""
    name = run.record.get("image_grid")
    file = run.folder / str(name)
    if name is None or not file.is_file():
        return None
    return f"data:image/jpeg;base64,{b64encode(file.read_bytes()).decode()}"


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
