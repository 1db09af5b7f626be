"""Say which runs ended while their validation loss was still falling: longer training may change the answer."""

from __future__ import annotations

from collections.abc import Sequence

from litpeft.analysis.comparison.results import Group, Run

MOST_RUNS = 200  # of a comparison: the records of more are not read as a whole
LEAST = 0.01  # fall of the loss at the last validation, as a part of it


def still_falling(groups: Sequence[Group]) -> dict[str, tuple[int, int]]:
    """Return {label: (runs whose loss was still falling at their last validation, all runs)} of each group."""
    runs = sum(len(group.runs) for group in groups)
    return {
        group.label: (sum(_falls(run) for run in group.runs if runs <= MOST_RUNS), len(group.runs)) for group in groups
    }


def _falls(run: Run) -> bool:
    """Return whether the last validation loss of a run is lower than all before, by more than `LEAST`."""
    found = [validation.get("val_loss") for validation in run.record.get("validations") or ()]
    losses = [loss for loss in found if isinstance(loss, (int, float))]
    return len(losses) > 1 and losses[-1] < (1 - LEAST) * min(losses[:-1])
