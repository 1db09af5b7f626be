"""Search over trials with optuna, without training."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from litpeft.runs.record import new_record, write_record
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import Job, jobs_of, tuning_jobs_of
from litpeft.sweeps.search import STORAGE, search, search_values


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


def test_several_trials_at_a_time_are_all_different_and_as_many_as_wanted(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trials = [Trial(f"rank={i}", f"rank={i}", {"rank": str(i)}, ()) for i in range(12)]
    experiment = Experiment("mine", {"rank": []}, trials, [0], {"metric": None})
    together = threading.Barrier(3, timeout=60)  # passes only if three jobs run at the same time
    done: list[str] = []

    def run(jobs: list[Job]) -> list[str]:
        (job,) = jobs
        if job.state() == "ok":
            return ["ok"]
        together.wait()
        job.run_dir.mkdir(parents=True)
        score = abs(int(job.trial.axes["rank"]) - 4) / 10
        write_record(job.run_dir, new_record() | {"status": "ok", "val_loss": score})
        done.append(job.trial.axes["rank"])
        return ["ok"]

    search(tmp_path, experiment, jobs_of(tmp_path, experiment), 9, run, at_once=3)
    assert len(done) == len(set(done)) == 9  # which ones depends on the order in which they end


def test_a_search_of_several_at_a_time_stops_where_one_is_interrupted(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trials = [Trial(f"rank={i}", f"rank={i}", {"rank": str(i)}, ()) for i in range(12)]
    experiment = Experiment("mine", {"rank": []}, trials, [0], {"metric": None})
    started: list[str] = []

    def run(jobs: list[Job]) -> list[str]:
        (job,) = jobs
        started.append(job.name)
        job.run_dir.mkdir(parents=True, exist_ok=True)
        status = "interrupted" if len(started) >= 3 else "ok"
        write_record(job.run_dir, new_record() | {"status": status, "val_loss": 0.5})
        return [status]

    search(tmp_path, experiment, jobs_of(tmp_path, experiment), 12, run, at_once=2)
    assert 3 <= len(started) <= 4  # the one that ran beside it ends too


def test_a_search_that_is_stopped_between_two_trials_asks_for_no_more(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    trials = [Trial(f"rank={i}", f"rank={i}", {"rank": str(i)}, ()) for i in range(12)]
    experiment = Experiment("mine", {"rank": []}, trials, [0], {"metric": None})
    search(tmp_path, experiment, jobs_of(tmp_path, experiment), 12, lambda jobs: ["waiting"])
    storage = JournalStorage(JournalFileBackend(str(tmp_path / STORAGE)))
    assert len(optuna.load_study(study_name=None, storage=storage).trials) == 1


@pytest.mark.parametrize("ranks", [range(6), range(5, -1, -1), [0, 10, 2, 4]])
def test_a_search_goes_on_with_other_values_from_the_results_that_it_has(tmp_path: Path, ranks: Sequence[int]) -> None:
    """The sampler is told the result of each point under the name that the point has now."""
    optuna = pytest.importorskip("optuna")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    done: list[str] = []

    def run(jobs: list[Job]) -> list[str]:
        for job in jobs:
            if job.state() == "waiting":
                job.run_dir.mkdir(parents=True)
                loss = 0.1 + abs(int(job.trial.axes["rank"]) - 2)
                write_record(job.run_dir, new_record() | {"status": "ok", "val_loss": loss})
                done.append(job.trial.axes["rank"])
        return ["ok"] * len(jobs)

    def go_on(numbers: Sequence[int], budget: int) -> None:
        trials = [Trial(f"rank={i}", f"rank={i}", {"rank": str(i)}, ()) for i in numbers]
        experiment = Experiment("mine", {"rank": []}, trials, [0], {"metric": None})
        search(tmp_path, experiment, jobs_of(tmp_path, experiment), budget, run)

    go_on(range(4), 4)
    go_on(ranks, len(ranks))
    assert sorted(done) == sorted({*"0123", *map(str, ranks)})  # each once
    storage = JournalStorage(JournalFileBackend(str(tmp_path / STORAGE)))
    *_, newest = optuna.get_all_study_summaries(storage)
    told = {
        each.params["rank"]: each.value
        for each in optuna.load_study(study_name=newest.study_name, storage=storage).trials
    }
    assert told == {str(rank): -0.1 - abs(rank - 2) for rank in ranks}


@pytest.mark.parametrize("rates", [[1e-4, 3e-4, 1e-3], [1e-5, 1e-3, 1e-2, 1e-4]])
def test_a_search_of_values_tells_the_results_of_the_same_values(tmp_path: Path, rates: list[float]) -> None:
    """Numbers are searched by their place, which another number in their list changes."""
    optuna = pytest.importorskip("optuna")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def run(jobs: list[Job]) -> list[str]:
        for job in jobs:
            job.run_dir.mkdir(parents=True, exist_ok=True)
            write_record(job.run_dir, new_record() | {"status": "ok", "val_loss": job.trial.values["lr"]})
        return ["ok"] * len(jobs)

    for some in ([1e-4, 1e-3, 1e-2], rates):
        candidates = [Trial(f"lr={each}", f"lr={each}", {}, (), values={"lr": each}) for each in some]
        trial = Trial("lora", "lora", {"adapter": "lora"}, (), candidates=candidates)
        experiment = Experiment("mine", {"adapter": []}, [trial], [0], {"metric": None}, tune_seeds=[0])
        search_values(tmp_path, experiment, trial, tuning_jobs_of(tmp_path, experiment), len(some), run)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / STORAGE)))
    *_, newest = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=newest.study_name, storage=storage)
    assert {each.params["lr"]: -each.value for each in study.trials} == dict(enumerate(sorted(rates)))


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        ([1e-3, 1e-4, 3, 1e-3], True),
        (["cosine", 8, "cosine"], False),
        (["all-linear", ["query", "value"]], False),
        ([True, 2, 0.5], False),
    ],
)
def test_values_of_any_kind_are_searched_and_only_numbers_have_an_order(
    values: list[Any], ordered: bool, tmp_path: Path
) -> None:
    optuna = pytest.importorskip("optuna")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    candidates = [Trial(f"x={i}", f"x={i}", {}, (), values={"x": each}) for i, each in enumerate(values)]
    trial = Trial("lora", "lora", {"adapter": "lora"}, (), candidates=candidates)
    experiment = Experiment("mine", {"adapter": []}, [trial], [0], {"metric": None}, tune_seeds=[0])
    done: list[str] = []

    def run(jobs: list[Job]) -> list[str]:
        for job in jobs:
            job.run_dir.mkdir(parents=True, exist_ok=True)
            write_record(job.run_dir, new_record() | {"status": "ok", "val_loss": 0.5})
        done.extend(job.trial.name for job in jobs)
        return ["ok"] * len(jobs)

    search_values(tmp_path, experiment, trial, tuning_jobs_of(tmp_path, experiment), len(values), run)
    assert set(done) == {each.name for each in candidates}
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(tmp_path / STORAGE))))
    assert study.study_name.startswith("mine: lora ")
    kinds = {type(each.distributions["x"]).__name__ for each in study.trials}
    assert kinds == {"IntDistribution" if ordered else "CategoricalDistribution"}
