"""Progress of a sweep: a live table on a terminal, otherwise one line per event."""

from __future__ import annotations

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
        self.states = {job.name: job.state() for job in jobs}
        self.records = {job.name: job.record() for job in jobs if self.states[job.name] == "ok"}
        self.start_times: dict[str, float] = {}
        self.order = [job.name for job in jobs if self.states[job.name] != "waiting"]
        self.console = Console()

    def update(self, job: Job, state: str) -> None:
        """Record that a job has started or ended."""
        self.states[job.name] = state
        self.order = [*(name for name in self.order if name != job.name), job.name]
        if state == "running":
            self.start_times[job.name] = time.monotonic()
        elif state == "ok":
            self.records[job.name] = job.record()
        if not self.console.is_terminal:
            detail = self._score(job) if state == "ok" else _last_line(job.log) if state == "failed" else ""
            ended = sum(each not in ("waiting", "running") for each in self.states.values())
            print(f"[{ended}/{len(self.jobs)}] {job.name}: {state}{f', {detail}' if detail else ''}", flush=True)

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
        counts = Counter(self.states.values())
        parts = [f"{count} {state}" for state, count in counts.items()]
        table = Table(title=f"{len(self.jobs)} runs: {', '.join(parts)}", title_justify="left", caption=self.best())
        for column in ("trial", "state", "seconds", "last output"):
            table.add_column(
                column, justify="right" if column == "seconds" else "left", no_wrap=column != "last output"
            )
        by_name = {job.name: job for job in self.jobs}
        running = [name for name in self.order if self.states[name] == "running"]
        ended = [name for name in self.order if self.states[name] != "running"]
        for name in [*ended[max(0, len(self.order) - SHOWN) :], *running]:
            state, job = self.states[name], by_name[name]
            seconds = time.monotonic() - self.start_times[name] if state == "running" else None
            if record := self.records.get(name):
                seconds = record["wall_seconds"]
            last = self._score(job) if state == "ok" else _last_line(job.log)
            cells = [f"{seconds:,.0f}" if seconds is not None else "", last]
            table.add_row(Text(name), Text(state, style=COLOURS.get(state, "")), *map(Text, cells))
        return table

    def best(self) -> str:
        """Return a line with the best finished run so far, a single seed without any test."""
        tuning = {job.name for job in self.jobs if job.trial.values}
        scores = {name: score(record, self.metric) for name, record in self.records.items() if name not in tuning}
        known = {name: each for name, each in scores.items() if each is not None}
        if not known:
            return ""
        name = max(known, key=lambda name: known[name][0])
        _, metric, found = known[name]
        return f"best so far: {name}, {metric} {found:.4f}"

    def _score(self, job: Job) -> str:
        found = score(self.records[job.name], self.metric)
        return f"{found[1]} {found[2]:.4f}" if found else ""


def score(record: dict[str, Any], metric: str | None) -> tuple[float, str, float] | None:
    """Return (score, higher is better; name; value) of the metric of a record; None if the record does not have it."""
    names = [metric] if metric else [*(record.get("main_metrics") or ())[:1], "val_accuracy", "val_loss"]
    for name in names:
        found = value(record, name)
        if found is not None:
            better = direction(name, record.get("metric_directions"))
            lower_is_better = better == "lower" or name.endswith(("bytes", "seconds", "p50", "p95", "joules"))
            return (-found if lower_is_better else found), name, found
    return None


def _last_line(log: Path) -> str:
    """Return the last line that a trial has printed."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
