"""The progress table of a sweep: best run and number of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litpeft.runs.record import new_record, write_record
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


def test_the_table_is_the_same_whether_runs_ended_before_or_while_it_is_shown(tmp_path: Path) -> None:
    trials = [Trial(f"t{i}", f"t{i}", {}, ()) for i in range(SHOWN + 4)]
    trials[2] = Trial("t2", "t2", {}, (), values={"lr": 1})  # a tuning run, which is never the best
    jobs = jobs_of(tmp_path, Experiment("mine", {}, trials, [0], {}))
    before = Screen(jobs, "val_accuracy")
    assert (before.best(), before.table().row_count) == ("", 0)
    for number, job in enumerate(jobs):
        before.update(job, "running")
        if number == 3:
            before.update(job, "failed")
            continue
        job.run_dir.mkdir(parents=True)
        accuracy = {1: 0.8, 2: 0.99, 5: 0.9, 7: 0.9}.get(number, 0.5)
        write_record(job.run_dir, new_record() | {"status": "ok", "val_accuracy": accuracy, "wall_seconds": number})
        before.update(job, "ok")
    after = Screen(jobs, "val_accuracy")
    assert before.best() == after.best() == "best so far: t5 seed 0, val_accuracy 0.9000"  # of two, the first
    assert before.table().title == f"{len(jobs)} runs: {len(jobs) - 1} ok, 1 failed"
    assert [list(column.cells) for column in before.table().columns] == [
        list(column.cells) for column in after.table().columns
    ]
    assert before.table().row_count == SHOWN
    write_record(jobs[5].run_dir, new_record() | {"status": "ok", "val_accuracy": 0.1, "wall_seconds": 1})
    before.update(jobs[5], "ok")
    assert before.best() == "best so far: t7 seed 0, val_accuracy 0.9000"
