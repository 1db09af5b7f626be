"""`litpeft sweep --dry_run`: which trials there are, and what memory each will need."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from litpeft.commands.estimate import MIB, Plan
from litpeft.errors import UserError
from litpeft.sweeps.experiment import Experiment, Trial


def preview(experiment: Experiment, device: str | None) -> int:
    """Print a line a trial; nothing is written, no weights are read.

    Args:
        experiment: what is to be run.
        device: as `litpeft estimate --device` takes it.
    """
    if experiment.told["question"]:
        print(experiment.told["question"])
    table = Table(title_justify="left")
    table.title = f"{len(experiment.trials)} trials x {len(experiment.seeds)} seeds"
    for column in ("trial", *experiment.axes, "trained", "model MiB", "peak MiB", ""):
        table.add_column(column, justify="right" if column.endswith("MiB") or column == "trained" else "left")
    console = Console()
    with console.status("estimating") as status:
        for trial in experiment.trials:
            status.update(f"estimating {trial.label}")
            table.add_row(*map(Text, [trial.label, *trial.axes.values(), *_needed(trial, device)]))
    console.print(table)
    print("peak: of what a step holds in tensors; of a GPU, of what is reserved (litpeft estimate tells more)")
    return 0


def _needed(trial: Trial, device: str | None) -> list[str]:
    """Numbers trained, bytes of the model and at the peak; or why they are not known."""
    try:
        plan = Plan([*trial.words, *(["--device", device] if device else [])])
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
