"""Search over trials with optuna, without training."""

from __future__ import annotations

from pathlib import Path

import pytest

from litpeft.runs.record import new_record, write_record
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import Job, jobs_of
from litpeft.sweeps.search import search


def test_trials_started_by_a_killed_search_are_finished_first(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trials = [Trial(f"rank={i}", f"rank={i}", {"rank": str(i)}, ()) for i in range(10)]
    experiment = Experiment("mine", {"rank": []}, trials, [0, 1], {"metric": None})
    jobs = jobs_of(tmp_path, experiment)
    done: list[str] = []

    def do(job: Job) -> str:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        write_record(job.run_dir, new_record() | {"status": "ok", "val_loss": 0.5})
        done.append(job.name)
        return "ok"

    for started, status in (("rank=3", "interrupted"), ("rank=8", "ok")):  # the second trial lacks one seed
        (tmp_path / started / "seed0").mkdir(parents=True)
        write_record(tmp_path / started / "seed0", new_record() | {"status": status, "val_loss": 0.4})
    search(tmp_path, experiment, jobs, 2, lambda some: [do(job) for job in some])
    assert {"rank=3 seed 0", "rank=3 seed 1", "rank=8 seed 1"} <= set(done)
    assert {name.split()[0] for name in done} == {"rank=3", "rank=8"}
