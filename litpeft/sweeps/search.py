"""`--select optuna`: choose the next trials, or values of `tune`, from the results so far (Akiba et al. 2019)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import Job
from litpeft.sweeps.progress_table import rank

STORAGE = "optuna.log"  # in the sweep's folder
REPEATS = 20  # suggestions of points that have been tried, before the first that has not is taken
Run = Callable[[list[Job]], list[str]]


def search(root: Path, experiment: Experiment, jobs: list[Job], budget: int, run: Run, at_once: int = 1) -> None:
    """Run up to `budget` different trials, each with all seeds, chosen by a tree-structured Parzen estimator.

    With one trial at a time, the results alone decide which trials are chosen; with several, also their order in time.

    Args:
        root: folder of the sweep, where the study is stored and continued.
        experiment: experiment whose axes are searched.
        jobs: all jobs of the sweep.
        budget: number of trials, including those of earlier searches.
        run: runs jobs that have not finished, in parallel, and returns their states.
        at_once: number of trials that run at the same time.

    Raises:
        UserError: optuna is not installed.
    """
    names = {each.name: tuple(each.axes.values()) for each in experiment.trials}
    values = {axis: list(dict.fromkeys(each.axes[axis] for each in experiment.trials)) for axis in experiment.axes}
    points, metric = _by_point(names, jobs), experiment.description["metric"]
    _search(root, _study_name(experiment.name, values), values, points, metric, budget, run, at_once)


def search_values(root: Path, experiment: Experiment, trial: Trial, jobs: list[Job], budget: int, run: Run) -> None:
    """Run up to `budget` combinations of the values of `tune` of one trial, each with all tuning seeds.

    Numbers are searched by their order, so that the neighbours of a good learning rate are tried before distant ones.

    Args:
        root: folder of the sweep, where the study is stored and continued.
        experiment: the experiment.
        trial: trial with candidates.
        jobs: the tuning jobs of the trial.
        budget: number of combinations, including those of earlier searches.
        run: runs jobs that have not finished, in parallel, and returns their states.

    Raises:
        UserError: optuna is not installed.
    """
    values: dict[str, list[Any]] = {}
    for option in trial.candidates[0].values:
        tried = [each.values[option] for each in trial.candidates]
        different = [each for i, each in enumerate(tried) if each not in tried[:i]]  # lists as values are not hashable
        values[option] = sorted(different) if _are_numbers(different) else different
    names = {
        each.name: tuple(values[option].index(value) for option, value in each.values.items())
        for each in trial.candidates
    }
    places = {
        option: range(len(each)) if _are_numbers(each) else list(range(len(each))) for option, each in values.items()
    }
    name = _study_name(f"{experiment.name}: {trial.label}", values)
    _search(root, name, places, _by_point(names, jobs), experiment.description["metric"], budget, run)


def _study_name(name: str, values: Mapping[str, Sequence[Any]]) -> str:
    """Return the name of the study of these values; the results of others are in a study of their own."""
    return f"{name} {hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)


def _by_point(names: Mapping[str, tuple[Any, ...]], jobs: Sequence[Job]) -> dict[tuple[Any, ...], list[Job]]:
    """Return {point of the grid: its jobs}; `names` are the points of the trials."""
    points: dict[tuple[Any, ...], list[Job]] = {point: [] for point in names.values()}
    for job in jobs:
        points[names[job.trial.name]].append(job)
    return points


def _search(
    root: Path,
    name: str,
    values: Mapping[str, Sequence[Any]],
    points: Mapping[tuple[Any, ...], list[Job]],
    metric: str | None,
    budget: int,
    run: Run,
    at_once: int = 1,
) -> None:
    """Run the jobs of up to `budget` points.

    Args:
        root: folder of the sweep.
        name: name of the study.
        values: {dimension: its values}; a range is ordered, a list is not.
        points: {point: its jobs}, without excluded points.
        metric: metric to improve; None: that of the runs.
        budget: number of points, including those of earlier searches.
        run: runs jobs that have not finished.
        at_once: number of points that run at the same time.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("--select optuna needs optuna: pip install 'litpeft[hpo]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    failed = optuna.trial.TrialState.FAIL
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(root / STORAGE))),
        study_name=name,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(
            seed=0, n_startup_trials=min(10, max(1, budget // 2)), constant_liar=at_once > 1
        ),
        load_if_exists=True,
    )
    for stale in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # left by a killed search
        study.tell(stale.number, state=failed)
    states = {point: [job.state() for job in jobs] for point, jobs in points.items()}
    tried = {point for point, each in states.items() if not {"waiting", "interrupted"} & set(each)}
    distributions = {
        dimension: optuna.distributions.IntDistribution(0, len(each) - 1)
        if isinstance(each, range)
        else optuna.distributions.CategoricalDistribution(each)
        for dimension, each in values.items()
    }
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    known = {tuple(each.params[dimension] for dimension in values) for each in complete}
    for point, each in states.items():
        params = dict(zip(values, point, strict=True))
        if point not in tried and set(each) != {"waiting"}:  # started: the sampler may not suggest it again
            study.enqueue_trial(params)
        elif point in tried - known:  # by a search of fewer values, or without a search
            mean, _ = _mean(metric, points[point], lambda _, ended=each: ended)
            if mean is not None:
                study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=mean))
    most, repeats, stopped = min(budget, len(points)), 0, False
    running: dict[Future[tuple[float | None, list[str]]], tuple[Any, tuple[Any, ...]]] = {}  # -> suggestion, point
    with ThreadPoolExecutor(at_once) as pool:
        while running or (len(tried) < most and not stopped):
            while len(tried) < most and len(running) < at_once and not stopped:
                if repeats > REPEATS:
                    untried = next(each for each in points if each not in tried)
                    study.enqueue_trial(dict(zip(values, untried, strict=True)))
                suggestion = study.ask(distributions)
                point = tuple(suggestion.params[dimension] for dimension in values)
                repeats = repeats + 1 if point in tried or point not in points else 0
                if point not in points or any(point == each for _, each in running.values()):  # excluded, or running
                    study.tell(suggestion, state=optuna.trial.TrialState.PRUNED)
                    continue
                tried.add(point)
                # of a point that was tried: what its records say, at no cost
                running[pool.submit(_mean, metric, points[point], run)] = suggestion, point
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)  # the timeout lets signals in
            for future in done:
                suggestion, _ = running.pop(future)
                mean, ended = future.result()
                study.tell(suggestion, mean, state=failed if mean is None else None)
                stopped |= not {"interrupted", "waiting"}.isdisjoint(ended)  # waiting: stopped before it began


def _mean(metric: str | None, jobs: list[Job], run: Run) -> tuple[float | None, list[str]]:
    """Run the jobs of a point; return the mean score over its seeds, None if one has no score, and their states."""
    states = run(jobs)
    scores = [rank(job.record() or {}, metric) for job in jobs]
    if set(states) != {"ok"} or None in scores:
        return None, states
    return sum(value for value, *_ in scores) / len(scores), states
