"""The folder of a sweep: what its trials are, which of their runs stand where, and that one sweep works in it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from litpeft.comparison.sweep_folder import FILE
from litpeft.durable import write_atomically
from litpeft.errors import UserError
from litpeft.records import FILE_NAME, read_record
from litpeft.run_folder import changed_options, newest_checkpoint
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


def lay_out(root: Path, experiment: Experiment, configs: dict[str, dict[str, Any]], varies: list[str]) -> None:
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
def alone_in(root: Path) -> Iterator[int]:
    """Within, no other sweep works in this folder; gives the lock's file descriptor, to be handed to trials.

    As trials hold it too, it is free again only when the last of them has ended, also where the sweep was killed.

    Raises:
        UserError: another sweep does.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host, _, pid = os.pread(lock, 100, 0).decode().partition(" ")
            if host != socket.gethostname() or _lives(int(pid)):
                raise UserError(f"{root}: another sweep works in it (process {pid} on {host}).") from None
            print("waiting for the trials of a killed sweep to save and end ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{socket.gethostname()} {os.getpid()}".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
