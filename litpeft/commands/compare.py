"""`litpeft compare`: runs in a table by what varies, and which of their differences are real."""

from __future__ import annotations

import argparse
from pathlib import Path

from litpeft.comparison import Comparison, compare
from litpeft.comparison.formats import FORMATS
from litpeft.errors import UserError
from litpeft.records import write_atomically

ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json", ".tex": "latex"}


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    comparison = compare(
        options.paths,
        by=options.by,
        baseline=options.baseline,
        figures=options.figures,
        targets=[target for targets in options.target for target in targets],
        examples=options.examples,
    )
    form = options.format or (ENDINGS.get(options.output.suffix) if options.output else None) or "terminal"
    if options.output:
        _write(options.output, comparison, form)
    elif form == "terminal":
        from rich.console import Console  # other formats do without

        from litpeft.comparison.terminal import show

        show(comparison, Console())
    else:
        print(FORMATS[form](comparison), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="litpeft compare", description=__doc__, epilog="Definitions of all figures: litpeft/records.py."
    )
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
    parser.add_argument("--format", choices=("terminal", *FORMATS), help="by default what the end of FILE says")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _targets(text: str) -> list[tuple[str, float]]:
    pairs = [part.partition("=") for part in _names(text)]
    try:
        return [(name, float(goal)) for name, _, goal in pairs]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not METRIC=NUMBER, such as val_accuracy=0.85") from error


def _write(path: Path, comparison: Comparison, form: str) -> None:
    if form == "terminal":
        from litpeft.comparison.terminal import as_text

        text = as_text(comparison)
    else:
        text = FORMATS[form](comparison)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"-o {path}: {error.strerror or error}.") from error
    print(path)
