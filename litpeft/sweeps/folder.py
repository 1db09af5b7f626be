"""The folder of a sweep: write its description, report the state of its jobs, and lock it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from litpeft.analysis.comparison.options import short_key
from litpeft.analysis.comparison.sweep_folder import FILE, Tuned
from litpeft.errors import UserError
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.folder import changed_options, newest_checkpoint
from litpeft.runs.lock import FolderInUse, is_locked, lock, wait_until_free
from litpeft.runs.record import FILE_NAME, read_record
from litpeft.sweeps.experiment import Experiment, Trial

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the first is ten times as fast
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
        experiment: name of the experiment in the run record.
    """

    trial: Trial
    seed: int
    run_dir: Path
    log: Path
    config: Path
    experiment: str

    @cached_property
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
        arguments += [str(self.run_dir), "--experiment", self.experiment]
        state = self.state()
        if state == "ok" or (state in ("failed", "oom") and not retry):
            return None
        if state == "interrupted" and newest_checkpoint(self.run_dir) is not None:
            return [*arguments, "--resume"]
        return [*arguments, "--overwrite"]


def jobs_of(root: Path, experiment: Experiment) -> list[Job]:
    """Return a job for every trial and seed, ordered by seed first."""
    return _jobs(root, experiment.trials, experiment.seeds)


def tuning_jobs_of(root: Path, experiment: Experiment) -> list[Job]:
    """Return a job for every candidate and seed of `tune_seeds`; none for a trial with a single candidate."""
    candidates = [each for trial in experiment.trials if len(trial.candidates) > 1 for each in trial.candidates]
    return _jobs(root, candidates, experiment.tune_seeds)


def _jobs(root: Path, trials: Sequence[Trial], seeds: Sequence[int]) -> list[Job]:
    logs, configs = root / LOGS, root / TRIALS  # made once: there may be many thousands of trials
    return [
        Job(
            trial,
            seed,
            root / trial.name / f"seed{seed}",
            logs / f"{trial.name}-seed{seed}.log",
            configs / f"{trial.name}.yaml",
            root.name,
        )
        for seed in seeds
        for trial in trials
    ]


def write_sweep(
    root: Path,
    experiment: Experiment,
    configs: Mapping[str, dict[str, Any]],
    varies: list[str],
    choices: Mapping[str, Tuned] | None = None,
) -> None:
    """Write `sweep.yaml` and the configurations of all trials.

    When a sweep is continued, trials and seeds may be added and the description may change.

    Args:
        root: folder of the sweep.
        experiment: the experiment.
        configs: {name of a candidate, or of a trial without `tune`: resolved configuration}.
        varies: options in which the trials differ.
        choices: {name of a trial with `tune`: its choice}; a trial without a choice gets no configuration.

    Raises:
        UserError: the configuration of a trial has changed since the trial was started.
    """
    choices = choices or {}
    settled = {}
    for trial in experiment.trials:
        chosen = choices[trial.name].chosen if trial.name in choices else None
        source = next((each for each in trial.candidates if each.values == chosen), None)
        if source or not trial.candidates:
            settled[trial.name] = trial, experiment.seeds, configs[source.name if source else trial.name]
        for each in trial.candidates:
            settled[each.name] = each, experiment.tune_seeds, _without_benchmarks(configs[each.name])
    new, text, folder = {}, YamlText(), root / TRIALS
    for name, (trial, seeds, config) in settled.items():
        path, written = folder / f"{name}.yaml", f"# litpeft fit --config {name}.yaml\n{text(config)}"
        if not _has_text(path, written):  # else the trial was started, if at all, with this file
            _check_unchanged(root, trial, seeds, config)
            new[path] = written
    inner = {name.rpartition("/")[0] for name in settled}
    for folder in (root / kind / each for each in inner for kind in (TRIALS, LOGS)):
        folder.mkdir(parents=True, exist_ok=True)
    for path, written in new.items():
        write_atomically(path, written)
    content = {"experiment": experiment.name, "axes": list(experiment.axes)} | experiment.description
    content |= {"varies": varies}
    content["trials"] = [
        {"name": each.name, "label": each.label, "axes": each.axes}
        | ({"tuned": choices[each.name].as_dict()} if each.name in choices else {})
        for each in experiment.trials
    ]
    content["seeds"] = experiment.seeds
    description = yaml.dump(content, Dumper=DUMPER, sort_keys=False, allow_unicode=True)
    if not _has_text(root / FILE, description):
        write_atomically(root / FILE, description)


def _has_text(path: Path, text: str) -> bool:
    """Return whether a file has this text; to force thousands of unchanged files to disk would take minutes."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


class YamlText:
    """Writes configurations as YAML, and keeps the text of each part: trials share most of theirs."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, str], str] = {}  # id of a mapping, which must stay alive, and indentation -> text
        self._values: dict[tuple[str, type, str, str], str] = {}

    def __call__(self, config: dict[str, Any], indent: str = "") -> str:
        name = id(config), indent
        if name not in self._parts:
            self._parts[name] = "".join([self._entry(key, value, indent) for key, value in config.items()])
        return self._parts[name]

    def _entry(self, key: str, value: Any, indent: str) -> str:
        if isinstance(value, dict) and value:
            return self._value(key, {}, indent).removesuffix(" {}\n") + "\n" + self(value, f"{indent}  ")
        return self._value(key, value, indent)

    def _value(self, key: str, value: Any, indent: str) -> str:
        name = key, type(value), repr(value), indent
        if name not in self._values:
            text = yaml.dump({key: value}, Dumper=DUMPER, sort_keys=False)
            self._values[name] = "".join(indent + line for line in text.splitlines(keepends=True))
        return self._values[name]


def _check_unchanged(root: Path, trial: Trial, seeds: Sequence[int], config: dict[str, Any]) -> None:
    """Check that the runs of a trial were started with this configuration."""
    run_dirs = [root / trial.name / f"seed{seed}" for seed in seeds]
    for record in (read_record(run_dir) for run_dir in run_dirs if (run_dir / FILE_NAME).is_file()):
        before = {key: value for key, value in (record["config"] or {}).items() if key != "seed_everything"}
        now = {key: value for key, value in config.items() if key != "seed_everything"}
        for name, (old, new) in changed_options(before, now).items() if before and before != now else ():
            raise UserError(
                f"{root}: trial {trial.shown(trial.label)} was started with {short_key(name)} {old}, which is "
                f"now {new}; give another --dir, or restore the experiment file."
            )


def _without_benchmarks(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a tuning run: benchmarks have test rows, and a choice must not see them."""
    return config | ({"benchmarks": config["benchmarks"] | {"tasks": []}} if config.get("benchmarks") else {})


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
