"""Progress of a sweep: a live table on a terminal, otherwise one line per event."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from litpeft.analysis.comparison.figures import direction, value
from litpeft.errors import UserError
from litpeft.sweeps.folder import Job

TAIL = 400  # bytes at the end of a log that are searched for its last line
SHOWN = 12  # number of jobs in the table: running jobs and the last to end
COLOURS = {"ok": "green", "failed": "red", "oom": "red", "interrupted": "yellow", "running": "cyan"}


class Screen:
    """Show the state of all jobs.

    Args:
        jobs: all jobs of the sweep.
        metric: metric of the best run; None: val_accuracy if known, else val_loss.
    """

    def __init__(self, jobs: Sequence[Job], metric: str | None) -> None:
        self.jobs, self.metric = jobs, metric
        self.by_name = {job.name: job for job in jobs}
        self.states: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, float | None] = {}  # of finished jobs
        self.scores: dict[str, tuple[float, str, float]] = {}  # of finished jobs that have the metric
        self.start_times: dict[str, float] = {}
        self.order: dict[str, None] = {}  # started jobs, the last to change at the end
        self.best_name: str | None = None
        self.console = Console()
        self.guard = threading.Lock()  # jobs end in threads, and the table is drawn in another
        for job in jobs:
            record = job.record()
            self._set(job, record["status"] if record else "waiting", record)

    def update(self, job: Job, state: str) -> None:
        """Record that a job has started or ended."""
        if state == "running":
            self.start_times[job.name] = time.monotonic()
        self._set(job, state, job.record() if state == "ok" else None)
        if not self.console.is_terminal:
            detail = {"ok": self._score(job), "running": f"output in {job.log}"}.get(state, "")
            detail = _last_line(job.log) if state == "failed" else detail
            ended = len(self.states) - self.counts["waiting"] - self.counts["running"]
            print(f"[{ended}/{len(self.jobs)}] {job.name}: {state}{f', {detail}' if detail else ''}", flush=True)

    def _set(self, job: Job, state: str, record: dict[str, Any] | None) -> None:
        """Keep the state of a job, and of a finished job what the table shows of its record."""
        name = job.name
        with self.guard:
            self._move(name, state)
        if state != "ok" or record is None:
            return
        self.seconds[name] = record["wall_seconds"]
        found = score(record, self.metric)
        if found is None or found[0] is None or job.trial.values:  # a tuning run is no result
            self.scores |= {name: found} if found else {}
            return
        again, self.scores[name] = name == self.best_name, found
        if again:  # it ran again, so another may be the best now
            ranked = [each for each, (score, *_) in self.scores.items() if score is not None]
            results = [each for each in ranked if not self.by_name[each].trial.values]
            self.best_name = max(results, key=lambda each: self.scores[each][0])
        elif self.best_name is None or found[0] > self.scores[self.best_name][0]:
            self.best_name = name

    def _move(self, name: str, state: str) -> None:
        """Set the state of a job, and put it at the end of those that have started."""
        if name in self.states:
            self.counts[self.states[name]] -= 1
        self.states[name] = state
        self.counts[state] += 1
        self.order.pop(name, None)
        if state != "waiting":
            self.order[name] = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Context manager: on a terminal, show and refresh the table."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=self.console, refresh_per_second=2):
            yield

    def say(self, sentence: str) -> None:
        """Print a sentence, above the table on a terminal."""
        self.console.print(Text(sentence), soft_wrap=True)

    def table(self) -> Table:
        parts = [f"{count} {state}" for state, count in self.counts.items() if count]
        table = Table(title=f"{len(self.jobs)} runs: {', '.join(parts)}", title_justify="left", caption=self.best())
        for column in ("trial", "state", "seconds", "last output"):
            table.add_column(
                column, justify="right" if column == "seconds" else "left", no_wrap=column != "last output"
            )
        with self.guard:
            shown = self._shown()
        for name in shown:
            state, job = self.states[name], self.by_name[name]
            seconds = time.monotonic() - self.start_times[name] if state == "running" else None
            seconds = self.seconds.get(name, seconds)
            last = self._score(job) if state == "ok" else _last_line(job.log)
            cells = [f"{seconds:,.0f}" if seconds is not None else "", last]
            table.add_row(Text(name), Text(state, style=COLOURS.get(state, "")), *map(Text, cells))
        return table

    def best(self) -> str:
        """Return a line with the best finished run so far, a single seed without any test, and how many equal it."""
        if self.best_name is None:
            return ""
        best, metric, found = self.scores[self.best_name]
        equal = [name for name, each in list(self.scores.items()) if each[0] == best]  # a copy: jobs end in threads
        others = sum(not self.by_name[name].trial.values for name in equal) - 1
        said = f" ({others:,} more {'run equals' if others == 1 else 'runs equal'} it)" if others else ""
        return f"best so far: {self.best_name}, {metric} {found:.4f}{said}"

    def _shown(self) -> list[str]:
        """Return the jobs in the table: all that run, below the last to end."""
        left, ended, running = self.counts["running"], list[str](), list[str]()
        for name in reversed(self.order):
            if self.states[name] == "running":
                running.append(name)
                left -= 1
            elif len(ended) < SHOWN - self.counts["running"]:
                ended.append(name)
            elif not left:
                break
        return [*reversed(ended), *reversed(running)]

    def _score(self, job: Job) -> str:
        found = self.scores.get(job.name)
        return f"{found[1]} {found[2]:.4f}" if found else ""


def score(record: dict[str, Any], metric: str | None) -> tuple[float | None, str, float] | None:
    """Return (score, higher is better; name; value) of the metric of a record; None if the record does not have it.

    Without `metric` it is the record's first main metric, undefined or not: another one would not compare with it. The
    score is None if it is unknown whether higher or lower values of the metric are better.
    """
    names = [metric] if metric else (record.get("main_metrics") or ())[:1] or ("val_accuracy", "val_loss")
    for name in names:
        found = value(record, name)
        if found is not None:
            better = direction(name, record.get("metric_directions"))
            if better is None and name.endswith(("bytes", "seconds", "p50", "p95", "joules")):
                better = "lower"
            return {"lower": -found, "higher": found}.get(better), name, found
    return None


def rank(record: dict[str, Any], metric: str | None) -> tuple[float, str, float] | None:
    """Return the `score` of a record among whose runs one is to be chosen.

    Raises:
        UserError: it is unknown whether higher or lower values of the metric are better.
    """
    found = score(record, metric)
    if found and found[0] is None:
        raise UserError(
            f"metric {found[1]}: it is unknown whether higher or lower values are better, so none can be chosen; name "
            "another metric, or give its class `higher_is_better`, and run the command again."
        )
    return found


def _last_line(log: Path) -> str:
    """Return the last line that a trial has printed."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
