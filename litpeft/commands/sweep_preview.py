"""`litpeft sweep --dry_run`: list the trials and estimate the memory of each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from litpeft.commands.estimate import Plan
from litpeft.commands.estimate_output import MIB
from litpeft.errors import UserError
from litpeft.sweeps.experiment import Experiment, Trial


def preview(experiment: Experiment, device: str | None) -> int:
    """Print one row per trial and return exit code 0. Writes nothing and reads no weights.

    Args:
        experiment: the experiment to preview.
        device: value of `litpeft estimate --device`.
    """
    if experiment.description["question"]:
        print(experiment.description["question"])
    table = Table(title_justify="left")
    table.title = f"{len(experiment.trials)} trials x {len(experiment.seeds)} seeds"
    for column in ("trial", *experiment.axes, "trainable", "model MiB", "peak MiB", ""):
        table.add_column(column, justify="right" if column.endswith("MiB") or column == "trainable" else "left")
    console = Console()
    with console.status("estimating") as status:
        for trial in experiment.trials:
            status.update(f"estimating {trial.shown(trial.label)}")
            table.add_row(*map(Text, [*map(trial.shown, (trial.label, *trial.axes.values())), *_needed(trial, device)]))
    console.print(table)
    print("peak: tensors of a step on a CPU, reserved memory on a GPU; `litpeft estimate` shows details")
    return 0


def _needed(trial: Trial, device: str | None) -> list[str]:
    """Return table cells: trainable parameters, model size, peak memory, and whether it fits or why it is unknown."""
    try:
        plan = Plan([*trial.arguments, *(["--device", device] if device else [])])
        found = plan.trace(plan.task.adapter)
    except UserError as error:
        return ["n/a", "n/a", "n/a", str(error)]
    counts, needed = found.counts, plan.needed(found)
    fits = "" if plan.limit is None else "fits" if needed <= plan.limit else "does not fit"
    return [
        f"{counts['trainable_params']:,}",
        *(f"{size / MIB:,.1f}" for size in (counts["model_bytes"], needed)),
        fits,
    ]
