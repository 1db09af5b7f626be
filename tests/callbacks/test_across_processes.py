"""Measurements of several processes become those of one run: the largest peaks, and the sum of the energy."""

from __future__ import annotations

from typing import Any

import pytest

from litpeft.callbacks.across_processes import PEAKS, combine, most
from litpeft.training import processes


def measured(peak: int | None, energy: dict[str, float | None] | None) -> dict[str, Any]:
    return {**dict.fromkeys(PEAKS), "peak_rss_bytes": peak, "energy_joules_by_source": energy}


def combined(monkeypatch: pytest.MonkeyPatch, *each: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what the first process reports; `each` has the local rank and the measurements of a process."""
    sent: list[Any] = []
    monkeypatch.setattr(processes, "gather_from_ranks", lambda value: [value])
    for local_rank, own in each:
        monkeypatch.setattr(processes, "gather_from_ranks", lambda value: (sent.append(value), [value])[1])
        combine(own, local_rank)
    monkeypatch.setattr(processes, "gather_from_ranks", lambda value: sent)
    return combine(each[0][1], each[0][0])


def test_peaks_are_the_largest_and_the_processors_of_a_machine_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = measured(5, {"cpu": 3.0, "gpu": 10.0}), measured(7, {"cpu": 3.0, "gpu": 20.0})
    other_machine = measured(None, {"cpu": 4.0, "gpu": 30.0})
    found = combined(monkeypatch, (0, first), (1, second), (0, other_machine))
    assert found["peak_rss_bytes"] == 7
    assert found["peak_allocated_bytes"] is None
    assert [each["peak_rss_bytes"] for each in found["peaks_by_process"]] == [5, 7, None]
    assert found["energy_joules_by_source"] == {"cpu": 7.0, "gpu": 60.0}
    assert found["energy_joules"] == 67.0


def test_an_unknown_energy_of_one_process_is_unknown_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = combined(monkeypatch, (0, measured(1, {"cpu": 3.0, "gpu": 1.0})), (1, measured(1, {"gpu": None})))
    assert found["energy_joules_by_source"] == {"cpu": 3.0, "gpu": None}
    assert found["energy_joules"] is None
    nothing = combined(monkeypatch, (0, measured(1, None)), (1, measured(1, {})))
    assert (nothing["energy_joules"], nothing["energy_joules_by_source"]) == (None, None)


def test_the_largest_of_unknown_values_is_unknown() -> None:
    assert most([None, 3, 2]) == 3
    assert most([None]) is most([]) is None
