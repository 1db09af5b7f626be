"""The folder of a sweep: write its description, report the state of its jobs, and lock it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from litpeft.analysis.comparison.sweep_folder import FILE
from litpeft.errors import UserError
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.folder import changed_options, newest_checkpoint
from litpeft.runs.lock import FolderInUse, is_locked, lock, wait_until_free
from litpeft.runs.record import FILE_NAME, read_record
from litpeft.sweeps.experiment import Experiment, Trial

TRIALS = "trials"  # folder of the configurations of trials
LOGS = "logs"
State = Literal["waiting", "running", "ok", "failed", "oom", "interrupted"]


@dataclass
class Job:
    """One trial with one seed.

    Attributes:
        trial: the trial.
        seed: random seed.
        run_dir: run folder.
        log: file of the output.
        config: file of the configuration.
    """

    trial: Trial
    seed: int
    run_dir: Path
    log: Path
    config: Path

    @property
    def name(self) -> str:
        return f"{self.trial.shown(self.trial.label)} seed {self.seed}"

    def record(self) -> dict[str, Any] | None:
        return read_record(self.run_dir) if (self.run_dir / FILE_NAME).is_file() else None

    def state(self) -> State:
        """Return the status in the run record, `interrupted` while the job runs, or `waiting` without a record."""
        record = self.record()
        return record["status"] if record else "waiting"

    def arguments(self, retry: bool) -> list[str] | None:
        """Return the command line of `litpeft` for this job; None if nothing is left to do."""
        arguments = ["fit", "--config", str(self.config), "--seed_everything", str(self.seed), "--run_dir"]
        arguments += [str(self.run_dir), "--experiment", self.config.parent.parent.name]
        state = self.state()
        if state == "ok" or (state in ("failed", "oom") and not retry):
            return None
        if state == "interrupted" and newest_checkpoint(self.run_dir) is not None:
            return [*arguments, "--resume"]
        return [*arguments, "--overwrite"]


def jobs_of(root: Path, experiment: Experiment) -> list[Job]:
    """Return a job for every trial and seed, ordered by seed first."""
    return [
        Job(
            trial,
            seed,
            root / trial.name / f"seed{seed}",
            root / LOGS / f"{trial.name}-seed{seed}.log",
            root / TRIALS / f"{trial.name}.yaml",
        )
        for seed in experiment.seeds
        for trial in experiment.trials
    ]


def write_sweep(root: Path, experiment: Experiment, configs: dict[str, dict[str, Any]], varies: list[str]) -> None:
    """Write `sweep.yaml` and the configurations of all trials.

    When a sweep is continued, trials and seeds may be added and the description may change.

    Raises:
        UserError: the configuration of a trial has changed since the trial was started.
    """
    for trial in experiment.trials:
        run_dirs = [root / trial.name / f"seed{seed}" for seed in experiment.seeds]
        for record in (read_record(run_dir) for run_dir in run_dirs if (run_dir / FILE_NAME).is_file()):
            before = {key: value for key, value in (record["config"] or {}).items() if key != "seed_everything"}
            now = {key: value for key, value in configs[trial.name].items() if key != "seed_everything"}
            for name, (old, new) in changed_options(before, now).items() if before else ():
                raise UserError(
                    f"{root}: trial {trial.shown(trial.label)} was started with {name} {old}, which is now {new}; "
                    "give another --dir, or restore the experiment file."
                )
    (root / TRIALS).mkdir(parents=True, exist_ok=True)
    (root / LOGS).mkdir(exist_ok=True)
    for trial in experiment.trials:
        text = f"# litpeft fit --config {trial.name}.yaml\n{yaml.safe_dump(configs[trial.name], sort_keys=False)}"
        write_atomically(root / TRIALS / f"{trial.name}.yaml", text)
    content = {"experiment": experiment.name, "axes": list(experiment.axes)} | experiment.description
    content |= {"varies": varies}
    content["trials"] = [{"name": t.name, "label": t.label, "axes": t.axes} for t in experiment.trials]
    content["seeds"] = experiment.seeds
    write_atomically(root / FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


@contextmanager
def locked_sweep(root: Path, jobs: Sequence[Job]) -> Iterator[None]:
    """Lock the folder of a sweep inside the with block, after trials of a killed sweep have saved and ended.

    Raises:
        UserError: another sweep holds the lock, or the folder cannot be written to.
    """
    try:
        held = lock(root)
    except FolderInUse as error:
        raise UserError(f"{root}: another sweep is running in this folder ({error.holder}).") from None
    except OSError as error:
        raise UserError(f"--dir {root}: {error.strerror or error}.") from error
    with held:
        running = [job.run_dir for job in jobs if is_locked(job.run_dir)]
        if running:
            print("waiting for the trials of a killed sweep to save and end ...", flush=True)
        for run_dir in running:
            wait_until_free(run_dir)
        yield
