"""What a sweep shows: the best by the metric's own direction, and no more lines than a screen has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import jobs_of
from litpeft.sweeps.progress_table import SHOWN, Screen, score


@pytest.mark.parametrize(
    ("record", "metric", "great"),
    [
        ({"val_accuracy": 0.9, "val_loss": 0.2}, None, 0.9),
        ({"val_accuracy": None, "val_loss": 0.2}, None, -0.2),
        ({"train_seconds": 4.0}, "train_seconds", -4.0),
        ({"other_metrics": {"val_wer": 0.2}}, "val_wer", -0.2),
        ({"other_metrics": {"val_error": 0.2}}, "val_error", -0.2),
        ({"other_metrics": {"val_exact_match": 0.2}}, "val_exact_match", 0.2),
    ],
)
def test_the_best_is_by_the_direction_that_compare_knows(record: dict[str, Any], metric: str, great: float) -> None:
    assert score({"other_metrics": None} | record, metric)[0] == great


@pytest.mark.parametrize("running", [0, 3, SHOWN, SHOWN + 2])
def test_no_more_ended_trials_are_shown_than_there_is_room_for(tmp_path: Path, running: int) -> None:
    trials = [Trial(f"t{i}", f"t{i}", {}, ()) for i in range(30)]
    screen = Screen(jobs_of(tmp_path, Experiment("mine", {}, trials, [0], {})), None)
    for i, job in enumerate(screen.jobs):
        screen.note(job, "running" if i < running else "failed")
    assert screen.table().row_count == max(SHOWN, running)
