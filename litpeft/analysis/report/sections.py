"""A section of the page for each run: what it was, what it cost, and how it differs from the baseline's run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litpeft.analysis.comparison import Comparison, Group, Run
from litpeft.analysis.comparison.configs import ABSENT, CHANGES_NOTHING, config_value, short
from litpeft.analysis.comparison.configs import shown as option_shown
from litpeft.analysis.report.sentences import UNKNOWN, told
from litpeft.runs.record import FIELDS
from litpeft.runs.summary import summary

PEAKS = "peak_tensor_bytes", "peak_rss_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "allocator_retries"
CROWDED = 2**30  # bytes that others held on the GPU: no longer only a context


@dataclass(frozen=True)
class Section:
    """Of one run.

    Attributes:
        group: number of its group.
        label: of its group.
        name: its seed, or what it is called.
        finished: whether it ended well.
        status: as in the record, or what was found instead.
        folder: of the run.
        notes: what went wrong or is worth knowing, one sentence each.
        facts: (name, value): the figures one looks at first.
        differences: (option, here, in the baseline's run), of options that change a result.
        against: the folder of the baseline's run; None for itself and where there is none.
        memory: heads and rows of its peaks by phase.
        surroundings: (name, value): the machine, versions, the commit, and when it began.
    """

    group: int
    label: str
    name: str
    finished: bool
    status: str
    folder: str
    notes: list[str]
    facts: list[tuple[str, str]]
    differences: list[tuple[str, str, str]]
    against: str | None
    memory: tuple[list[str], list[list[str]]] | None
    surroundings: list[tuple[str, str]]


def sections(comparison: Comparison) -> list[Section]:
    """Of all runs, the unfinished ones included."""
    base = next((group for group in comparison.groups if group.label == comparison.baseline), None)
    return [
        _section(number, group, run, _partner(run, base))
        for number, group in enumerate(comparison.groups)
        for run in [*group.runs, *group.failed]
    ]


def _partner(run: Run, base: Group | None) -> Run | None:
    """The baseline's run of the same seed, else its first."""
    runs = [*base.runs, *base.failed] if base else []
    found = next((other for other in runs if other.seed == run.seed), runs[0] if runs else None)
    return None if found is run else found


def _section(number: int, group: Group, run: Run, partner: Run | None) -> Section:
    record = run.record
    return Section(
        group=number,
        label=group.label,
        name="no seed" if run.seed is None else f"seed {run.seed}",
        finished=run in group.runs,
        status=str(record.get("status") or UNKNOWN),
        folder=str(run.folder),
        notes=_notes(record),
        facts=[
            (name.replace("  ", "· "), value)
            for name, value in summary(dict.fromkeys(FIELDS) | record)
            if name != "status"
        ],
        differences=_differences(run, partner) if partner else [],
        against=str(partner.folder) if partner else None,
        memory=_memory(record.get("memory_phases") or {}),
        surroundings=_surroundings(record),
    )


def _differences(run: Run, partner: Run) -> list[tuple[str, str, str]]:
    keys = sorted(key for key in run.options.keys() | partner.options.keys() if not CHANGES_NOTHING.fullmatch(key))
    pairs = [(key, *(_option(one, key) for one in (run, partner))) for key in keys]
    return [(short(key), here, there) for key, here, there in pairs if here != there]


def _option(run: Run, key: str) -> str:
    value = config_value(run.options, key)
    return "not an option" if value is ABSENT else option_shown(value)


def _notes(record: Mapping[str, Any]) -> list[str]:
    notes = [str(record["error"])] if record.get("error") else []
    others = record.get("others_bytes") or 0
    if others > CROWDED:
        notes.append(
            f"{told('others_bytes', others)} of the GPU were in use before the run began: times may be not its own."
        )
    retries = sum((phase.get("allocator_retries") or 0) for phase in (record.get("memory_phases") or {}).values())
    if retries:
        notes.append(f"CUDA's allocator had to free its cache and try again {retries} times: memory was short.")
    tables = ((record.get("data_summary") or {}).get("tables") or {}).items()
    notes += [
        f"{table['truncated_rows']:,} {split} rows were cut to the greatest length."
        for split, table in tables
        if (table or {}).get("truncated_rows")
    ]
    if (record.get("git") or {}).get("dirty"):
        notes.append("The working directory had changes that are in no commit.")
    return notes


def _memory(phases: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    known = [name for name in PEAKS if any(phase.get(name) is not None for phase in phases.values())]
    heads = ["phase", *(name.replace("_", " ").removesuffix(" bytes") for name in known)]
    rows = [[phase.replace("_", " "), *(told(name, at.get(name)) for name in known)] for phase, at in phases.items()]
    return (heads, rows) if known else None


def _surroundings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    git = record.get("git") or {}
    packages = ", ".join(f"{name} {version}" for name, version in (record.get("packages") or {}).items())
    machine = [(name.replace("_", " "), str(value)) for name, value in (record.get("machine") or {}).items() if value]
    return [
        ("started", str(record.get("started_at") or UNKNOWN)),
        *machine,
        ("commit", str(git.get("commit") or UNKNOWN)),
        ("packages", packages or UNKNOWN),
    ]
