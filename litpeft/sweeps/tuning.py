"""Choose the values of `tune` for each trial from the records of its tuning runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from litpeft.analysis.comparison.results import Tried, Tuned
from litpeft.analysis.comparison.sweep_folder import read_sweep
from litpeft.errors import UserError
from litpeft.runs.record import FILE_NAME
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import Job
from litpeft.sweeps.progress_table import rank, score


def kept_choices(root: Path, experiment: Experiment) -> dict[str, Tuned]:
    """Return {name of a trial: its choice} of the trials whose runs have started; these choices must not change.

    Raises:
        UserError: a trial has started, and its values or tuning seeds have changed since.
    """
    if not any(trial.candidates for trial in experiment.trials):
        return {}
    sweep = read_sweep(root)
    written = {trial.name: trial.tuned for trial in sweep.trials if trial.tuned} if sweep else {}
    kept = {}
    for trial in experiment.trials:
        if not trial.candidates or not any((root / trial.name).glob(f"seed*/{FILE_NAME}")):
            continue
        tuned = written.get(trial.name)
        if tuned is None or tuned.chosen is None or not _same_search(trial, experiment.tune_seeds, tuned):
            raise UserError(
                f"{root}: trial {trial.shown(trial.label)} was started with other values or seeds of tune; "
                "give another --dir, or restore the experiment file."
            )
        kept[trial.name] = tuned
    return kept


def choose(trial: Trial, seeds: Sequence[int], jobs: Sequence[Job], metric: str | None) -> Tuned:
    """Return the choice of a trial: the combination of values with the best mean of the metric.

    A combination of which a run failed, or has no value of the metric, is not chosen. Of equal means, the first wins.
    A combination without any run was left out by a search.

    Args:
        trial: the trial, with its candidates.
        seeds: seeds of the tuning runs.
        jobs: the tuning jobs of the trial; none if the trial has a single candidate.
        metric: metric of the experiment; None: the main metric of the runs, else val_accuracy, else val_loss.

    Raises:
        UserError: it is unknown whether higher or lower values of the metric are better.
    """
    if len(trial.candidates) == 1:
        values = trial.candidates[0].values
        return Tuned(None, [], [Tried(values, None, 0)], values, {})
    records: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        if record := job.record():
            records.setdefault(job.trial.name, []).append(record)
    finished = [record for each in records.values() for record in each if record["status"] == "ok"]
    metric = metric or _main_metric(finished)
    tried, best, chosen = [], None, None
    for candidate in trial.candidates:
        if candidate.name not in records:
            tried.append(Tried(candidate.values, None, None))
            continue
        ended = [record for record in records[candidate.name] if record["status"] == "ok"]
        scores = [found for record in ended if metric and (found := rank(record, metric))]
        complete = len(scores) == len(seeds)
        tried.append(Tried(candidate.values, fmean(each[2] for each in scores) if complete else None, len(scores)))
        if complete and (best is None or fmean(each[0] for each in scores) > best):
            best, chosen = fmean(each[0] for each in scores), candidate.values
    return Tuned(metric, seeds, tried, chosen, _edges(chosen or {}, [each.values for each in trial.candidates]))


def _edges(chosen: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return {option: "lowest" or "highest"} of the chosen numbers at the edge of the values tried."""
    edges = {}
    for option, value in chosen.items():
        values = [each[option] for each in tried]
        if all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values):
            lowest, highest = min(values), max(values)
            if lowest < highest and value in (lowest, highest):
                edges[option] = "lowest" if value == lowest else "highest"
    return edges


def _main_metric(records: Sequence[dict[str, Any]]) -> str | None:
    """Return the main metric of the runs, else val_accuracy, else val_loss: the first that any run has."""
    names = [*((records[0].get("main_metrics") or ())[:1] if records else ()), "val_accuracy", "val_loss"]
    return next((name for name in names if any(score(record, name) for record in records)), None)


def _same_search(trial: Trial, seeds: Sequence[int], tuned: Tuned) -> bool:
    """Return whether a choice was made among the candidates of the trial with these seeds."""
    now, before = ([dict(each.values) for each in some] for some in (trial.candidates, tuned.tried))
    same_values = len(now) == len(before) and all(each in before for each in now)
    return same_values and (len(now) == 1 or list(tuned.seeds) == list(seeds))
