"""`litpeft sweep`: run an experiment, and go on with it where it was left."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError
from litpeft.sweeps.experiment import Experiment, read_experiment
from litpeft.sweeps.folder import Job, jobs_of, locked_sweep, write_sweep
from litpeft.sweeps.launchers import LAUNCHERS

DESCRIPTION = """run every trial of an experiment with every seed, each in a process and a folder of its own

Killed or interrupted and started again, it runs what is missing and goes on with what was interrupted. Other options
(--data.train_file FILE, --trainer.max_steps 10) are set in all trials, after the file's own.
"""


def main(words: list[str]) -> int:
    parser = CommandParser("sweep", description=DESCRIPTION)
    parser.add_argument("experiment", help="a file, or the name of a shipped one")
    parser.add_argument("--dir", type=Path, help="folder of the sweep (default: runs/EXPERIMENT)")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="show the trials and the memory they need")
    parser.add_argument("--device", help="whose memory that is: as `litpeft estimate --device`")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once (default: 1)")
    parser.add_argument("--retry", action="store_true", help="run those that failed or ran out of memory again")
    parser.add_argument("--select", choices=["optuna"], help="search among the trials instead of running all of them")
    parser.add_argument("--trials", type=int, default=20, help="with --select: how many (default: 20)")
    parser.add_argument("--launcher", choices=list(LAUNCHERS), default="local", help="where trials run")
    parser.add_argument(
        "--address", help="with --launcher ray: of the cluster; by default one of this machine is begun"
    )
    parser.add_argument("--cpus", type=int, default=1, help="with ray and slurm: of a trial (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="with ray and slurm: of a trial (default: 0)")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="of sbatch: partition=gpu, time=120 (minutes)"
    )
    options, others = parser.parse_known_args(words)
    experiment = read_experiment(options.experiment, _settings(others))
    if options.jobs < 1 or options.trials < 1:
        raise UserError("--jobs and --trials must be at least 1.")
    from litpeft.cli.console import quieten
    from litpeft.sweeps.resolve import resolve, varying  # these need torch, and all that is wrong above is told before

    quieten()
    try:
        configs = resolve(experiment.trials)
    except UserError as error:
        raise UserError(f"{options.experiment}: {error}") from error
    if options.dry_run:
        from litpeft.commands.sweep_preview import preview

        return preview(experiment, options.device)
    root = options.dir or Path("runs") / experiment.name
    jobs = jobs_of(root, experiment)
    with locked_sweep(root, jobs):
        write_sweep(root, experiment, configs, varying(configs.values()))
        return _Sweep(root, experiment, options, jobs).run()


def _settings(words: list[str]) -> dict[str, str]:
    """Options for all trials, as typed."""
    settings, rest = {}, iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"litpeft sweep: unknown argument {word!r}; see litpeft sweep --help.")
        settings[key] = value if equals else next(rest, "")
    return settings


class _Sweep:
    """The jobs of a sweep, and those of them that run."""

    def __init__(self, root: Path, experiment: Experiment, options: argparse.Namespace, jobs: list[Job]) -> None:
        from litpeft.sweeps.progress_table import Screen

        self.root, self.experiment, self.options = root, experiment, options
        self.jobs = jobs
        slurm = dict(pair.partition("=")[::2] for pair in options.slurm)
        self.launch = LAUNCHERS[options.launcher](
            jobs=options.jobs,
            address=options.address,
            cpus=options.cpus,
            gpus=options.gpus,
            folder=root / "slurm",
            slurm=slurm,
        )
        self.screen = Screen(self.jobs, experiment.told["metric"])
        self.stopped: int | None = None

    def run(self) -> int:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._stop)
        with self.screen.live(), ThreadPoolExecutor(self.options.jobs) as pool:
            if self.options.select:
                from litpeft.sweeps.search import search

                search(self.root, self.experiment, self.jobs, self.options.trials, partial(self._together, pool))
            else:
                self._together(pool, self.jobs)
        return self._told()

    def _together(self, pool: ThreadPoolExecutor, jobs: list[Job]) -> list[str]:
        """Run these jobs, as many at once as may, and return how they stand in the end."""
        waiting: set[Future[str]] = {pool.submit(self._do, job) for job in jobs}
        states = []
        while waiting:  # with a limit, or a signal would wait for the trial
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            states += [future.result() for future in done]
        return states

    def _do(self, job: Job) -> str:
        """Run a job if there is anything left to do, and return how it stands."""
        words = job.words(self.options.retry)
        if words is None or self.stopped is not None:
            return job.state()
        self.screen.note(job, "running")
        with open(job.log, "a", encoding="utf-8") as log:
            log.write(f"$ litpeft {shlex.join(words)}\n")
        try:
            code = self.launch(words, job.log)
        except Exception as error:  # of Ray or SLURM: a task that was cancelled, a node that is gone
            code = 1
            with open(job.log, "a", encoding="utf-8") as log:
                log.write(f"{type(error).__name__}: {error}\n")
        state = job.state()
        # it has failed before it could write its record, or after, or was killed: for want of memory, say
        if code and self.stopped is None and state in ("waiting", "ok", "interrupted"):
            state = "failed"
        self.screen.note(job, state)
        return state

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped is None:
            self.stopped = number
            print("litpeft: the sweep stops; trials save and end ...", file=sys.stderr)
            self.launch.stop()

    def _told(self) -> int:
        """What came of it; the exit code is 0, 1 (some trials failed), 130 or 143 (interrupted)."""
        states = self.screen.states
        if best := self.screen.best():
            print(best)
        bad = [job for job in self.jobs if states[job.name] in ("failed", "oom")]
        for job in bad:
            record = job.record()
            reason = record["error"] if record and record["error"] else f"see {job.log}"
            print(f"litpeft: {job.name} {states[job.name]}: {reason}", file=sys.stderr)
        if bad:
            print("litpeft: once the cause is mended, the same command with --retry runs them again.", file=sys.stderr)
        if self.stopped is not None:
            print("litpeft: interrupted; the same command goes on.", file=sys.stderr)
            return 128 + self.stopped
        print(f"compare: litpeft compare {self.root}\nreport:  litpeft report {self.root}")
        return 1 if bad else 0
