"""The folder of a sweep: what its trials are, which of their runs stand where, and that one sweep works in it."""

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

TRIALS = "trials"  # folder of their configurations
LOGS = "logs"
State = Literal["waiting", "running", "ok", "failed", "oom", "interrupted"]


@dataclass
class Job:
    """One trial with one seed.

    Attributes:
        trial: what is run.
        seed: with which seed.
        run_dir: where.
        log: what it says.
        config: file of its configuration.
    """

    trial: Trial
    seed: int
    run_dir: Path
    log: Path
    config: Path

    @property
    def name(self) -> str:
        return f"{self.trial.label} seed {self.seed}"

    def record(self) -> dict[str, Any] | None:
        return read_record(self.run_dir) if (self.run_dir / FILE_NAME).is_file() else None

    def state(self) -> State:
        """As its record tells; that of a run which is going on says `interrupted`."""
        record = self.record()
        return record["status"] if record else "waiting"

    def words(self, retry: bool) -> list[str] | None:
        """What `litpeft` is told so that the run gets done; None where nothing is left to do."""
        words = ["fit", "--config", str(self.config), "--seed_everything", str(self.seed), "--run_dir"]
        words += [str(self.run_dir), "--experiment", self.config.parent.parent.name]
        state = self.state()
        if state == "ok" or (state in ("failed", "oom") and not retry):
            return None
        if state == "interrupted" and newest_checkpoint(self.run_dir) is not None:
            return [*words, "--resume"]
        return [*words, "--overwrite"]


def jobs_of(root: Path, experiment: Experiment) -> list[Job]:
    """Every trial with every seed: all trials with the first seed come first, so that a table fills evenly."""
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
    """Write `sweep.yaml` and each trial's configuration, before any of them runs.

    A sweep that is gone on with may have more trials or seeds than before, and other words about them.

    Raises:
        UserError: a trial that was begun has another configuration now.
    """
    for trial in experiment.trials:
        begun = [root / trial.name / f"seed{seed}" for seed in experiment.seeds]
        for record in (read_record(run_dir) for run_dir in begun if (run_dir / FILE_NAME).is_file()):
            own = {key: value for key, value in (record["config"] or {}).items() if key != "seed_everything"}
            now = {key: value for key, value in configs[trial.name].items() if key != "seed_everything"}
            for name, (old, new) in changed_options(own, now).items() if own else ():
                raise UserError(
                    f"{root}: trial {trial.label} was begun with {name} {old}, and it is {new} now; "
                    "give another --dir, or put the experiment back as it was."
                )
    (root / TRIALS).mkdir(parents=True, exist_ok=True)
    (root / LOGS).mkdir(exist_ok=True)
    for trial in experiment.trials:
        text = f"# litpeft fit --config {trial.name}.yaml\n{yaml.safe_dump(configs[trial.name], sort_keys=False)}"
        write_atomically(root / TRIALS / f"{trial.name}.yaml", text)
    told = {"experiment": experiment.name, "axes": list(experiment.axes)} | experiment.told | {"varies": varies}
    told["trials"] = [{"name": t.name, "label": t.label, "axes": t.axes} for t in experiment.trials]
    told["seeds"] = experiment.seeds
    write_atomically(root / FILE, yaml.safe_dump(told, sort_keys=False, allow_unicode=True))


@contextmanager
def locked_sweep(root: Path, jobs: Sequence[Job]) -> Iterator[None]:
    """Hold the lock of a sweep's folder; first wait until trials of a killed sweep have saved and ended.

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
