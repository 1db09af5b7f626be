"""`litpeft sweep --dry_run`: list the trials and estimate the memory of each."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from litpeft.commands.estimate import Plan
from litpeft.commands.estimate_output import MIB
from litpeft.errors import UserError
from litpeft.sweeps.axes import shown_value
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import jobs_of, tuning_jobs_of

LONG = 300  # rows from which a table is formatted by hand: rich takes five seconds for 10,000
NO_MEMORY = re.compile(r"model\.(optimizer|scheduler)\.(?!class_path)")  # options that do not change the memory


def preview(experiment: Experiment, device: str | None) -> int:
    """Print one row per trial and return exit code 0. Writes nothing and reads no weights.

    Args:
        experiment: the experiment to preview.
        device: value of `litpeft estimate --device`.
    """
    if experiment.description["question"]:
        print(experiment.description["question"])
    title = f"{len(experiment.trials)} trials x {len(experiment.seeds)} seeds"
    tuned = any(trial.candidates for trial in experiment.trials)
    if tuned:
        tuning, final = (len(jobs(Path(), experiment)) for jobs in (tuning_jobs_of, jobs_of))
        seeds = ", ".join(map(str, experiment.tune_seeds))
        plural = "s" if len(experiment.tune_seeds) > 1 else ""
        title += f" = {final} runs, after {tuning} tuning runs (seed{plural} {seeds})"
    figures = "trainable", "model MiB", "peak MiB"
    headings = ["trial", *experiment.axes, *(["tune"] if tuned else []), *figures, "note"]
    rows: list[list[str]] = []
    console, reasons, known = Console(), dict[str, int](), dict[tuple[str, ...], tuple[float, list[str]]]()
    with console.status("estimating") as status:
        for trial in experiment.trials:
            status.update(f"estimating {trial.shown(trial.label)}")
            names = [*map(trial.shown, (trial.label, *trial.axes.values())), *([_values(trial)] if tuned else [])]
            rows.append([*names, *_most_needed(trial, device, reasons, known)])
    _print_table(title, headings, rows, figures, console)
    for reason, number in reasons.items():
        print(f"({number}) {reason}")
    print("peak: tensors of a step on a CPU, reserved memory on a GPU; `litpeft estimate` shows details")
    return 0


def _print_table(
    title: str, headings: list[str], rows: list[list[str]], figures: tuple[str, ...], console: Console
) -> None:
    """Print a table; the columns named in `figures` are aligned to the right."""
    if len(rows) < LONG:
        table = Table(title=title, title_justify="left")
        for heading in headings:
            table.add_column(heading, justify="right" if heading in figures else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    align = [str.rjust if heading in figures else str.ljust for heading in headings]
    print(title)
    for row in (headings, *rows):
        print("  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)).rstrip())


def _values(trial: Trial) -> str:
    """Return the values that a trial tries: `lr=0.001 0.003`."""
    options = trial.candidates[0].values if trial.candidates else ()
    tried = {name: dict.fromkeys(shown_value(name, each.values[name]) for each in trial.candidates) for name in options}
    return ", ".join(
        " ".join([next(iter(names)), *(name.partition("=")[2] for name in list(names)[1:])]) for names in tried.values()
    )


def _most_needed(
    trial: Trial, device: str | None, reasons: dict[str, int], known: dict[tuple[str, ...], tuple[float, list[str]]]
) -> list[str]:
    """Return the table cells of the candidate that needs the most memory, or of a trial without `tune`.

    Estimates are kept in `known`: arguments of the optimizer and of the schedule do not change the memory.
    """
    found = []
    for each in trial.candidates or (trial,):
        key = tuple(argument for argument in each.arguments if not NO_MEMORY.match(argument.removeprefix("--")))
        if key not in known:
            known[key] = _needed(each, device, reasons)
        found.append(known[key])
    return max(found, key=lambda item: item[0])[1]


def _needed(trial: Trial, device: str | None, reasons: dict[str, int]) -> tuple[float, list[str]]:
    """Return bytes of the peak, and table cells: parameters, model size, peak, and whether it fits or why unknown.

    Why an estimate is unknown is added to `reasons`, whose numbers stand in the cells: trials often share a reason.
    """
    try:
        plan = Plan([*trial.arguments, *(["--device", device] if device else [])])
        found = plan.trace(plan.task.adapter)
    except UserError as error:
        number = reasons.setdefault(str(error), len(reasons) + 1)
        return 0, ["n/a", "n/a", "n/a", f"unknown ({number})"]
    counts, needed = found.counts, plan.needed(found)
    fits = "" if plan.limit is None else "fits" if needed <= plan.limit else "does not fit"
    return needed, [
        f"{counts['trainable_params']:,}",
        *(f"{size / MIB:,.1f}" for size in (counts["model_bytes"], needed)),
        fits,
    ]
