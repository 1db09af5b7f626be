"""Measurements of several processes, combined into the figures of one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from litpeft.training import processes

PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_rss_bytes", "peak_tensor_bytes")


def combine(own: dict[str, Any], local_rank: int) -> dict[str, Any]:
    """Return the largest peaks and the total energy of all processes. Collective: every process must call it.

    Args:
        own: measurements of this process, by record field.
        local_rank: rank within the machine; rank 0 reports the energy of the processors.
    """
    energy = {
        name: used for name, used in (own["energy_joules_by_source"] or {}).items() if not local_rank or name == "gpu"
    }
    measured = processes.gather_from_ranks({name: own[name] for name in PEAKS} | {"energy": energy})
    peaks = [{name: each[name] for name in PEAKS} for each in measured]
    by_source: dict[str, float | None] = {}
    for source in sorted({source for each in measured for source in each["energy"]}):
        used = [each["energy"][source] for each in measured if source in each["energy"]]
        by_source[source] = None if None in used else sum(used)
    known = by_source and None not in by_source.values()
    return {name: most(each[name] for each in peaks) for name in PEAKS} | {
        "peaks_by_process": peaks,
        "energy_joules": sum(by_source.values()) if known else None,
        "energy_joules_by_source": by_source or None,
    }


def most(values: Iterable[int | None]) -> int | None:
    """Return the largest value that is not None; None if there is none."""
    return max((value for value in values if value is not None), default=None)
