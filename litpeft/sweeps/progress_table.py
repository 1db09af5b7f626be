"""What a sweep shows while it runs: a live table on a terminal, a line at each turn elsewhere."""

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

TAIL = 400  # bytes of a log in which its last line is looked for
SHOWN = 12  # trials that run, or ended last, are shown by themselves
COLOURS = {"ok": "green", "failed": "red", "oom": "red", "interrupted": "yellow", "running": "cyan"}


class Screen:
    """The state of all jobs.

    Args:
        jobs: of the sweep.
        metric: by which the best is chosen; None is by accuracy where there is one, else by loss.
    """

    def __init__(self, jobs: Sequence[Job], metric: str | None) -> None:
        self.jobs, self.metric = jobs, metric
        self.states = {job.name: job.state() for job in jobs}
        self.records = {job.name: job.record() for job in jobs if self.states[job.name] == "ok"}
        self.since: dict[str, float] = {}
        self.order = [job.name for job in jobs if self.states[job.name] != "waiting"]
        self.console = Console()

    def note(self, job: Job, state: str) -> None:
        """A trial has begun or ended."""
        self.states[job.name] = state
        self.order = [*(name for name in self.order if name != job.name), job.name]
        if state == "running":
            self.since[job.name] = time.monotonic()
        elif state == "ok":
            self.records[job.name] = job.record()
        if not self.console.is_terminal:
            told = self._told(job) if state == "ok" else _last_line(job.log) if state == "failed" else ""
            ended = sum(each not in ("waiting", "running") for each in self.states.values())
            print(f"[{ended}/{len(self.jobs)}] {job.name}: {state}{f', {told}' if told else ''}", flush=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=self.console, refresh_per_second=2):
            yield

    def table(self) -> Table:
        counts = Counter(self.states.values())
        parts = [f"{count} {state}" for state, count in counts.items()]
        table = Table(title=f"{len(self.jobs)} runs: {', '.join(parts)}", title_justify="left", caption=self.best())
        for column in ("trial", "state", "seconds", "last"):
            table.add_column(column, justify="right" if column == "seconds" else "left", no_wrap=column != "last")
        by_name = {job.name: job for job in self.jobs}
        running = [name for name in self.order if self.states[name] == "running"]
        ended = [name for name in self.order if self.states[name] != "running"]
        for name in [*ended[max(0, len(self.order) - SHOWN) :], *running]:
            state, job = self.states[name], by_name[name]
            seconds = time.monotonic() - self.since[name] if state == "running" else None
            if record := self.records.get(name):
                seconds = record["wall_seconds"]
            last = self._told(job) if state == "ok" else _last_line(job.log)
            cells = [f"{seconds:,.0f}" if seconds is not None else "", last]
            table.add_row(Text(name), Text(state, style=COLOURS.get(state, "")), *map(Text, cells))
        return table

    def best(self) -> str:
        """The best of the runs that have ended; one seed of one trial, and no verdict."""
        scores = {name: score(record, self.metric) for name, record in self.records.items()}
        known = {name: each for name, each in scores.items() if each is not None}
        if not known:
            return ""
        name = max(known, key=lambda name: known[name][0])
        _, metric, found = known[name]
        return f"best so far: {name}, {metric} {found:.4f}"

    def _told(self, job: Job) -> str:
        found = score(self.records[job.name], self.metric)
        return f"{found[1]} {found[2]:.4f}" if found else ""


def score(record: dict[str, Any], metric: str | None) -> tuple[float, str, float] | None:
    """(what is to be great, name, value) of the metric that a record is judged by; None where it has none."""
    names = [metric] if metric else ["val_accuracy", "val_loss"]
    for name in names:
        found = value(record, name)
        if found is not None:
            small = direction(name) == "lower" or name.endswith(("bytes", "seconds", "p50", "p95", "joules"))
            return (-found if small else found), name, found
    return None


def _last_line(log: Path) -> str:
    """What a trial has said last."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
