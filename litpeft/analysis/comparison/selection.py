"""The options by which a command says which runs it holds against each other, and how."""

from __future__ import annotations

import argparse

from litpeft.analysis.comparison.compare_runs import compare
from litpeft.analysis.comparison.results import Comparison


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Give a parser the paths and the options that `selected` reads."""
    parser.add_argument("paths", metavar="PATH", nargs="+", help="run folders, folders of runs, or a sweep's folder")
    parser.add_argument(
        "--by",
        type=_names,
        metavar="A,B",
        help="what varies: adapter, optimizer, lr, ... or options such as model.adapter.rank; by default what the "
        "sweep says, else adapter. A difference in any other option is refused or told",
    )
    parser.add_argument("--baseline", metavar="LABEL", help="the group that others are held against; else the first")
    parser.add_argument("--figures", type=_names, metavar="A,B", help="these columns, by their names in the record")
    parser.add_argument(
        "--target",
        type=_targets,
        action="append",
        default=[],
        metavar="val_accuracy=0.85",
        help="show the seconds of training until a validation met this; several with commas",
    )
    parser.add_argument(
        "--examples",
        action=argparse.BooleanOptionalAction,
        help="test over validation rows too, which --record.predictions keeps; by default where they are few",
    )


def selected(options: argparse.Namespace) -> Comparison:
    """The comparison that was asked for."""
    return compare(
        options.paths,
        by=options.by,
        baseline=options.baseline,
        figures=options.figures,
        targets=[target for targets in options.target for target in targets],
        examples=options.examples,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _targets(text: str) -> list[tuple[str, float]]:
    pairs = [part.partition("=") for part in _names(text)]
    try:
        return [(name, float(goal)) for name, _, goal in pairs]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not METRIC=NUMBER, such as val_accuracy=0.85") from error
