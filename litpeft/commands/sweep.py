"""`litpeft sweep`: run an experiment, or continue it where it stopped."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.sweep_folder import Tuned, read_sweep
from litpeft.analysis.comparison.tuning import tuning_sentences
from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError, did_you_mean
from litpeft.sweeps.experiment import Experiment, Trial, read_experiment
from litpeft.sweeps.folder import Job, jobs_of, locked_sweep, tuning_jobs_of, write_sweep
from litpeft.sweeps.launchers import LAUNCHERS

DESCRIPTION = """run every trial of an experiment with every seed, each in a separate process and folder

After an interruption, the same command runs the missing trials and resumes the interrupted ones. Other options
(--data.train_file FILE, --trainer.max_steps 10) apply to all trials and override the file. If the experiment has
`tune`, each trial first chooses its values by runs with other seeds.
"""


def main(arguments: list[str]) -> int:
    parser = CommandParser("sweep", description=DESCRIPTION)
    parser.add_argument("experiment", help="an experiment file, or the name of a packaged experiment")
    parser.add_argument("--dir", type=Path, help="folder of the sweep (default: runs/EXPERIMENT)")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list the trials and the memory that each needs"
    )
    parser.add_argument("--device", help="with --dry_run: the device, as in `litpeft estimate --device`")
    parser.add_argument("--jobs", type=int, default=1, help="number of trials at the same time (default: 1)")
    parser.add_argument("--retry", action="store_true", help="rerun trials that failed or ran out of memory")
    parser.add_argument(
        "--select",
        choices=["optuna"],
        help="search among the trials instead of running all; with `tune`: among the values that each trial tries",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=20,
        help="with --select: number of trials to run, or of values that each trial tries (default: 20)",
    )
    parser.add_argument("--launcher", choices=list(LAUNCHERS), default="local", help="where trials run")
    parser.add_argument(
        "--address", help="with --launcher ray: address of the cluster (default: start one on this machine)"
    )
    parser.add_argument("--cpus", type=int, default=1, help="with ray and slurm: CPUs per trial (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="with ray and slurm: GPUs per trial (default: 0)")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="sbatch option: partition=gpu, time=120 (minutes)",
    )
    options, others = parser.parse_known_args(arguments)
    experiment = read_experiment(options.experiment, _settings(others, list(parser._option_string_actions)))
    if options.jobs < 1 or options.trials < 1:
        raise UserError("--jobs and --trials must be at least 1.")
    from litpeft.cli.console import quieten
    from litpeft.sweeps.resolve import resolve, varying  # imports torch; mistakes above are reported before
    from litpeft.sweeps.tuning import kept_choices  # imports rich, see litpeft/cli/console.py

    quieten()
    try:
        configs = resolve(experiment.to_resolve())
    except UserError as error:
        raise UserError(f"{options.experiment}: {error}") from error
    if options.dry_run:
        from litpeft.commands.sweep_preview import preview

        return preview(experiment, options.device)
    root = options.dir or Path("runs") / experiment.name
    jobs, tuning_jobs = jobs_of(root, experiment), tuning_jobs_of(root, experiment)
    with locked_sweep(root, [*tuning_jobs, *jobs]):
        kept = kept_choices(root, experiment)
        write = partial(write_sweep, root, experiment, configs, varying(configs.values()))
        write(kept)
        return _Sweep(root, experiment, options, jobs, tuning_jobs, kept, write).run()


def _settings(arguments: list[str], known: list[str]) -> dict[str, str]:
    """Return the options for all trials, option -> value; `known` are the options of sweep, for suggestions."""
    settings, rest = {}, iter(arguments)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"litpeft sweep: unknown argument {word!r}; see litpeft sweep --help.")
        if "." not in key and (guess := did_you_mean(f"--{key}", known)):
            raise UserError(f"litpeft sweep: unknown option --{key}{guess}.")
        settings[key] = value if equals else next(rest, "")
    return settings


class _Sweep:
    """The jobs of a sweep and their launcher.

    Args:
        root: folder of the sweep.
        experiment: the experiment.
        options: options of the command line.
        jobs: a job for every trial and seed.
        tuning_jobs: a job for every candidate and seed of `tune_seeds`.
        choices: {name of a trial: its choice} of the trials that have started; their tuning is not repeated.
        write: writes `sweep.yaml` and the configurations of the trials with these choices.
    """

    def __init__(
        self,
        root: Path,
        experiment: Experiment,
        options: argparse.Namespace,
        jobs: list[Job],
        tuning_jobs: list[Job],
        choices: dict[str, Tuned],
        write: Callable[[dict[str, Tuned]], None],
    ) -> None:
        from litpeft.sweeps.progress_table import Screen

        self.root, self.experiment, self.options, self.choices, self.write = root, experiment, options, choices, write
        self.jobs = jobs
        settled = {each.name for trial in experiment.trials if trial.name in choices for each in trial.candidates}
        self.tuning_jobs = [job for job in tuning_jobs if job.trial.name not in settled]
        self.jobs_of_candidate: dict[str, list[Job]] = {}
        for job in self.tuning_jobs:
            self.jobs_of_candidate.setdefault(job.trial.name, []).append(job)
        slurm = dict(pair.partition("=")[::2] for pair in options.slurm)
        self.launch = LAUNCHERS[options.launcher](
            jobs=options.jobs,
            address=options.address,
            cpus=options.cpus,
            gpus=options.gpus,
            folder=root / "slurm",
            slurm=slurm,
        )
        self.screen = Screen(self._all_jobs(), experiment.description["metric"])
        self.stopped: int | None = None

    def run(self) -> int:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._stop)
        with self.screen.live(), ThreadPoolExecutor(self.options.jobs) as pool:
            if self.options.select and self.options.retry:  # a search does not come back to what has failed
                self._together(pool, [job for job in self._all_jobs() if job.state() in ("failed", "oom")])
            if self.options.select and not any(trial.candidates for trial in self.experiment.trials):
                from litpeft.sweeps.search import search

                at_once = max(1, self.options.jobs // len(self.experiment.seeds))
                run = partial(self._together, pool)
                search(self.root, self.experiment, self.jobs, self.options.trials, run, at_once)
            else:
                self._tune(pool)
                if self.stopped is None:
                    self._choose()
                chosen = {trial.name for trial in self.experiment.trials if self._ready(trial)}
                self._together(pool, [job for job in self.jobs if job.trial.name in chosen])
        self.launch.close()
        return self._summary()

    def _tune(self, pool: ThreadPoolExecutor) -> None:
        """Run the tuning runs: all of them, or those that a search chooses for each trial."""
        if not self.options.select:
            self._together(pool, self.tuning_jobs)
            return
        from litpeft.sweeps.search import search_values

        def search(trial: Trial) -> None:
            jobs = self._tuning_jobs_of(trial)
            if jobs and self.stopped is None:
                run = partial(self._together, pool)
                search_values(self.root, self.experiment, trial, jobs, self.options.trials, run)

        with ThreadPoolExecutor(self.options.jobs) as searches:  # one search rarely has more than one run to do
            list(searches.map(search, self.experiment.trials))

    def _all_jobs(self) -> list[Job]:
        return [*self.tuning_jobs, *self.jobs]

    def _tuning_jobs_of(self, trial: Trial) -> list[Job]:
        return [job for each in trial.candidates for job in self.jobs_of_candidate.get(each.name, ())]

    def _are_tuned(self, jobs: list[Job]) -> bool:
        """Return whether all of the tuning jobs of a trial have ended, or as many as the search may run."""
        of_values: dict[str, list[str]] = {}
        for job in jobs:
            of_values.setdefault(job.trial.name, []).append(job.state())
        tried = [states for states in of_values.values() if set(states) != {"waiting"}]
        enough = min(self.options.trials, len(of_values)) if self.options.select else len(of_values)
        return len(tried) >= enough and all(set(states) <= {"ok", "failed", "oom"} for states in tried)

    def _choose(self) -> None:
        """Choose the values of the trials that have not started, write the choices and print them."""
        from litpeft.sweeps.tuning import choose

        metric = self.experiment.description["metric"]
        for trial in self.experiment.trials:
            jobs = self._tuning_jobs_of(trial)
            if trial.candidates and trial.name not in self.choices and self._are_tuned(jobs):
                self.choices[trial.name] = choose(trial, self.experiment.tune_seeds, jobs, metric)
        if not self.choices:
            return
        self.write(self.choices)
        shown = {trial.name: trial.shown(trial.label) for trial in self.experiment.trials}
        sweep = read_sweep(self.root)
        sweep = replace(sweep, trials=[replace(trial, label=shown[trial.name]) for trial in sweep.trials])
        for sentences in tuning_sentences(sweep):
            for sentence in sentences:
                self.screen.say(sentence)

    def _ready(self, trial: Trial) -> bool:
        """Return whether a trial has all its values."""
        return not trial.candidates or (trial.name in self.choices and self.choices[trial.name].chosen is not None)

    def _together(self, pool: ThreadPoolExecutor, jobs: list[Job]) -> list[str]:
        """Run these jobs, at most --jobs at the same time, and return their final states."""
        left = [job for job in jobs if self.screen.states[job.name] != "ok"]  # in the records read at the start
        states = ["ok"] * (len(jobs) - len(left))
        waiting: set[Future[str]] = {pool.submit(self._do, job) for job in left}
        while waiting:  # the timeout lets signals in
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            states += [future.result() for future in done]
        return states

    def _do(self, job: Job) -> str:
        """Run a job unless it has ended, and return its state."""
        arguments = job.arguments(self.options.retry)
        if arguments is None or self.stopped is not None:
            return job.state()
        self.screen.update(job, "running")
        with open(job.log, "a", encoding="utf-8") as log:
            log.write(f"$ litpeft {shlex.join(arguments)}\n")
        try:
            code = self.launch(arguments, job.log)
        except Exception as error:  # from Ray or SLURM: a cancelled task, a lost node
            code = 1
            with open(job.log, "a", encoding="utf-8") as log:
                log.write(f"{type(error).__name__}: {error}\n")
        state = job.state()
        # failed outside of training, or killed (by the out-of-memory killer, for example)
        if code and self.stopped is None and state in ("waiting", "ok", "interrupted"):
            state = "failed"
        self.screen.update(job, state)
        return state

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped is None:
            self.stopped = number
            print("litpeft: stopping the sweep; running trials save and end ...", file=sys.stderr)
            self.launch.stop()

    def _summary(self) -> int:
        """Print the outcome and return the exit code: 0, 1 (some trials failed), 130 or 143 (interrupted)."""
        states = self.screen.states
        if best := self.screen.best():
            print(best)
        failed = [job for job in self._all_jobs() if states[job.name] in ("failed", "oom")]
        settled = {each.name for trial in self.experiment.trials if self._ready(trial) for each in trial.candidates}
        bad = [job for job in failed if job.trial.name not in settled]  # a value that failed was just not chosen
        for job in failed:
            record = job.record()
            reason = record["error"] if record and record["error"] else f"see {job.log}"
            print(f"litpeft: {job.name} {states[job.name]}: {reason}", file=sys.stderr)
        if bad:
            print("litpeft: after fixing the cause, rerun them with the same command and --retry.", file=sys.stderr)
        if self.stopped is not None:
            print("litpeft: interrupted; run the same command to continue.", file=sys.stderr)
            return 128 + self.stopped
        print(f"compare: litpeft compare {self.root}\nreport:  litpeft report {self.root}")
        return 1 if bad else 0
