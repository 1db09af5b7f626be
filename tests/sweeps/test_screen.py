"""The progress table of a sweep: best run and number of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import jobs_of
from litpeft.sweeps.progress_table import SHOWN, Screen, score


@pytest.mark.parametrize(
    ("record", "metric", "score_value"),
    [
        ({"val_accuracy": 0.9, "val_loss": 0.2}, None, 0.9),
        ({"val_accuracy": None, "val_loss": 0.2}, None, -0.2),
        ({"train_seconds": 4.0}, "train_seconds", -4.0),
        ({"other_metrics": {"val_wer": 0.2}}, "val_wer", -0.2),
        ({"other_metrics": {"val_error": 0.2}}, "val_error", -0.2),
        ({"other_metrics": {"val_exact_match": 0.2}}, "val_exact_match", 0.2),
    ],
)
def test_the_best_run_depends_on_the_direction_of_the_metric(
    record: dict[str, Any], metric: str, score_value: float
) -> None:
    assert score({"other_metrics": None} | record, metric)[0] == score_value


@pytest.mark.parametrize("running", [0, 3, SHOWN, SHOWN + 2])
def test_the_number_of_rows_is_limited(tmp_path: Path, running: int) -> None:
    trials = [Trial(f"t{i}", f"t{i}", {}, ()) for i in range(30)]
    screen = Screen(jobs_of(tmp_path, Experiment("mine", {}, trials, [0], {})), None)
    for i, job in enumerate(screen.jobs):
        screen.update(job, "running" if i < running else "failed")
    assert screen.table().row_count == max(SHOWN, running)
