"""`--select optuna`: choose which trials to run next by what the ones before gave (Akiba et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from litpeft.errors import UserError
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import Job
from litpeft.sweeps.progress_table import score

STORAGE = "optuna.log"  # in the sweep's folder


def search(
    root: Path,
    experiment: Experiment,
    jobs: list[Job],
    budget: int,
    run: Callable[[list[Job]], list[str]],
) -> None:
    """Run up to `budget` different trials, each with all its seeds, as a tree of Parzen estimators says.

    Args:
        root: the sweep's folder, where the study is kept; it is gone on with.
        experiment: whose axes are searched.
        jobs: every trial with every seed.
        budget: how many trials, those of earlier searches included.
        run: runs those of these jobs that have not run, beside each other, and returns how they stand.

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
    for cut in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # of a search that was killed
        study.tell(cut.number, state=optuna.trial.TrialState.FAIL)
    of_trial: dict[str, list[Job]] = {}
    for job in jobs:
        of_trial.setdefault(job.trial.name, []).append(job)
    by_axes = {tuple(trial.axes.values()): trial for trial in experiment.trials}
    values = {axis: list(dict.fromkeys(t.axes[axis] for t in experiment.trials)) for axis in experiment.axes}
    tried = {
        name for name, own in of_trial.items() if all(job.state() not in ("waiting", "interrupted") for job in own)
    }
    for name, own in of_trial.items():  # what was begun is ended first: nothing says that it would be asked for again
        if name not in tried and any(job.state() != "waiting" for job in own):
            study.enqueue_trial(own[0].trial.axes)
    for _ in range(20 * budget):  # what was tried before comes again at times, and costs nothing
        if len(tried) >= min(budget, len(by_axes)):
            return
        asked = study.ask()
        point = tuple(asked.suggest_categorical(axis, names) for axis, names in values.items())
        trial: Trial | None = by_axes.get(point)
        if trial is None:  # excluded
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
            continue
        tried.add(trial.name)
        mean = _mean(experiment, of_trial[trial.name], run)
        if mean is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, mean)
        if any(job.state() == "interrupted" for job in of_trial[trial.name]):
            return


def _mean(experiment: Experiment, jobs: list[Job], run: Callable[[list[Job]], list[str]]) -> float | None:
    """Over the seeds, of the figure that is to be great; None where a seed has none."""
    states = run(jobs)
    scores = [score(job.record() or {}, experiment.told["metric"]) for job in jobs]
    if set(states) != {"ok"} or None in scores:
        return None
    return sum(each[0] for each in scores) / len(scores)
