"""Command-line options of `litpeft compare` and `litpeft report` that select and compare runs."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager

from litpeft.analysis.comparison.compare_runs import compare
from litpeft.analysis.comparison.margins import Margin, read_margin
from litpeft.analysis.comparison.results import Comparison


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare` to a parser."""
    parser.add_argument("paths", metavar="PATH", nargs="+", help="run folder, folder of runs, or folder of a sweep")
    parser.add_argument(
        "--by",
        type=_names,
        metavar="A,B",
        help="axes that define the groups: adapter, optimizer, lr, ... or options such as model.adapter.rank; default: "
        "the axes of the sweep, else adapter. Differences in other options are refused or reported",
    )
    parser.add_argument(
        "--baseline",
        metavar="LABEL",
        help="label of the baseline group; default: the baseline of the sweep, else the first group",
    )
    parser.add_argument(
        "--average_over",
        metavar="AXIS",
        help="average the scores of the runs over the tasks on this axis, such as data.task for GLUE: each task weighs "
        "the same, and seeds are paired; default: average_over of the sweep",
    )
    parser.add_argument(
        "--margin",
        type=_margin,
        action="append",
        default=[],
        metavar="val_accuracy=0.5",
        help="smallest difference that matters, in the unit of the table, or relative to the baseline (val_loss=2%%); "
        "default: 1 point of an accuracy or other score, 1 %% of a loss, 5 %% of a cost",
    )
    parser.add_argument(
        "--prefer", choices=("memory", "time"), default="memory", help="cost that the recommendation minimises"
    )
    parser.add_argument(
        "--relative",
        action="store_true",
        help="show memory, speed and sizes in per cent of the baseline, with CIs",
    )
    parser.add_argument("--figures", type=_names, metavar="A,B", help="columns, named by fields of the run record")
    parser.add_argument(
        "--target",
        type=_targets,
        action="append",
        default=[],
        metavar="val_accuracy=0.85",
        help="add a column with the seconds of training until the metric reached this value; commas separate several",
    )
    parser.add_argument(
        "--examples",
        action=argparse.BooleanOptionalAction,
        help="test over validation rows too, if runs kept them (--record.predictions); default: if the files are small",
    )


def compare_selected(options: argparse.Namespace) -> Comparison:
    """Compare the runs as selected by the options."""
    with _without_garbage_collection():
        return _compare(options)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Context manager: pause Python's search for cycles, a third of the time of 100,000 records, which have none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _compare(options: argparse.Namespace) -> Comparison:
    return compare(
        options.paths,
        by=options.by,
        baseline=options.baseline,
        figures=options.figures,
        targets=[target for targets in options.target for target in targets],
        examples=options.examples,
        average_over=options.average_over,
        margins=dict(options.margin),
        prefer=options.prefer,
        relative=options.relative,
    )


def _margin(text: str) -> tuple[str, Margin]:
    try:
        return read_margin(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIGURE=AMOUNT, such as val_accuracy=0.5") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _targets(text: str) -> list[tuple[str, float]]:
    pairs = [part.partition("=") for part in _names(text)]
    try:
        return [(name, float(goal)) for name, _, goal in pairs]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not METRIC=NUMBER, such as val_accuracy=0.85") from error
