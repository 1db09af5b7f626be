"""`--select optuna`: choose the next trials from the results so far (Akiba et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from litpeft.errors import UserError
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import Job
from litpeft.sweeps.progress_table import score

STORAGE = "optuna.log"  # in the sweep's folder


def search(
    root: Path, experiment: Experiment, jobs: list[Job], budget: int, run: Callable[[list[Job]], list[str]]
) -> None:
    """Run up to `budget` different trials, each with all seeds, chosen by a tree-structured Parzen estimator.

    Args:
        root: folder of the sweep, where the study is stored and continued.
        experiment: experiment whose axes are searched.
        jobs: all jobs of the sweep.
        budget: number of trials, including those of earlier searches.
        run: runs jobs that have not finished, in parallel, and returns their states.

    Raises:
        UserError: optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("--select optuna needs optuna: pip install 'litpeft[hpo]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(root / STORAGE))),
        study_name=experiment.name,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=min(10, max(1, budget // 2))),
        load_if_exists=True,
    )
    for stale in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # left by a killed search
        study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
    of_trial: dict[str, list[Job]] = {}
    for job in jobs:
        of_trial.setdefault(job.trial.name, []).append(job)
    by_axes = {tuple(trial.axes.values()): trial for trial in experiment.trials}
    values = {axis: list(dict.fromkeys(t.axes[axis] for t in experiment.trials)) for axis in experiment.axes}
    tried = {
        name for name, group in of_trial.items() if all(job.state() not in ("waiting", "interrupted") for job in group)
    }
    for name, group in of_trial.items():  # finish started trials first, since the sampler may not suggest them again
        if name not in tried and any(job.state() != "waiting" for job in group):
            study.enqueue_trial(group[0].trial.axes)
    for _ in range(20 * budget):  # the sampler may repeat a trial, which costs nothing
        if len(tried) >= min(budget, len(by_axes)):
            return
        suggestion = study.ask()
        point = tuple(suggestion.suggest_categorical(axis, names) for axis, names in values.items())
        trial: Trial | None = by_axes.get(point)
        if trial is None:  # excluded
            study.tell(suggestion, state=optuna.trial.TrialState.PRUNED)
            continue
        tried.add(trial.name)
        mean = _mean(experiment, of_trial[trial.name], run)
        if mean is None:
            study.tell(suggestion, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(suggestion, mean)
        if any(job.state() == "interrupted" for job in of_trial[trial.name]):
            return


def _mean(experiment: Experiment, jobs: list[Job], run: Callable[[list[Job]], list[str]]) -> float | None:
    """Run the jobs of a trial and return the mean score over its seeds; None if a seed has no score."""
    states = run(jobs)
    scores = [score(job.record() or {}, experiment.description["metric"]) for job in jobs]
    if set(states) != {"ok"} or None in scores:
        return None
    return sum(value for value, *_ in scores) / len(scores)
